"""The command that draws runs from their journals."""

import json
import sys
from pathlib import Path

import pytest

from lightning_bsscale import GradientNoiseScaleMonitor, NoiseScalePolicy, figures
from lightning_bsscale.cli import main
from tests.helpers.expected_warnings import CANNOT_MEASURE
from tests.helpers.training import Regression, fit, regression_loader, scripted
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


def drawn_by(monkeypatch, name):
    """What a function of the figures is given."""
    drawn, usual = [], getattr(figures, name)
    monkeypatch.setattr(figures, name, lambda run, **more: drawn.append((run, more)) or usual(run, **more))
    return drawn


@CANNOT_MEASURE
def test_it_draws_what_the_callback_draws(tmp_path, monkeypatch):
    scaler = scripted(8, 8, 16, record=tmp_path / "run.jsonl", total_examples=126)
    fit(Regression(), regression_loader(62), [scaler], max_epochs=2)
    drawn = drawn_by(monkeypatch, "plot_run")
    assert main(["plot", str(scaler.journal_path), "-o", str(tmp_path / "run.png")]) == 0
    ((found, more),) = drawn
    expected = scaler._drawn_run()
    for name in (
        "decisions",
        "unit",
        "examples_seen",
        "warmup_examples",
        "batch_size",
        "granularity",
        "is_dry_run",
        "min_steps",
        "total_examples",
        "why",
    ):
        assert getattr(found, name) == getattr(expected, name), name
    assert list(found.history) == list(expected.history)
    assert {name: len(points) for name, points in found.losses.items()} == {
        name: len(points) for name, points in expected.losses.items()
    }
    assert more == {"is_shown": False}


@CANNOT_MEASURE
def test_of_a_monitor_the_noise_scale_in_its_unit(tmp_path, monkeypatch):
    drawn = drawn_by(monkeypatch, "plot_noise_scale")
    monitor = GradientNoiseScaleMonitor(record=tmp_path / "j", unit="rows")
    fit(Regression(), regression_loader(64), [monitor], max_epochs=1, accumulate_grad_batches=2)
    assert main(["plot", str(monitor.journal_path), "-o", str(tmp_path / "run.png")]) == 0
    assert [run.unit for run, _ in drawn] == ["rows"]


def test_the_limit_of_the_journals_policy_is_drawn(tmp_path, monkeypatch):
    drawn = drawn_by(monkeypatch, "plot_run")
    path = write_run(tmp_path / "j", policy=NoiseScalePolicy(min_steps=77))
    assert main(["plot", str(path), "-o", str(tmp_path / "run.png")]) == 0
    assert [(run.min_steps, run.total_examples) for run, _ in drawn] == [(77, 1600.0)]


def test_a_run_that_has_only_begun_says_so_in_its_picture(tmp_path, monkeypatch):
    whole = write_run(tmp_path / "j", 60).read_bytes()
    (tmp_path / "j").write_bytes(whole[: whole.index(b"\n") + 1])
    drawn = drawn_by(monkeypatch, "plot_noise_scale")
    assert main(["plot", str(tmp_path / "j"), "-o", str(tmp_path / "run.png")]) == 0
    assert "holds no optimizer step" in drawn[0][0].why


def test_several_journals_are_compared_in_one_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(name).mkdir()
        write_run(Path(name, "run.jsonl"), 60)
    drawn = drawn_by(monkeypatch, "plot_comparison")
    assert main(["plot", "a/run.jsonl", "b/run.jsonl", "-o", "runs.svg"]) == 0
    assert capsys.readouterr().out == "picture: runs.svg\n"
    # By their paths, as both have the same file name.
    paths = {name: Path(name) for name in ("a/run.jsonl", "b/run.jsonl")}
    assert drawn == [(paths, {"loss": None, "is_shown": False})]
    assert main(["plot", "a/run.jsonl", "b/run.jsonl", "-o", "runs.svg", "--loss", "val_loss"]) == 1
    assert capsys.readouterr().err == "loss must be one that a run has logged (none), got 'val_loss'\n"


def test_each_of_several_journals_is_a_numbered_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        write_run(tmp_path / name, 60)
    assert main(["plot", "a", "b", "-o", "runs.svg", "--each"]) == 0
    assert capsys.readouterr().out == "picture: runs-1.svg (a)\npicture: runs-2.svg (b)\n"
    assert sorted(path.name for path in tmp_path.glob("*.svg")) == ["runs-1.svg", "runs-2.svg"]


@pytest.mark.parametrize(
    ("words", "pictures"),
    [
        (["a"], {"runs.svg": ["a"]}),
        (["a", "b"], {"runs.svg": ["a", "b"]}),
        (["a", "b", "--each"], {"runs-1.svg": ["a"], "runs-2.svg": ["b"]}),
    ],
)
def test_json_says_what_was_written_and_found(tmp_path, capsys, monkeypatch, words, pictures):
    monkeypatch.chdir(tmp_path)
    for name, size in (("a", 400), ("b", 60)):
        write_run(tmp_path / name, size)
    assert main(["plot", *words, "-o", "runs.svg", "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out, parse_constant=pytest.fail)
    assert list(found) == ["pictures", "runs"]
    assert {one["picture"]: one["journals"] for one in found["pictures"]} == pictures
    assert [one["bytes"] for one in found["pictures"]] == [Path(name).stat().st_size for name in pictures]
    journals = [word for word in words if word != "--each"]
    assert main(["summary", *journals, "--json"]) == 0
    full = json.loads(capsys.readouterr().out)["runs"]
    assert all(run.items() <= other.items() for run, other in zip(found["runs"], full, strict=True))


def test_json_of_a_run_that_has_only_begun(tmp_path, capsys):
    whole = write_run(tmp_path / "j", 60).read_bytes()
    (tmp_path / "j").write_bytes(whole[: whole.index(b"\n") + 1])
    assert main(["plot", str(tmp_path / "j"), "-o", str(tmp_path / "run.png"), "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["headline"] == "Nothing was trained."


def test_json_names_the_pictures_that_were_written_before_one_that_cannot_be(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        write_run(tmp_path / name, 60)
    (tmp_path / "runs-2.svg").mkdir()
    assert main(["plot", "a", "b", "-o", "runs.svg", "--each", "--json"]) == 1
    told = capsys.readouterr()
    assert [one["picture"] for one in json.loads(told.out)["pictures"]] == ["runs-1.svg"]
    assert "runs-2.svg cannot be written" in told.err


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
    (sentence,) = (line for line in told.err.splitlines() if not line.endswith(" s)"))  # a machine may be slow
    assert (told.out, sentence.startswith(said)) == ("", True)
    assert sorted(tmp_path.iterdir()) == found
    assert (tmp_path / "j").read_bytes() == before


def test_without_matplotlib(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["plot", str(write_run(tmp_path / "j", 60)), "-o", str(tmp_path / "x.png")]) == 1
    assert capsys.readouterr().err == "Plots need matplotlib: pip install 'lightning-bsscale[plot]'.\n"
