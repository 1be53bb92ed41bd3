"""Averages and history of the measured windows, and which of them are compared."""

import math
from dataclasses import replace

import pytest

from lightning_bsscale.theory import measured as module
from lightning_bsscale.theory.measured import MOST_CHANGES, Agreement, ClosedWindow, MeasuredWindows
from lightning_bsscale.theory.moments import moments_of
from tests.helpers.simulated import equal_sums


def window(number, examples=16):
    return ClosedWindow(
        examples_seen=number * examples, optimizer_steps=number, batch_size=16, loader_batches=4, lr=0.1, lr_scale=2.0
    )


def sums(mean=1.0, spread=2.0, samples=4):
    """Four samples of four examples: tr Σ = 16/3 · spread, ‖G‖² = mean - spread/3."""
    return equal_sums(samples * (mean + spread), mean, samples, 4)


def many(count, **changes):
    record = MeasuredWindows()
    for number in range(1, count + 1):
        record = record.added(replace(sums(), **changes), window(number), memory=math.inf)
    return record


def test_a_window_enters_averages_and_history():
    one = many(1)
    made = one.history[-1]
    assert (made.trace, made.grad_sq) == pytest.approx((16 / 3 * 2, 1 - 2 / 3))
    assert (made.examples_seen, made.window_examples, made.accumulate_grad_batches) == (16, 16, 4)
    assert (one.noise, one.examples_at_last) == (None, 16.0)
    five = many(5)
    assert five.noise == five.averages.noise_scale() == five.history[-1].noise
    assert five.noise.noise_scale == pytest.approx(moments_of(sums()).trace / moments_of(sums()).grad_sq)


@pytest.mark.parametrize("nothing", [sums(samples=1), replace(sums(), sum_sq_norms=0.0, mean_sq_norm=0.0)])
def test_without_a_pair_or_a_gradient_nothing_is_measured(nothing):
    record = many(3)
    assert record.added(nothing, window(4), memory=math.inf) is record
    assert record.added(sums(), window(4), memory=math.inf) is not record


def test_many_windows_that_are_not_finite_in_a_row():
    record = many(module.MANY_DROPPED - 1, mean_sq_norm=math.nan)
    assert not record.many_were_dropped
    assert record.noise is None
    assert many(module.MANY_DROPPED, mean_sq_norm=math.nan).many_were_dropped
    record = record.added(sums(), window(99), memory=math.inf)
    assert record.added(replace(sums(), mean_sq_norm=math.inf), window(100), memory=math.inf).dropped_in_a_row == 1


def test_changed_gradients_empty_the_averages_and_keep_the_history():
    record = many(5)
    assert record.compared(None) == record.compared(True) == (record, False)
    changed, found = record.compared(False)
    assert (found, changed.agreement.is_good) == (True, False)
    assert (changed.noise, changed.averages.sums.windows, changed.history) == (None, 0, record.history)
    assert changed.compared(False) == (changed, False)  # known by now


def test_the_history_is_bounded_and_keeps_its_ends(monkeypatch):
    monkeypatch.setattr(module, "HISTORY_LIMIT", 8)
    record = many(100)
    steps = [made.optimizer_steps for made in record.history]
    assert len(steps) <= 8
    assert (steps[0], steps[-4:]) == (1, [97, 98, 99, 100])
    assert steps == sorted(set(steps))
    assert record.noise == many(100).noise


def watch(windows, agreement=None):
    """Take so many windows, with nothing found; which were watched, and which compared."""
    agreement, watched, compared = agreement or Agreement(), [], []
    for number in range(windows):
        agreement, is_watched, is_compared = agreement.next_window()
        watched += [number] if is_watched else []
        compared += [number] if is_compared else []
    return agreement, watched, compared


def test_the_first_windows_are_compared_and_then_one_in_a_prime_number():
    agreement, watched, compared = watch(60)
    assert watched == [*range(60)]
    assert compared == [0, 1, 2, 3, 17, 34, 51]
    assert agreement.windows == 60


def test_changed_gradients_are_watched_only_to_be_compared_again():
    agreement, found = Agreement().with_result(False)
    assert (found, agreement.is_good) == (True, False)
    assert agreement.with_result(False) == (agreement, False)
    agreement, watched, compared = watch(40, agreement)
    assert watched == compared == [16, 33]
    good, found = agreement.with_result(True)
    assert (good, found) == (Agreement(changes=1), False)
    assert watch(4, good)[2] == [0, 1, 2, 3]


@pytest.mark.parametrize("changes", [MOST_CHANGES - 1, MOST_CHANGES])
def test_gradients_that_change_again_are_given_up(changes):
    agreement = Agreement()
    for number in range(changes):
        agreement, _ = agreement.with_result(False)
        if number + 1 < changes:
            agreement, _ = agreement.with_result(True)
    assert bool(watch(100, agreement)[1]) == (changes < MOST_CHANGES)
