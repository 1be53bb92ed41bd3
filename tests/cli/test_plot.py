"""The command that draws runs from their journals."""

import sys

import pytest

from lightning_bsscale import GradientNoiseScaleMonitor, figures
from lightning_bsscale.cli import main
from lightning_bsscale.journal import read_journal
from lightning_bsscale.theory.records import DecisionRecord, Measurement
from tests.helpers.expected_warnings import CANNOT_MEASURE
from tests.helpers.training import Regression, fit, regression_loader
from tests.helpers.written_runs import write_run

BEGINNINGS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.mark.parametrize("suffix", BEGINNINGS)
def test_a_picture_in_the_format_of_its_suffix(tmp_path, capsys, suffix):
    out = tmp_path / "new" / f"run{suffix}"
    out.parent.mkdir()
    out.write_text("old")
    assert main(["plot", str(write_run(tmp_path / "j")), "-o", str(out)]) == 0
    assert out.read_bytes().startswith(BEGINNINGS[suffix])
    assert capsys.readouterr().out == f"picture: {out}\n"
    assert list(out.parent.iterdir()) == [out]


def test_it_draws_what_the_journal_holds(tmp_path, monkeypatch):
    drawn, usual = [], figures.plot_run
    monkeypatch.setattr(
        figures, "plot_run", lambda *given, **more: drawn.append((given, more)) or usual(*given, **more)
    )
    path = write_run(tmp_path / "j")
    assert main(["plot", str(path), "-o", str(tmp_path / "run.png")]) == 0
    (((run,), _),) = drawn
    _, records = read_journal(path)
    assert list(run.history) == [one for one in records if isinstance(one, Measurement)]
    assert list(run.decisions) == [one for one in records if isinstance(one, DecisionRecord)]
    assert (run.unit, run.warmup_examples) == ("examples", 100)


@CANNOT_MEASURE
def test_of_a_monitor_the_noise_scale_in_its_unit(tmp_path, monkeypatch):
    drawn, usual = [], figures.plot_noise_scale
    monkeypatch.setattr(figures, "plot_noise_scale", lambda run, **more: drawn.append(run.unit) or usual(run, **more))
    monitor = GradientNoiseScaleMonitor(record=tmp_path / "j", unit="rows")
    fit(Regression(), regression_loader(64), [monitor], max_epochs=1, accumulate_grad_batches=2)
    assert main(["plot", str(monitor.journal_path), "-o", str(tmp_path / "run.png")]) == 0
    assert drawn == ["rows"]


def test_several_journals_are_numbered_pictures(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        write_run(tmp_path / name, 60)
    assert main(["plot", "a", "b", "-o", "runs.svg"]) == 0
    assert capsys.readouterr().out == "picture: runs-1.svg (a)\npicture: runs-2.svg (b)\n"
    assert sorted(path.name for path in tmp_path.glob("*.svg")) == ["runs-1.svg", "runs-2.svg"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none"], "no such journal: none"),
        (["j", "none"], "no such journal: none"),
        (["notes"], "notes is not a journal"),
        (
            ["."],
            ". is a folder; a journal is a regular file. Give the path of the file. There is no .jsonl file in it.",
        ),
        (["j", "-o", "x.nonsense"], "x.nonsense has the suffix of no picture: use .png, .svg, .pdf"),
        (["j", "-o", "j"], "j is the journal itself"),
        (["j", "-o", "notes/x.png"], "notes/x.png cannot be written: "),
        (["j", "-o", "folder.png"], "folder.png cannot be written: "),
    ],
)
def test_a_mistake_is_one_sentence_and_no_file(tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    before = write_run(tmp_path / "j", 60).read_bytes()
    (tmp_path / "notes").write_text("hello\n")
    (tmp_path / "folder.png").mkdir()
    found = sorted(tmp_path.iterdir())
    assert main(["plot", *words]) == 1
    told = capsys.readouterr()
    (sentence,) = (line for line in told.err.splitlines() if not line.startswith("drawing "))  # a machine may be slow
    assert (told.out, sentence.startswith(said)) == ("", True)
    assert sorted(tmp_path.iterdir()) == found
    assert (tmp_path / "j").read_bytes() == before


def test_without_matplotlib(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["plot", str(write_run(tmp_path / "j", 60)), "-o", str(tmp_path / "x.png")]) == 1
    assert capsys.readouterr().err == "Plots need matplotlib: pip install 'lightning-bsscale[plot]'.\n"
