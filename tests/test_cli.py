import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightning_bsscale.cli import main
from lightning_bsscale.journal import Journal, describe_policy
from lightning_bsscale.theory.policies import Decision, Limits, NoiseScalePolicy, Reason, Situation
from lightning_bsscale.theory.records import DecisionRecord

HELD = DecisionRecord(
    situation=Situation(batch_size=8, start_batch_size=8, examples_seen=100, total_examples=1000),
    limits=Limits(granularity=8, min_batch_size=8, max_batch_size=64),
    decision=Decision(batch_size=8, reason=Reason.NO_ESTIMATE.value, code=Reason.NO_ESTIMATE.code),
    batch_size=8,
    lr_scale=1.0,
    lr_rule="sqrt",
)


def journal(folder, *records):
    written = Journal(folder / "journal.jsonl", {"policy": describe_policy(NoiseScalePolicy())})
    for record in records:
        written.write(record)
    written.close()
    return str(written.path)


def test_a_replay_that_agrees(tmp_path, capsys):
    assert main(["replay", journal(tmp_path, HELD, HELD)]) == 0
    assert capsys.readouterr().out == "2 of 2 decisions agree\n"


def test_a_replay_that_disagrees(tmp_path, capsys):
    grown = replace(HELD, decision=Decision(batch_size=16, reason=Reason.GROW.value))
    assert main(["replay", journal(tmp_path, HELD, grown)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("decision 2: recorded ")
    assert "16" in said[0]
    assert said[-1] == "1 of 2 decisions agree"


def test_a_file_that_is_no_journal(tmp_path, capsys):
    path = tmp_path / "notes.txt"
    assert main(["replay", str(path)]) == 1
    assert "no such journal" in capsys.readouterr().out
    path.write_text("hello\n")
    assert main(["replay", str(path)]) == 1
    assert str(path) in capsys.readouterr().out


def test_the_demo_is_given_its_options(monkeypatch):
    calls = []
    monkeypatch.setitem(
        sys.modules, "lightning_bsscale.demo", SimpleNamespace(run=lambda **given: calls.append(given) or 0)
    )
    assert main(["demo"]) == 0
    assert main(["demo", "--out", "elsewhere", "--seed", "3", "--epochs", "2"]) == 0
    assert calls == [
        dict(out=Path("runs/demo"), seed=0, epochs=25),
        dict(out=Path("elsewhere"), seed=3, epochs=2),
    ]


def test_a_demo_that_cannot_run_says_so_by_its_exit_status(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning_bsscale.demo", SimpleNamespace(run=lambda **given: 1))
    assert main(["demo"]) == 1


@pytest.mark.parametrize("words", [[], ["fly"], ["demo", "--epochs", "0"], ["demo", "--seed", "x"]])
def test_wrong_words_are_refused(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("epochs", ["0", "-1", "1.5", "many", ""])
def test_epochs_are_a_whole_number(epochs, capsys):
    with pytest.raises(SystemExit):
        main(["demo", f"--epochs={epochs}"])
    assert f"{epochs!r}" in capsys.readouterr().err
