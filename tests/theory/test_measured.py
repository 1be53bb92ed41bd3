"""Averages and history of the measured windows."""

import math
from dataclasses import replace

import pytest

from lightning_bsscale.theory import measured as module
from lightning_bsscale.theory.measured import ClosedWindow, MeasuredWindows
from lightning_bsscale.theory.moments import WindowSums, moments_of


def window(number, examples=16):
    return ClosedWindow(
        examples_seen=number * examples, optimizer_steps=number, batch_size=16, micro_batches=4, lr=0.1, lr_scale=2.0
    )


def sums(mean=1.0, spread=2.0, samples=4):
    """Four samples of four examples: tr Σ = 16/3 · spread, ‖G‖² = mean - spread/3."""
    return WindowSums(
        sum_sq_norms=samples * (mean + spread),
        mean_sq_norm=mean,
        num_samples=samples,
        sum_inverse_sizes=samples / 4,
        examples=4 * samples,
    )


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
    assert record.compared(None) == (record, False)
    assert record.compared(True) == (record, False)
    changed, found = record.compared(False)
    assert found
    assert changed.noise is None
    assert changed.averages.sums.windows == 0
    assert changed.history == record.history
    assert not changed.agreement.is_good
    assert changed.compared(False) == (changed, False)  # known by now


def test_the_history_is_bounded_and_keeps_its_ends(monkeypatch):
    monkeypatch.setattr(module, "HISTORY_LIMIT", 8)
    record = many(100)
    steps = [made.optimizer_steps for made in record.history]
    assert len(steps) <= 8
    assert (steps[0], steps[-4:]) == (1, [97, 98, 99, 100])
    assert steps == sorted(set(steps))
    assert record.noise == many(100).noise
