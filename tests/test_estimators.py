"""benchmarks/estimators.py: each estimator has its closed form, and the check of a bias finds those that are biased."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
# Examples of a micro-batch, and deviation of one example's gradient.
SIZE, DEVIATION = 3, 2.0
TRACE = DEVIATION**2


@pytest.fixture
def estimators(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import estimators

    return estimators


def every_sign(estimators, true, count):
    """All outcomes of a noise of +-1 in a single parameter, so that a mean over the runs is an exact expectation."""
    signs = np.array([*itertools.product((-1.0, 1.0), repeat=len(true) * count)]).reshape(-1, len(true), count, 1)
    runs = len(signs)
    steps = [
        estimators.Step(
            gradient + DEVIATION / math.sqrt(SIZE) * signs[:, index],
            np.full(runs, TRACE),
            np.full(runs, gradient**2),
        )
        for index, gradient in enumerate(true)
    ]
    return estimators.recorded(steps, SIZE)


def expectation(estimators, name, true, count=2):
    moments = {"ours": estimators.pairs, "ours, K = 2": estimators.two_halves, **estimators.OTHERS}[name]
    trajectory = every_sign(estimators, true, count)
    return tuple(float(series[:, -1].mean()) for series in moments(trajectory))


UNBIASED = ("ours", "ours, K = 2", "sequential windows", "differenced", "momentum buffer", "one small norm")


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_at_fixed_parameters(estimators, name):
    assert expectation(estimators, name, [1.5] * 5) == pytest.approx((TRACE, 1.5**2))


@pytest.mark.parametrize("name", ["ours", "ours, K = 2", "one small norm"])
def test_within_a_window_others_do_not_matter(estimators, name):
    assert expectation(estimators, name, [3.0, 2.0, 1.0, -1.0, 1.5]) == pytest.approx((TRACE, 1.5**2))
    assert expectation(estimators, name, [1.5, -2.0], count=4) == pytest.approx((TRACE, 4.0))


def test_products_across_steps_take_movement_for_noise(estimators):
    """The twin: moving gradients make these wrong, each by its closed form."""
    batch, true = 2 * SIZE, [3.0, 2.0, 1.0, -1.0, 1.5]
    trace, grad_sq = expectation(estimators, "differenced", true)
    assert grad_sq == pytest.approx(-1.5)
    assert trace == pytest.approx(TRACE + batch * (1.5 + 1.0) ** 2 / 2)
    weights = 0.9 ** np.arange(4)[::-1]
    buffer = float(weights @ true[:4] / weights.sum())
    assert expectation(estimators, "momentum buffer", true)[1] == pytest.approx(1.5 * buffer)
    mean, last = np.mean(true) ** 2, 1.5**2
    trace, grad_sq = expectation(estimators, "sequential windows", true)
    assert (trace, grad_sq) == pytest.approx((TRACE + batch * (last - mean) * 5 / 4, (5 * mean - last) / 4))


def test_biased_ones_have_their_bias(estimators):
    """The twin of the unbiased ones: the same expectation finds what each of these does at fixed parameters."""
    trace, grad_sq = expectation(estimators, "norm test", [0.5])
    batch, scale = 2 * SIZE, TRACE / 0.5**2
    assert trace / grad_sq == pytest.approx(batch * scale / (batch + scale))
    # The product of the two micro-batches, 0.5 + 2 / sqrt 3 and 0.5 - 2 / sqrt 3: negative for unequal signs.
    products = [(0.5 + a * 2 / math.sqrt(3)) * (0.5 + b * 2 / math.sqrt(3)) for a in (-1, 1) for b in (-1, 1)]
    assert min(products) < 0
    assert expectation(estimators, "clip before average", [0.5])[1] == pytest.approx(np.maximum(products, 0).mean())
    traces = [TRACE * (a - b) ** 2 / 2 for a in (-1, 1) for b in (-1, 1)]
    ratio, one = expectation(estimators, "ratio per step", [0.5])
    assert (ratio, one) == pytest.approx((np.divide(traces, products).mean(), 1.0))


def test_memory_weights_and_truth(estimators):
    """Ours and the truth have the same weights, exp(-age / memory)."""
    rng, true = np.random.default_rng(0), np.linspace(3, 2, 20)
    steps = [estimators.Step(g + rng.standard_normal((3, 4, 5)), np.full(3, TRACE), np.full(3, 5 * g**2)) for g in true]
    trajectory = estimators.recorded(steps, SIZE)
    found = estimators.answers(trajectory, memory=8.0)
    weights = np.exp(np.arange(-19, 1) / 8)
    weights /= weights.sum()
    assert found["truth"][0] == pytest.approx([TRACE, 5 * weights @ np.square(true)], rel=1e-4)
    traces, squares = estimators.pairs(trajectory)
    assert np.array(found["ours"])[:, 0] == pytest.approx(traces @ weights, rel=1e-4)
    assert np.array(found["ours"])[:, 1] == pytest.approx(squares @ weights, rel=1e-4)


def test_the_scores_find_a_bias_and_a_narrow_interval(estimators):
    rng = np.random.default_rng(0)
    truth = np.tile([8.0, 1.0], (400, 1))
    traces = 8 + rng.standard_normal(400)
    ends = 1.645 * np.array([[-1.0, 1.0]]) + traces[:, None]
    rows = np.column_stack([traces, np.ones(400), ends, np.ones(400)])
    good = estimators.score(rows, truth)
    assert abs(good["bias"] - 1) < good["bias_half_width"] < 0.02
    assert good["coverage"] == pytest.approx(0.9, abs=0.04)
    assert good["error"] == pytest.approx(1 + 1 / 8, abs=0.02)
    assert good["unusable"] == 0
    wrong = estimators.score(rows * [1.1, 1, 1, 1, 1], truth)
    assert wrong["bias"] - 1 > 2 * wrong["bias_half_width"]
    narrow = rows.copy()
    narrow[:, 2:4] = traces[:, None] + ends / 8 - traces[:, None] / 8
    assert estimators.score(narrow, truth)["coverage"] < 0.5
    rows[:100, 1] = -1
    assert estimators.score(rows, truth)["unusable"] == 0.25
    rows[:200, 1] = -2
    assert math.isinf(estimators.score(rows, truth)["error"])
