"""Policies, rules, schedules and counting functions of the user's own that answer nonsense, or raise."""

import json
import math

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_bsscale import BatchSizeScaler, Decision, LearningRateRule, NoiseScalePolicy
from lightning_bsscale.callbacks.trainer.loaders import batch_size_of
from lightning_bsscale.journal import read_journal
from lightning_bsscale.theory.policies import Policy, Situation, recorded_decision
from lightning_bsscale.theory.schedules import Schedule
from tests.helpers.expected_warnings import said_of
from tests.helpers.refusals_of_training import with_scheduler
from tests.helpers.training import KeepsRates, Regression, Scripted, fit, regression_loader, run_of

NAN = float("nan")


class Answers(Policy, Schedule):
    """A policy or a schedule that answers, or raises, what the test chooses; from the third question on."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = 0

    def decide(self, situation, limits):
        self.asked += 1
        if isinstance(self.answer, BaseException) and self.asked > 2:
            raise self.answer
        hold = Decision(batch_size=situation.batch_size, reason="hold")
        return self.answer if self.asked > 2 else hold

    def factor(self, examples_seen, total_examples, warmup_examples):
        self.asked += 1
        return self.answer if self.asked > 2 else 1.0


class Duck:
    """A rule that inherits from nothing."""

    def __init__(self, answer=1.0):
        self.answer = answer

    def ratio(self, old_batch, new_batch, noise):
        return self.answer


class Rule(Duck, LearningRateRule):
    def __init__(self, answer=1.0, applied=None):
        super().__init__(answer)
        self.on_top = applied

    def applied(self, path_factor):
        return path_factor if self.on_top is None else self.on_top


def fails(error, match, callback, scheduler=None, **settings):
    """The training ends with this error, with nothing left behind, and every rate was a finite number above zero."""
    module = Regression(lambda p: KeepsRates(p, lr=0.05), scheduler)
    with pytest.raises(error, match=match) as caught:
        fit(module, regression_loader(80), [callback], max_epochs=1, **settings)
    assert all(0 < rate < math.inf for rates in module.trainer.optimizers[0].used for rate in rates)
    assert all(torch.isfinite(p).all() for p in module.parameters())
    return caught.value, module.trainer


# ---------------------------------------------------------------- policies

NO_COUNTS = [0, -1, 2.5, NAN, math.inf, None, "4", True, torch.tensor(4), torch.ones(2), np.ones(2), 4j, np.True_]
NO_DECISIONS = [None, 8, NAN, "grow", (8, "grow"), {"batch_size": 8}, Decision]
NO_SIZES = ["8", None, NAN, math.inf, 0, -8, True, [8], torch.tensor(8)]
NO_DECISIONS += [Decision(batch_size=size, reason="a wrong size") for size in NO_SIZES]


@pytest.mark.parametrize("answer", [None, Decision(batch_size=NAN, reason="nan")], ids=str)
def test_an_answer_that_is_no_decision_is_held_and_named_once(answer):
    scaler = BatchSizeScaler(policy=Answers(answer))
    with pytest.warns(UserWarning, match=r"Answers\.decide") as caught:
        fit(Regression(), regression_loader(80), [scaler], max_epochs=1)
    assert len(said_of(r"Answers\.decide", caught)) == 1
    assert (scaler.batch_size, scaler.lr_scale) == (4, 1.0)
    reasons = [record.decision.reason for record in scaler.decisions]
    assert reasons == ["hold", "hold: the policy did not return a valid decision"]


@pytest.mark.parametrize("answer", NO_DECISIONS, ids=str)
def test_what_is_no_decision(answer):
    assert recorded_decision(answer, Situation(batch_size=8, start_batch_size=8, examples_seen=0)) is None


@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyError("mine"), ZeroDivisionError("mine")], ids=repr)
def test_an_exception_of_a_policy_comes_through_as_it_is(error, tmp_path):
    scaler = BatchSizeScaler(policy=Answers(error), record=tmp_path / "run.jsonl", warmup=0)
    found, trainer = fails(type(error), "mine", scaler, scheduler=with_scheduler, accumulate_grad_batches=2)
    assert found is error
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05 * 0.1**trainer.global_step)
    assert trainer.global_step == 3
    read_journal(tmp_path / "run.jsonl")
    # The same object can train again.
    scaler._options.policy.answer = Decision(batch_size=16, reason="better")
    fit(Regression(), regression_loader(160), [scaler], max_epochs=1)
    assert scaler.batch_size == 16


def test_a_policy_that_cannot_be_asked_is_not_asked_in_warmup():
    policy = Answers(RuntimeError("mine"))
    fit(Regression(), regression_loader(80), [BatchSizeScaler(policy=policy, warmup=76)], max_epochs=1)
    assert policy.asked <= 2


# ---------------------------------------------------------------- rules and schedules

ZERO_OR_BROKEN = [(value, ValueError) for value in (0, -1.0, NAN, math.inf)]
ZERO_OR_BROKEN += [(value, TypeError) for value in (None, "2", True, torch.tensor(2.0), np.ones(2))]


@pytest.mark.parametrize(
    ("answer", "error", "cap"), [(*one, 4 if k % 2 else None) for k, one in enumerate(ZERO_OR_BROKEN)]
)
def test_a_rule_that_answers_nonsense_is_named(answer, error, cap):
    capped = ", at most 4" if cap else ""
    for rule in (Rule(answer), Duck(answer)):
        scaler = BatchSizeScaler(policy=Scripted([8]), lr_rule=rule, lr_cap=cap)
        fails(error, f"'{type(rule).__name__}{capped}'", scaler)
    if answer is not None:
        scaler = BatchSizeScaler(lr_rule=Rule(1.0, answer), lr_cap=cap)
        fails(error, "'Rule'", scaler)


@pytest.mark.parametrize(("answer", "error"), ZERO_OR_BROKEN[1:])
def test_a_schedule_that_answers_nonsense_is_named(answer, error):
    scaler = BatchSizeScaler(schedule=Answers(answer), policy=Scripted([]))
    fails(error, "schedule 'Answers'", scaler)


@pytest.mark.parametrize("answer", [0, 0.5, 1.5, np.float64(0.5), np.float32(0.5)], ids=str)
def test_a_schedule_may_answer_any_number_from_zero(answer):
    module = Regression(lambda p: KeepsRates(p, lr=0.05))
    scaler = BatchSizeScaler(schedule=Answers(answer), policy=Scripted([]))
    trainer = fit(module, regression_loader(80), [scaler], max_epochs=1, accumulate_grad_batches=2)
    assert trainer.optimizers[0].used[-1] == [pytest.approx(0.05 * answer)]


# ---------------------------------------------------------------- functions that count


@pytest.mark.parametrize("size", [4, 4.0, np.int64(4), np.float64(4.0), np.uint8(4)], ids=repr)
def test_a_count_may_be_any_whole_number(size):
    count = batch_size_of([], lambda batch: size)
    assert (count, type(count)) == (4, int)


@pytest.mark.parametrize("size", NO_COUNTS, ids=repr)
def test_a_count_that_is_no_number(size):
    way_out = r"item\(\)" if isinstance(size, torch.Tensor) else ""
    with pytest.raises(MisconfigurationException, match=rf"batch_size_fn[\s\S]*{way_out}"):
        batch_size_of([], lambda batch: size)


# ---------------------------------------------------------------- NumPy's numbers stay outside


class NumpyPolicy(Policy):
    def decide(self, situation, limits):
        number = np.float32 if situation.optimizer_steps % 2 else np.int64
        return Decision(batch_size=number(limits.clip(2 * situation.batch_size)), reason=np.str_("doubled"))


class NumpySchedule(Schedule):
    def factor(self, examples_seen, total_examples, warmup_examples):
        return np.float64(0.5)


def numpy_inside(value, where="state"):
    if type(value).__module__ == "numpy":
        yield f"{where} is {value!r}"
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from numpy_inside(key, f"a key of {where}")
        yield from numpy_inside(item, f"{where}[{key!r}]")


OPTIONS = dict(
    lr_cap=np.float32(8),
    schedule=NumpySchedule(),
    warmup=np.int64(8),
    max_batch_size=np.int32(64),
    measure_every=np.int8(2),
    max_micro_batch_size=np.uint8(20),
    memory=np.float32(0.9),
    batch_size_fn=lambda batch: np.int64(len(batch[0])),
)
NUMPYS_POLICY = NoiseScalePolicy(target_ratio=np.float32(0.5), cooldown=np.float16(0))
NUMPYS = {
    "own": dict(policy=NumpyPolicy(), lr_rule=Rule(np.float32(1.5)), total_examples=np.int64(320)),
    "built-in": dict(policy=NUMPYS_POLICY, lr_rule=Rule(np.float64(1))),
}


@pytest.mark.parametrize("policy", NUMPYS)
def test_state_and_journal_hold_no_number_of_numpy(policy, tmp_path):
    path = tmp_path / "run.jsonl"
    scaler = BatchSizeScaler(**OPTIONS, **NUMPYS[policy], record=path)
    trainer = fit(Regression(), regression_loader(320), [scaler], max_steps=np.int64(60), max_epochs=2)
    assert not list(numpy_inside(scaler.state_dict()))
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    state = torch.load(tmp_path / "run.ckpt", weights_only=True)["callbacks"]["BatchSizeScaler"]
    assert run_of(state).examples.total == scaler.examples_seen > 0
    header, records = read_journal(path)
    assert records
    assert "np." not in json.dumps(header)
