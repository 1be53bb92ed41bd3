"""From a policy's answer to batch size and learning-rate factor."""

from dataclasses import replace

import pytest

from lightning_bsscale.theory.controller import BatchState
from lightning_bsscale.theory.policies import Decision, Limits, Situation
from lightning_bsscale.theory.rules import Capped, Constant, FactorPath, Linear, Saturating, Sqrt
from tests.helpers.simulated import noise_of

LIMITS = Limits(granularity=4, min_batch_size=8, max_batch_size=64)
BEGUN = BatchState.begin(16, Linear())


class Answers:
    def __init__(self, answer):
        self.answer = answer

    def decide(self, situation, limits):
        return self.answer


def ask(answer, *, batch=BEGUN, rule=None, noise=None):
    if isinstance(answer, (int, float)):
        answer = Decision(batch_size=answer, reason="as asked")
    situation = Situation(
        batch_size=batch.batch_size, start_batch_size=16, examples_seen=100, total_examples=1000, noise=noise
    )
    return batch.decided(situation, policy=Answers(answer), rule=rule or Linear(), limits=LIMITS)


@pytest.mark.parametrize(
    ("asked", "batch_size"), [(16, 16), (33.9, 32), (32, 32), (1, 8), (1000, 64), (15.9, 12), (19, 16)]
)
def test_an_answer_is_rounded_and_kept_within_the_limits(asked, batch_size):
    batch, record, is_valid, _ = ask(asked)
    assert is_valid
    assert (batch.batch_size, record.batch_size, record.is_change) == (batch_size, batch_size, batch_size != 16)
    assert (batch.lr_scale, record.lr_scale) == (batch_size / 16, batch_size / 16)
    assert batch.examples_at_last_change == (100 if batch_size != 16 else None)
    assert BatchState.begin(16, Linear()) == BEGUN


@pytest.mark.parametrize("answer", [None, "grow", Decision(batch_size=-1, reason="no"), 64])
def test_what_is_no_decision_holds(answer):
    batch, record, is_valid, given = ask(answer)
    assert is_valid is (answer == 64)
    assert (batch is BEGUN) is not is_valid
    assert record.is_change is is_valid
    assert is_valid or given is answer


@pytest.mark.parametrize(
    ("rule", "noise", "factor", "name"),
    [
        (Sqrt(), None, 2.0, "sqrt"),
        (Saturating(), noise_of(32), (1 + 32 / 16) / (1 + 32 / 64), "saturating"),
        (Saturating(), None, 2.0, "sqrt, as saturating needs a resolved noise scale"),
        (Constant(), None, 1.0, Constant().name),
    ],
)
def test_the_rule_moves_the_factor_or_its_stand_in_does(rule, noise, factor, name):
    batch, record, *_ = ask(64, rule=rule, noise=noise)
    assert (batch.lr_scale, record.lr_rule) == (pytest.approx(factor), name)


def test_another_rule_counts_from_the_first_batch_size():
    grown = ask(64).batch
    assert grown.lr_scale == 4
    assert grown.with_rule(Sqrt(), None).lr_scale == 2
    assert grown.with_rule(Constant(), None).lr_scale == 1
    assert BEGUN.with_rule(Sqrt(), None) == BEGUN
    assert grown.with_rule(Sqrt(), None).with_rule(Linear(), None) == grown
    assert grown.with_rule(Capped(Linear(), 3), None).lr_scale == 3


@pytest.mark.parametrize(
    ("limits", "batch_size", "factor"),
    [
        (LIMITS, 24, 1.5),
        (Limits(granularity=16, min_batch_size=16, max_batch_size=64), 32, 2.0),
        (Limits(granularity=5, min_batch_size=5, max_batch_size=60), 25, 25 / 16),
        (Limits(granularity=4, min_batch_size=4, max_batch_size=20), 20, 20 / 16),
    ],
)
def test_another_start_takes_the_nearest_possible_batch_size(limits, batch_size, factor):
    fitted = ask(24).batch.fitted(limits, Linear(), None)
    assert (fitted.batch_size, fitted.lr_scale) == (batch_size, pytest.approx(factor))
    assert ask(24).batch.fitted(limits, Capped(Linear(), 1.25), None).lr_scale <= 1.25


@pytest.mark.parametrize(("examples", "factor"), [(64, 2.0), (128, 4.0), (32, 1.0), (4, 1.0), (48, 1.5)])
def test_a_window_of_another_size(examples, factor):
    """A short one never gets less than the user's own learning rate, nor more than the current batch's."""
    assert ask(32).batch.window_factor(examples, Linear(), None) == factor * (2 if examples in (32, 48, 64, 128) else 1)


def test_a_short_window_of_a_shrunk_batch_keeps_its_factor():
    shrunk = ask(8).batch
    assert shrunk.lr_scale == 0.5
    assert shrunk.window_factor(4, Linear(), None) == 0.5
    assert replace(shrunk, path=FactorPath()).window_factor(8, Linear(), None) == 0.5


@pytest.mark.parametrize(
    ("batch_size", "window", "ratio"),
    [
        *((16, None, 1), (64, None, 4), (8, None, 0.5)),
        *((64, 48, 3), (64, 8, 1), (64, 128, 8)),  # a short window is never less than one of the user's plan
        *((8, 4, 0.5), (8, 16, 1), (16, 12, 1)),  # unless the batch itself is
    ],
)
def test_a_window_counts_by_its_size_over_the_first(batch_size, window, ratio):
    assert replace(BEGUN, batch_size=batch_size).ratio(window) == ratio
