import math

import numpy as np
import pytest
import torch

from lightning_bsscale import functional
from lightning_bsscale.theory.rules import Capped, Linear, Power


def test_one_window_by_hand():
    # m = 5, M = 4, h = 1/4, K = 2: S = 1 * 2 * 4 = 8, G2 = (8 - 5) / 1 = 3.
    found = functional.noise_scale([9.0, 1.0], 4.0, [4, 4])
    assert (found.trace, found.grad_sq) == (8.0, 3.0)
    assert found.noise_scale == pytest.approx(8 / 3)
    assert (found.low, found.high, found.resolved) == (0.0, math.inf, False)
    assert found.lower_bound(0.9) == 0.0


def test_tensors_and_arrays_are_numbers_too():
    plain = functional.noise_scale([[9.0, 1.0], [8.0, 2.0], [9.0, 2.0]], [4.0, 4.0, 4.5], [[4, 4]] * 3)
    norms = torch.tensor([[9.0, 1.0], [8.0, 2.0], [9.0, 2.0]])
    assert functional.noise_scale(norms, torch.tensor([4.0, 4.0, 4.5]), torch.full((3, 2), 4)) == plain
    assert functional.noise_scale(norms.numpy(), np.array([4.0, 4.0, 4.5]), np.full((3, 2), 4)) == plain
    single = functional.noise_scale([9.0, 1.0], 4.0, [4, 4])
    assert functional.noise_scale(norms[0], torch.tensor(4.0), torch.tensor([4, 4])) == single
    assert functional.noise_scale(norms[0].numpy(), np.float32(4.0), np.array([4, 4])) == single
    assert plain.low < plain.noise_scale < plain.high < math.inf


def test_windows_may_differ_in_length_and_size():
    found = functional.noise_scale([[9.0, 1.0], [8.0, 2.0, 3.0]], [4.0, 3.5], [[4, 4], [4, 4, 1]])
    # The weighted mean over both windows, by their examples 8 and 9; S and G2 of the second by hand:
    # m = 13/3, M = 3.5, h = 1/2, K = 3: S = (13/3 - 3.5) * 3 / (2 * 1/2) = 2.5, G2 = (10.5 - 13/3) / 2 = 37/12.
    assert found.trace == pytest.approx((8 * 8.0 + 9 * 2.5) / 17)
    assert found.grad_sq == pytest.approx((8 * 3.0 + 9 * 37 / 12) / 17)


def test_a_window_that_overflowed_is_left_out():
    good = functional.noise_scale([9.0, 1.0], 4.0, [4, 4])
    both = functional.noise_scale([[9.0, 1.0], [math.inf, 1.0]], [4.0, math.inf], [[4, 4], [4, 4]])
    assert both == good
    assert functional.noise_scale([math.nan, 1.0], 4.0, [4, 4]) is None


@pytest.mark.parametrize(
    ("rule", "factor"),
    [("linear", 4), ("sqrt", 2), ("power", 4**0.75), ("none", 1), (Power(1.0), 4), (Capped(Linear(), 3), 3)],
)
def test_rates_by_rule(rule, factor):
    assert functional.scale_learning_rate(0.1, 64, 256, rule) == pytest.approx(0.1 * factor)


@pytest.mark.parametrize(("rule", "factor"), [("saturating", 4.5), ("surge", 1.5909902576697319)])
@pytest.mark.parametrize("make", [float, torch.tensor, np.float64])
def test_rates_by_the_noise_scale(rule, factor, make):
    rate = functional.scale_learning_rate(make(0.5), 64, 512, rule, noise_scale=make(512.0))
    assert rate == pytest.approx(0.5 * factor)


@pytest.mark.parametrize("rule", ["saturating", "surge"])
def test_without_a_resolved_noise_scale_the_square_root_is_used(rule):
    unresolved = functional.noise_scale([9.0, 1.0], 4.0, [4, 4])
    assert functional.scale_learning_rate(0.1, 64, 256, rule) == pytest.approx(0.2)
    assert functional.scale_learning_rate(0.1, 64, 256, rule, noise_scale=unresolved) == pytest.approx(0.2)


def test_a_ceiling():
    assert functional.scale_learning_rate(0.1, 1, 64, cap=4) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(noise_scale=-1.0), "noise_scale "),
        (dict(lr=-1.0), "lr "),
        (dict(old_batch=0), "0"),
    ],
)
def test_wrong_arguments_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        functional.scale_learning_rate(**{**dict(lr=0.1, old_batch=64, new_batch=128), **changed})


def test_what_a_batch_costs():
    assert functional.steps_and_examples(torch.tensor(64), 64) == (2.0, 2.0)
    assert functional.steps_and_examples(16, 64) == (5.0, 1.25)
    assert functional.critical_batch_size(min_steps=torch.tensor(1000), min_examples=64000) == 64.0


MICRO, MEAN, SIZES = [9.0, 1.0], 4.0, [4, 4]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("abc", MEAN, SIZES), TypeError, r"micro_sq_norms .*'abc'"),
        (([9.0, "1"], MEAN, SIZES), TypeError, r"micro_sq_norms\[1\] "),
        (([9.0, -1.0], MEAN, SIZES), ValueError, r"micro_sq_norms\[1\] .*-1"),
        ((MICRO, -4.0, SIZES), ValueError, r"mean_sq_norm .*-4"),
        ((MICRO, MEAN, 4), TypeError, r"micro_batch_sizes .*4"),
        ((MICRO, MEAN, [4, 0]), ValueError, r"micro_batch_sizes\[1\] "),
        ((torch.ones(2, 2), MEAN, SIZES), ValueError, "micro_sq_norms "),
        (([MICRO, [1.0, None]], [MEAN] * 2, [SIZES] * 2), TypeError, r"micro_sq_norms\[1\]\[1\] "),
        ((9.0, [MEAN], [SIZES]), TypeError, "micro_sq_norms "),
        (([MICRO], [MEAN], torch.tensor(4)), TypeError, "micro_batch_sizes "),
        (([MICRO], ["4"], [SIZES]), TypeError, r"mean_sq_norm\[0\] "),
        (([MICRO] * 2, [MEAN], [SIZES] * 2), ValueError, "micro_sq_norms, .* 2, 1 and 2"),
        ((MICRO, MEAN, [4, 4, 4]), ValueError, "micro_sq_norms .* 2 and 3"),
        (([1.0], 1.0, [4]), ValueError, "micro_sq_norms .* at least 2"),
    ],
)
def test_what_is_wrong_with_a_window_is_named(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        functional.noise_scale(*arguments)


@pytest.mark.parametrize("wrong", ["64", None, True, torch.ones(2), [64]])
def test_what_is_no_number_is_named(wrong):
    given = dict(lr=0.1, old_batch=64, new_batch=128)
    for name in given:
        with pytest.raises(TypeError, match=f"^{name} "):
            functional.scale_learning_rate(**given | {name: wrong})
    if wrong is not None:
        with pytest.raises(TypeError, match=r"^noise_scale"):
            functional.scale_learning_rate(**given, rule="surge", noise_scale=wrong)
    with pytest.raises(TypeError, match=r"^batch_size"):
        functional.steps_and_examples(wrong, 64)
    with pytest.raises(TypeError, match=r"^critical_batch_size"):
        functional.steps_and_examples(64, wrong)
    with pytest.raises(TypeError, match=r"^min_steps"):
        functional.critical_batch_size(min_steps=wrong, min_examples=1)


@pytest.mark.parametrize("rule", ["auto", "cubic", ""])
def test_an_unknown_rule_is_answered_with_the_known_ones(rule):
    """No name is listed that would be refused: the choice by optimizer is the callback's."""
    with pytest.raises(ValueError, match=r"^rule .*'linear', .*, 'none'") as caught:
        functional.scale_learning_rate(0.1, 64, 128, rule)
    assert "'auto'," not in str(caught.value)
