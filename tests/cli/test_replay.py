"""The command that computes a journal again: as it was, with a policy of one's own, and with other options."""

import json
import re
import sys

import pytest

from lightning_bsscale.cli import main
from lightning_bsscale.cli.what_if import HONEST
from lightning_bsscale.theory.policies import HoldIfWorse, NoiseScalePolicy, Seesaw
from lightning_bsscale.theory.rules import Capped, Linear, Sqrt
from lightning_bsscale.theory.schedules import WarmupCosine
from lightning_bsscale.what_if import what_if
from tests.helpers.written_runs import write_run

OWN = """
from dataclasses import dataclass

from lightning_bsscale import Decision, LearningRateRule


@dataclass(frozen=True)
class Jumps:
    to: int = 64

    def decide(self, situation, limits):
        return Decision(batch_size=self.to, reason="mine")


class Climbs:
    def decide(self, situation, limits):
        return Decision(batch_size=situation.batch_size + 4, reason="mine")


class Breaks:
    def decide(self, situation, limits):
        return Decision(batch_size=situation.batch_size // 0, reason="mine")


class Third(LearningRateRule):
    def ratio(self, old_batch, new_batch, noise):
        return (new_batch / old_batch) ** (1 / 3)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's own in the current folder."""
    (tmp_path / "own_policies.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "own_policies", raising=False)
    import own_policies

    return own_policies


# ---------------------------------------------------------------- as it was


def test_a_replay_that_agrees(tmp_path, capsys):
    path = str(write_run(tmp_path / "j", 60))
    assert main(["replay", path]) == 0
    said = capsys.readouterr().out
    counts = [int(count) for count in re.findall(r"(\d+) of \1 ", said)]
    assert said.endswith("1 of 1 end states agree\n")
    assert len(counts) == 5
    assert min(counts) > 0
    assert main(["replay", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["all"] for one in found["counts"].values()] == counts
    assert (found["agrees"], found["disagreements"]) == (True, [])


def test_a_replay_that_disagrees(tmp_path, capsys):
    path = write_run(tmp_path / "j", 100)
    lines = path.read_text().splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith('{"event":"decision"'))
    lines[place] = lines[place].replace('"lr_rule":"sqrt"', f'"lr_rule":"{"x" * 5000}"')
    path.write_text("\n".join(lines) + "\n")
    assert main(["replay", str(path)]) == 3
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"line {place + 1}, decision: recorded DecisionRecord(")
    assert (len(said[0]) < 2100, " of " in said[-1], len(said)) == (True, True, 2)
    assert main(["replay", str(path), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    counts = found["counts"]["decision"]
    assert (found["agrees"], counts["all"] - counts["agree"]) == (False, 1)
    assert [(one["line"], one["kind"]) for one in found["disagreements"]] == [(place + 1, "decision")]


def test_only_the_first_disagreements_are_shown(tmp_path, capsys):
    path = write_run(tmp_path / "j", 200)
    path.write_text(path.read_text().replace('"trace":', '"trace":1'))
    assert main(["replay", str(path)]) == 3
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 12
    assert re.fullmatch(r"\.\.\. and \d+ more that disagree", said[10])


def test_a_file_that_is_no_journal(tmp_path, capsys):
    path = tmp_path / "notes.txt"
    assert main(["replay", str(path)]) == 1
    assert "no such journal" in capsys.readouterr().err
    path.write_text("hello\n")
    assert main(["replay", str(path)]) == 1
    assert str(path) in capsys.readouterr().err


def test_ones_own_policy_is_named_and_the_run_compared(own, tmp_path, capsys):
    path = str(write_run(tmp_path / "j", policy=own.Jumps(64)))
    assert main(["replay", path]) == 1
    told = capsys.readouterr()
    assert (told.out, "pass the policy, replay(path, policy=...) or --policy." in told.err) == ("", True)
    for words in ("own_policies:Jumps", "own_policies:Jumps(64)", "own_policies:Jumps(to=64)"):
        assert main(["replay", path, "--policy", words]) == 0
        assert capsys.readouterr().out.endswith("1 of 1 end states agree\n")
    assert main(["replay", path, "--policy", "own_policies:Jumps(32)"]) == 0
    assert capsys.readouterr().out.startswith("What if policy=own_policies:Jumps(32), and all else as it was?")


def test_ones_own_rule_under_a_ceiling(own, tmp_path, capsys):
    path = str(write_run(tmp_path / "j", rule=Capped(own.Third(), 2.0)))
    assert main(["replay", path]) == 1
    assert "pass the rule, replay(path, rule=...) or --rule." in capsys.readouterr().err
    assert main(["replay", path, "--rule", "own_policies:Third"]) == 0
    assert capsys.readouterr().out.endswith("1 of 1 end states agree\n")
    assert main(["replay", path, "--rule", "linear", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["what_if"]["lr_scale"] > found["as_it_was"]["lr_scale"]


def test_the_policy_of_the_journal_is_no_what_if(tmp_path, capsys):
    path = str(write_run(tmp_path / "j", policy=NoiseScalePolicy(target_ratio=0.5), schedule=WarmupCosine()))
    for words in (["--policy", "NoiseScalePolicy(target_ratio=0.5)"], ["--rule", "sqrt", "--schedule", "cosine"]):
        assert main(["replay", path, *words]) == 0
        assert capsys.readouterr().out.endswith("1 of 1 end states agree\n")
    for words in (["--policy", "noise_scale"], ["--schedule", "linear"], ["--rule", "linear"], ["--what-if"]):
        assert main(["replay", path, *words]) == 0
        assert capsys.readouterr().out.startswith("What if ")


# ---------------------------------------------------------------- what if

WHAT_IFS = {
    "target_ratio=0.5": dict(policy=NoiseScalePolicy(target_ratio=0.5, min_steps=0)),
    "max_batch_size=16": dict(max_batch_size=16),
    "memory=0.01": dict(memory=0.01),
    "warmup=0.5": dict(warmup=0.5),
    "warmup=600": dict(warmup=600),
    "lr_cap=1.5": dict(lr_cap=1.5),
    "lr_rule=linear": dict(lr_rule=Linear()),
    "lr_rule=Capped(Sqrt(), 1.5)": dict(lr_rule=Capped(Sqrt(), 1.5)),
    "policy=seesaw": dict(policy=Seesaw()),
    "policy=HoldIfWorse(Seesaw(cut=1.5), 'val_loss')": dict(policy=HoldIfWorse(Seesaw(cut=1.5), "val_loss")),
}


@pytest.mark.parametrize("asked", WHAT_IFS)
def test_each_option_reaches_the_computation(tmp_path, capsys, asked):
    path = write_run(tmp_path / "j", 800)
    expected = what_if(path, **WHAT_IFS[asked])
    assert main(["replay", str(path), "--set", asked, "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out, parse_constant=pytest.fail)
    assert told.err == ""
    assert found["asked"] == [asked]
    for name in ("as_it_was", "what_if"):
        course = getattr(expected, name)
        assert found[name]["optimizer_steps"] == course.optimizer_steps
        assert found[name]["lr_scale"] == course.end.lr_scale
        batches = [(one["examples_seen"], one["batch_size"]) for one in found[name]["changes"]]
        assert batches == [(one.examples_seen, one.batch_size) for one in (course.start, *course.changes)]
    assert found["as_it_was"] != found["what_if"]
    assert HONEST in found["notes"]
    assert any("'val_loss'" in note for note in found["notes"]) == ("val_loss" in asked)


def test_several_options_together(tmp_path, capsys):
    path = write_run(tmp_path / "j", 800)
    words = ["--policy", "NoiseScalePolicy(confidence=0.6)", "--set", "target_ratio=2", "--set", "max_batch_size=200"]
    assert main(["replay", str(path), *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    policy = NoiseScalePolicy(confidence=0.6, target_ratio=2)
    expected = what_if(path, policy=policy, max_batch_size=200).what_if
    assert found["what_if"]["batch_size"] == expected.end.batch_size > 100
    assert found["asked"] == ["policy=NoiseScalePolicy(confidence=0.6)", "target_ratio=2", "max_batch_size=200"]


def test_the_two_runs_side_by_side(tmp_path, capsys):
    path = write_run(tmp_path / "j", 800)
    found = what_if(path, max_batch_size=16)
    assert main(["replay", str(path), "--set", "max_batch_size=16"]) == 0
    text = capsys.readouterr().out
    rows = [[cell.strip() for cell in re.split(r"  +", line)] for line in text.splitlines()]
    was, other = found.as_it_was, found.what_if
    assert ["optimizer steps", f"{was.optimizer_steps:,}", f"{other.optimizer_steps:,}"] in rows
    assert ["batch at the end, examples", str(was.end.batch_size), "16"] in rows
    place = was.end.examples_seen
    assert [f"{place:,.0f}", str(was.end.batch_size), str(other.batch_at(place))] in rows
    prose = " ".join(text.split())
    assert f"That is {other.optimizer_steps - was.optimizer_steps} more optimizer steps on the same 3,200" in prose
    assert HONEST in prose
    assert max(map(len, text.splitlines())) <= 100


def test_many_changes_are_thinned(own, tmp_path, capsys):
    path = str(write_run(tmp_path / "j", 800))
    words = ["--policy", "own_policies:Climbs", "--set", "max_batch_size=1000"]
    assert main(["replay", path, *words]) == 0
    text = capsys.readouterr().out
    rows = [line.split() for line in text.split("from examples")[1].split("\n\n")[0].splitlines()[1:]]
    assert main(["replay", path, *words, "--json"]) == 0
    changes = json.loads(capsys.readouterr().out)["what_if"]["changes"]
    assert len(changes) > 30
    assert len(rows) == 24
    assert (rows[0][0], rows[-1][0], rows[-1][2]) == (
        "0",
        f"{changes[-1]['examples_seen']:,.0f}",
        str(changes[-1]["batch_size"]),
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "target_ratio"], "--set must be NAME=VALUE, such as target_ratio=0.5, got 'target_ratio'."),
        (["--set", "=3"], "--set must be NAME=VALUE"),
        (["--set", "target_ratio=-1"], "target_ratio must be a finite number above 0, got -1"),
        (["--set", "target_ratio=high"], "target_ratio must be a number above 0 or the path of a file"),
        (["--set", "measure_every=1"], "--set measure_every: what can be set is policy, lr_rule, schedule, lr_cap, "),
        (["--set", "policy=fly"], "--set policy must be one of noise_scale, seesaw"),
        (["--set", "max_batch_size=2"], "max_batch_size must be at least the first batch of 8, got 2"),
        (["--set", "max_batch_size=many"], "max_batch_size must be an integer of at least 1, got 'many'"),
        (["--set", "memory=5"], "memory (a share of the budget; 1.0 averages over everything) must be"),
        (["--policy", "Seesaw(cut=1)"], "cut must be a finite number above 1, got 1"),
        (["--policy", "nowhere:Mine"], "--policy nowhere:Mine cannot be loaded: No module named 'nowhere'"),
        (["--policy", "own_policies:Breaks"], "ZeroDivisionError: "),
        (["--policy", "own_policies:Breaks", "--set", "patience=3"], "--set patience: what can be set is "),
    ],
)
def test_a_mistake_is_one_sentence(own, tmp_path, capsys, words, said):
    path = write_run(tmp_path / "j", 100)
    assert main(["replay", str(path), *words]) == 1
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert told.err.startswith(said)


def test_an_error_in_ones_own_policy_has_its_place_or_its_traceback(own, tmp_path, capsys):
    path, words = str(write_run(tmp_path / "j", 100)), ["--policy", "own_policies:Breaks"]
    assert main(["replay", path, *words]) == 1
    assert capsys.readouterr().err.endswith("(own_policies.py, line 22). --traceback shows all of it.\n")
    with pytest.raises(ZeroDivisionError):
        main(["replay", path, *words, "--traceback"])
