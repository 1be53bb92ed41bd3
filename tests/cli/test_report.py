"""The command that writes a report: its file, and its refusals."""

import pytest

from lightning_bsscale.cli import main
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
