"""The demonstration, in short: what it prints, what it writes, and what it leaves alone."""

import contextlib
import importlib.util
import io
import json

import pytest
import sklearn.datasets  # noqa: F401  its first import sets environment variables: not inside a test
import torch

from lightning_bsscale import demo
from lightning_bsscale.cli import main
from lightning_bsscale.journal_file import open_new
from lightning_bsscale.replay import replay

DATA = demo.digits_data()
RUNS = ("fixed 8, rate 0.01", "fixed 64, rate 0.08", "BatchSizeScaler from 8")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What four epochs print, where they wrote it, and what else came out."""
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    lines, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(lines), contextlib.redirect_stderr(errors):
        status = main(["demo", "--out", str(out), "--epochs", "4"])
    return out, status, lines.getvalue(), errors.getvalue()


def test_it_prints_one_aligned_table_and_nothing_else(shown):
    out, status, text, errors = shown
    assert status == 0
    assert [line.partition(":")[0] for line in errors.splitlines()[1:]] == ["training"] * 3
    assert not [word for word in ("GPU", "Tip", "Warning", "Trainer.fit") if word in text + errors]
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("run "))
    table = lines[start : start + 4]
    assert len({len(line) for line in table}) == 1
    assert [line.startswith(name) for line, name in zip(table[1:], RUNS, strict=True)] == [True] * 3
    assert [int(line.split()[-4].replace(",", "")) for line in table[1:]] == [4 * 1347] * 3
    steps = [int(line.split()[-5].replace(",", "")) for line in table[1:]]
    assert steps[:2] == [4 * 169, 4 * 22]
    assert steps[2] <= steps[0]  # four epochs are short: it may never grow
    assert "reason" in text
    check_files(text, out / "bsscale.png", out / "bsscale.jsonl")


def check_files(told, picture, journal):
    assert f"picture: {picture}" in told
    assert f"journal: {journal} (python -m lightning_bsscale report {journal})" in told
    assert picture.read_bytes().startswith(b"\x89PNG")
    answers = list(replay(journal))
    assert answers
    assert all(answer.agrees for answer in answers)


def test_a_second_run_replaces_no_file(tmp_path, monkeypatch, capsys):
    """Not even one of an earlier demonstration: a journal of that name may be of a real training."""
    monkeypatch.setattr(demo, "digits_data", lambda: [torch.utils.data.Subset(part, range(160)) for part in DATA])
    for name in ("bsscale.jsonl", "bsscale.png"):
        (tmp_path / name).write_text("mine\n")
    assert main(["demo", "--out", str(tmp_path), "--epochs", "1"]) == 0
    check_files(capsys.readouterr().out, tmp_path / "bsscale-v1.png", tmp_path / "bsscale-v1.jsonl")
    assert {(tmp_path / name).read_text() for name in ("bsscale.jsonl", "bsscale.png")} == {"mine\n"}


def test_json_is_all_that_stdout_gets(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "digits_data", lambda: [torch.utils.data.Subset(part, range(160)) for part in DATA])
    assert main(["demo", "--out", str(tmp_path), "--epochs", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in found["runs"]] == list(RUNS)
    assert [run["examples"] for run in found["runs"]] == [160] * 3
    assert found["verdict"]["headline"] == "The batch stayed at 8 examples."
    assert (found["journal"], found["picture"]) == (str(tmp_path / "bsscale.jsonl"), str(tmp_path / "bsscale.png"))


def test_an_interrupted_picture_leaves_no_file(tmp_path, monkeypatch):
    class Scaler:
        def plot(self):
            return self, None

        def savefig(self, file, **_):
            file.write(b"half")

    def interrupted(path):
        file, name = open_new(path)
        file.close()  # as good as interrupted: it takes nothing
        return file, name

    monkeypatch.setattr(demo, "open_new", interrupted)
    with pytest.raises(ValueError, match="closed file"):
        demo._draw(Scaler(), tmp_path / "bsscale.png")
    assert not list(tmp_path.iterdir())


def test_a_seed_fixes_the_run_and_leaves_the_rest_alone():
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    runs = [demo.train("small", batch_size=64, rate=0.08, seed=seed, epochs=1) for seed in (3, 3, 4)]
    assert runs[0].val_loss == runs[1].val_loss != runs[2].val_loss
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("missing", "words"), [(("sklearn",), "scikit-learn"), (("sklearn", "matplotlib"), "scikit-learn and matplotlib")]
)
def test_a_missing_library_is_one_sentence(missing, words, monkeypatch, tmp_path, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else found(name))
    assert demo.run(tmp_path / "out", seed=0, epochs=1) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == f"The demo needs {words}: pip install 'lightning-bsscale[examples]'.\n"
    assert not (tmp_path / "out").exists()
