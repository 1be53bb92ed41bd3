"""The command that writes a report: its file, and its refusals."""

import json

import pytest

from lightning_bsscale.cli import main
from lightning_bsscale.verdict import read_facts, verdict_of
from tests.helpers.read_page import read_page
from tests.helpers.written_runs import write_run


def test_a_page_is_written_and_replaced(tmp_path, capsys):
    journal, out = write_run(tmp_path / "j", 60), tmp_path / "new" / "page.html"
    for _ in range(2):
        assert main(["report", str(journal), "-o", str(out)]) == 0
        read_page(out.read_text(encoding="utf-8"))
    assert f"report: {out} (" in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]


def test_several_journals_are_one_page(tmp_path):
    journals = [str(write_run(tmp_path / name, 60)) for name in ("a", "b")]
    assert main(["report", *journals, "-o", str(tmp_path / "page.html")]) == 0
    root = read_page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert next(root.all("h1")).text == "2 runs compared"


def test_json_says_what_was_written_and_found(tmp_path, capsys):
    journals, out = [write_run(tmp_path / name, size) for name, size in (("a", 400), ("b", 60))], tmp_path / "page.html"
    assert main(["report", *map(str, journals), "-o", str(out), "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out, parse_constant=pytest.fail)
    assert (told.err, list(found)) == ("", ["report", "bytes", "runs"])
    assert (found["report"], found["bytes"]) == (str(out), out.stat().st_size)
    verdicts = [verdict_of(read_facts(path)) for path in journals]
    assert [run["journal"] for run in found["runs"]] == list(map(str, journals))
    assert [run["headline"] for run in found["runs"]] == [verdict.headline for verdict in verdicts]
    assert [(*run["reasons"], *run["next_steps"]) for run in found["runs"]] == [
        (*verdict.reasons, *verdict.next_steps) for verdict in verdicts
    ]
    # Of each run the same words as the command that says it in full.
    assert main(["summary", *map(str, journals), "--json"]) == 0
    for run, full in zip(found["runs"], json.loads(capsys.readouterr().out)["runs"], strict=True):
        assert run.items() <= full.items()


def test_json_of_a_page_that_was_not_written_is_nothing(tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    assert main(["report", str(write_run(tmp_path / "j", 60)), "-o", str(tmp_path / "folder"), "--json"]) == 1
    told = capsys.readouterr()
    assert (told.out, "cannot be written" in told.err) == ("", True)


@pytest.mark.parametrize("names", [["none"], ["notes"], ["."], ["j"] * 9])
def test_what_cannot_be_read_is_named(tmp_path, capsys, names):
    (tmp_path / "notes").write_text("hello\n")
    write_run(tmp_path / "j", 20)
    out = tmp_path / "page.html"
    assert main(["report", *(str(tmp_path / name) for name in names), "-o", str(out)]) == 1
    said = capsys.readouterr().err
    assert str(tmp_path / names[0]) in said or "1 to 8 runs, got 9" in said
    assert said.count("\n") == 1
    assert not out.exists()


def test_a_journal_is_never_replaced(tmp_path, capsys):
    journal = write_run(tmp_path / "j", 60)
    before = journal.read_bytes()
    assert main(["report", str(journal), "-o", str(journal)]) == 1
    assert "is the journal itself" in capsys.readouterr().err
    assert journal.read_bytes() == before


def test_a_page_that_cannot_be_written(tmp_path, capsys):
    journal = write_run(tmp_path / "j", 60)
    (tmp_path / "folder").mkdir()
    for out in (tmp_path / "folder", journal / "page.html"):
        assert main(["report", str(journal), "-o", str(out)]) == 1
        assert f"{out} cannot be written" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "j"]
