"""What is kept and shown of decisions: bounded whatever the policy does, and with the numbers that decided."""

import dataclasses
import json
import logging
import pickle
import re
import threading
from typing import Any

import pytest
import torch

from lightning_bsscale import BatchSizeScaler, Decision
from lightning_bsscale.journal import read_journal
from lightning_bsscale.replay import replay
from lightning_bsscale.summary import describe_grounds, summary_table
from lightning_bsscale.theory.described import describe
from lightning_bsscale.theory.numbers import describe_number
from lightning_bsscale.theory.policies import Limits, Situation
from lightning_bsscale.theory.records import CHANGES_LIMIT, HOLDS_LIMIT, DecisionLog, DecisionRecord
from lightning_bsscale.theory.stored import as_plain, from_plain
from tests.helpers.expected_warnings import CANNOT_MEASURE
from tests.helpers.simulated import noise_of
from tests.helpers.training import Regression, fit, regression_loader, scripted

pytestmark = CANNOT_MEASURE

LARGEST_STATE = 3_000_000  # bytes, of all decisions
LIMITS = Limits(granularity=4, min_batch_size=4, max_batch_size=8)


class Policy:
    """What a user writes."""

    def __init__(self, decide):
        self.answer = decide

    def decide(self, situation, limits):
        return self.answer(situation)


def numbered(situation):
    """A number in each reason, and no code."""
    return Decision(batch_size=situation.batch_size, reason=f"hold: {situation.examples_seen} examples are too few")


def alternating(situation):
    return Decision(batch_size=4, reason="hold", code=("odd" if situation.optimizer_steps % 2 else "even"))


def restless(situation):
    return Decision(batch_size=12 - situation.batch_size, reason="the other one")


def trained(decide, steps, **options):
    scaler = scripted(policy=Policy(decide), lr_rule="none", max_batch_size=8, **options)
    examples = 4 * steps if decide is not restless else 6 * steps
    fit(Regression(), regression_loader(examples), [scaler], max_epochs=1)
    return scaler


# ---------------------------------------------------------------- bounded


def test_a_number_in_the_reason_makes_no_record_of_its_own(tmp_path):
    scaler = trained(numbered, 1500, record=tmp_path / "run.jsonl")
    (held,) = scaler.decisions
    assert held.decision.reason == "hold: 4 examples are too few"
    assert held.decision.code == "hold"
    assert len(pickle.dumps(scaler.state_dict()["run"]["decisions"])) < 3000
    assert "Kept are" not in scaler.summary()
    records = read_journal(tmp_path / "run.jsonl")[1]
    assert [record for record in records if isinstance(record, DecisionRecord)] == [held]
    assert all(again.agrees for again in replay(tmp_path / "run.jsonl", Policy(numbered)))


@pytest.mark.parametrize(("decide", "name"), [(alternating, "runs of holds"), (restless, "changes")])
def test_thousands_of_records_are_thinned_and_the_summary_says_so(decide, name):
    scaler = trained(decide, 2488)
    assert scaler.examples_seen == (4 if decide is alternating else 6) * 2488
    steps = [record.situation.optimizer_steps for record in scaler.decisions]
    assert steps[0] == 1
    assert steps[-600:] == list(range(2488 - 599, 2489))
    assert len(steps) < 1025
    lines = scaler.summary().splitlines()
    assert lines[-1] == f"Kept are {len(steps):,} of 2,488 {name}; older ones were thinned."
    assert max(map(len, lines)) <= 100
    if decide is alternating:
        assert len(lines) == 4  # title of two lines, one stretch of holds, and what was thinned
    # A checkpoint shows the same, and what it shows continues as it would have.
    again = BatchSizeScaler()
    again.load_state_dict(scaler.state_dict())
    assert again.summary() == scaler.summary()


def record(step, old, new, code="a", reason="r" * 500):
    seen = dict(examples_seen=4.0 * step, optimizer_steps=step, noise=noise_of(1.1 * step, spread=0.1))
    return DecisionRecord(
        situation=Situation(batch_size=old, start_batch_size=4, **seen),
        limits=LIMITS,
        decision=Decision(batch_size=new, reason=reason, code=code, bound=1 / 3, target=step / 7, needed=step / 9),
        batch_size=new,
        lr_scale=1 / 3,
        lr_rule="sqrt, as saturating needs a resolved noise scale",
    )


def kept(log, one):
    return log if log.continues(one) else log.added(one)


@pytest.mark.parametrize("kind", ["holds", "changes", "both"])
def test_a_million_steps_leave_a_bounded_state(kind):
    holds = [record(step, 4, 4, code=f"code {step % 2}") for step in range(1000)]
    changes = [record(step, *((4, 8) if step % 2 else (8, 4))) for step in range(1000)]
    given = {"holds": holds, "changes": changes, "both": [*changes[:500], *holds[:500]]}[kind]
    first, last = record(-1, 4, 8), record(10**6, 4, 4, code="last")
    log = DecisionLog().added(first)
    for _ in range(1000):
        for one in given:
            log = kept(log, one)
    log = kept(log, last)
    assert log.records[0] is first
    assert log.records[-1] is last
    assert log.changes + log.holds == 10**6 + 2
    changed = sum(one.is_change for one in log.records)
    assert changed <= CHANGES_LIMIT
    assert len(log.records) - changed <= HOLDS_LIMIT
    state = as_plain(log)
    assert len(pickle.dumps(state)) < LARGEST_STATE
    assert from_plain(DecisionLog, state) == log


def test_all_changes_are_kept_up_to_the_bound_and_holds_do_not_cost_any():
    log = DecisionLog()
    for step in range(CHANGES_LIMIT):
        log = kept(log, record(step, 4, 8))
        for hold in range(5):
            log = kept(log, record(step, 8, 8, code=str(hold)))
    assert [one.situation.optimizer_steps for one in log.records if one.is_change] == list(range(CHANGES_LIMIT))
    assert log.holds == 5 * CHANGES_LIMIT


# ---------------------------------------------------------------- policies of all kinds


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no repr today")


@dataclasses.dataclass(repr=False)
class Odd(Unprintable):
    """A user's policy with everything that does not copy, print or end."""

    share: float = 0.5
    names: tuple[str, ...] = ("a", "b")
    held: Any = None

    def decide(self, situation, limits):
        return Decision(batch_size=situation.batch_size, reason="as it is")


@pytest.mark.parametrize(
    "make",
    [threading.Lock, lambda: open(__file__), lambda: torch.zeros(3, requires_grad=True) * 2, Unprintable],  # noqa: SIM115
    ids=["lock", "file", "tensor", "unprintable"],
)
def test_a_dataclass_policy_may_hold_anything(make, tmp_path):
    held = make()
    scaler = BatchSizeScaler(policy=Odd(held=held), warmup=0, memory=1.0, record=tmp_path / "run.jsonl")
    fit(Regression(), regression_loader(40), [scaler], max_epochs=1)
    assert scaler.decisions
    header, _ = read_journal(tmp_path / "run.jsonl")
    kind = f"<{type(held).__module__}.{type(held).__qualname__}>"
    assert header["policy"] == {"class": "Odd", "options": {"share": 0.5, "names": ["a", "b"], "held": kind}}
    if hasattr(held, "close"):
        held.close()


def test_a_policy_is_described_in_bounded_size():
    class Breaks(Odd):
        @property
        def share(self):
            raise KeyError("mine")

        share = share.setter(lambda self, value: None)

    for held in ("x" * 10**6, list(range(10**6)), 10**10**5, [[[[1]]]], {"a": 1}, Odd, {1, 2}):
        said = json.dumps(describe(Odd(held=held)))
        assert len(said) < 500
    assert describe(Breaks())["options"]["share"] == "unreadable"


def test_an_answer_without_a_repr_is_still_named():
    scaler = BatchSizeScaler(policy=Policy(lambda situation: Unprintable()), warmup=0, memory=1.0)
    with pytest.warns(UserWarning, match="instance of Unprintable"):
        fit(Regression(), regression_loader(40), [scaler], max_epochs=1)


# ---------------------------------------------------------------- the numbers that decided


def test_a_growth_follows_from_the_numbers_shown(caplog, tmp_path):
    path = tmp_path / "run.jsonl"
    scaler = BatchSizeScaler(record=path)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        fit(Regression(), regression_loader(2000, noise=3.0), [scaler], max_epochs=4)
    changes = [one for one in scaler.decisions if one.is_change]
    assert changes
    table = scaler.summary()
    assert max(map(len, table.splitlines())) <= 100
    said = [one.message for one in caplog.records if one.message.startswith("bsscale: after")]
    for change, line in zip(changes, said, strict=True):
        decision, batch = change.decision, change.situation.batch_size
        assert decision.bound == change.situation.noise.lower_bound(0.8)
        needed = max(1.25 * batch, batch + 4)  # or the next possible batch
        assert decision.target == 1.25 * decision.bound >= decision.needed == needed
        assert f"lower bound (80 %) {describe_number(decision.bound)} x 1.25 = target " in line
        assert f", needed at least {describe_number(needed)}: grow: " in line
        factor = describe_number(change.lr_scale)
        assert f" from {batch} to {change.batch_size}, the learning-rate factor to {factor} (" in line
        (row,) = [row for row in table.splitlines() if f" {batch} -> " in row]
        assert f"  {describe_number(decision.bound)}  " in row
        assert f"  >= {describe_number(needed)} " in row
        assert row.endswith(" grow")
    for again in replay(path):
        assert again.agrees
    # The twin: another bound in the journal is another decision.
    one = changes[0]
    path.write_text(path.read_text().replace(f'"bound":{one.decision.bound}', f'"bound":{one.decision.bound * 1.01}'))
    assert sum(not again.agrees for again in replay(path)) >= 1


def test_numbers_are_written_as_people_write_them():
    numbers = [1048576.0, 33675, 43.32, 999.96, 99.96, 55.0, 0.0125, 0, 3808.2, 1e20, float("inf")]
    written = ["1,048,576", "33,675", "43.3", "1,000", "100", "55", "0.0125", "0", "3,808", "1.00e+20", "inf"]
    assert [describe_number(number) for number in numbers] == written
    table = summary_table([record(10**6, 4, 8)])
    assert "4 M       1 M   4 -> 8" in table
    assert "e+" not in table


def test_what_was_not_enough_looks_like_it():
    one = record(1, 8, 8)
    near = dataclasses.replace(one, decision=Decision(batch_size=8, reason="hold", target=15.9996, needed=16.0))
    assert describe_grounds(near) == "target 15.9996, needed at least 16"
    assert "15.9996" in summary_table([near])
    shrinks = Decision(batch_size=4, reason="r", bound=10.0, confidence=0.95, target=5.0, needed=6.0)
    assert describe_grounds(dataclasses.replace(one, decision=shrinks)) == (
        "upper bound (95 %) 10 x 0.5 = target 5, needed at most 6"
    )
    assert describe_grounds(dataclasses.replace(one, decision=Decision(batch_size=8, reason="r"))) == ""


def test_what_was_asked_for_and_what_was_done_are_told_apart(caplog):
    decide = lambda situation: Decision(batch_size=1000, reason="as much as possible")  # noqa: E731
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        scaler = trained(decide, 20, verbose=True)
    assert [one.batch_size for one in scaler.decisions] == [8, 8]
    lines = [one.message for one in caplog.records if one.message.startswith("bsscale: after")]
    assert lines[0].endswith("as much as possible (requested 1,000)")
    assert re.search(r"12 examples .* 8: as much as possible .*1,000", lines[1])
    assert "(requested" in scaler.summary()


def test_the_summary_of_a_dry_run_says_that_nothing_was_done():
    scaler = trained(restless, 20, dry_run=True)
    assert scaler.summary().endswith("Dry run: batch and learning rate stayed as they were.")
    assert "Dry run" not in trained(restless, 20).summary()
