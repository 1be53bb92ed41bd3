"""benchmarks/estimators.py: each estimator has its closed form, and the check of a bias finds those that are biased."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets  # noqa: F401  its first import sets environment variables: not inside a test
import torch

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


@pytest.fixture
def networks(estimators):
    import trained_networks

    return trained_networks


def test_the_truth_of_a_network_is_measured_before_every_so_many_steps_and_before_the_last(networks):
    """With a linear loss the gradient of a micro-batch is the mean of its examples, whatever the weight."""
    examples = torch.arange(12.0).view(12, 1)
    weight = torch.nn.Parameter(torch.zeros(1))
    training = networks.Training(
        [weight],
        lambda chosen: (examples[chosen] @ weight).mean(),
        lambda: torch.arange(12).view(4, 3),
        torch.optim.SGD([weight], lr=0.5).step,
    )
    steps = [*training.windows(7, lambda: (float(weight.detach()), 1.0), 3)]
    assert [float(step.gradients.mean()) for step in steps] == [5.5] * 7
    assert steps[0].gradients.ravel().tolist() == [1, 4, 7, 10]
    known = {index: float(step.trace[0]) for index, step in enumerate(steps) if not np.isnan(step.trace[0])}
    assert known == {0: 0.0, 3: -3 * 0.5 * 5.5, 6: -6 * 0.5 * 5.5}


def test_the_truth_of_the_digits_is_that_of_all_images(networks):
    from lightning_bsscale.demo import DigitsModel, digits_data

    step = next(next(networks.digits(3, stretches=1, windows=1, every=1, size=8)))
    images, labels = digits_data()[0].tensors
    torch.manual_seed(3)
    model = DigitsModel()
    total, squares = 0.0, 0.0
    for image, label in zip(images[:, None], labels[:, None], strict=True):
        loss = torch.nn.functional.cross_entropy(model(image), label)
        gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, [*model.parameters()])])
        total, squares = total + gradient, squares + float(gradient.square().sum())
    grad_sq = float((total / len(labels)).square().sum())
    assert float(step.grad_sq[0]) == pytest.approx(grad_sq, rel=1e-3)
    assert float(step.trace[0]) == pytest.approx(squares / len(labels) - grad_sq, rel=1e-3)


def test_the_truth_of_the_language_model_is_by_all_pairs_of_other_micro_batches(networks):
    from lightning_bsscale.functional import window_moments

    seen = []

    class Kept(networks.Training):
        def gradient(self, chosen):
            seen.append((super().gradient(chosen), chosen))
            return seen[-1][0]

    networks.Training, before = Kept, networks.Training
    try:
        paths = networks.language(0, stretches=2, windows=1, every=1, size=4, between=2, samples=6)
        first, second = (next(path) for path in paths)
    finally:
        networks.Training = before
    assert len(seen) == 2 * (6 + 4) + 2 * 4  # two truths, two measured steps and two between them
    gradients = torch.stack([gradient for gradient, _ in seen[:6]])
    exact = window_moments(gradients.square().sum(1).tolist(), float(gradients.mean(0).square().sum()), [4] * 6)
    assert (first.trace[0], first.grad_sq[0]) == pytest.approx((exact.trace, exact.grad_sq), rel=1e-3)
    assert first.gradients[0].shape == (4, gradients.shape[1])
    assert {*seen[0][1].tolist()} != {*seen[6][1].tolist()}
    assert float(second.trace[0]) != float(first.trace[0])


def test_the_page_shows_the_results(estimators):
    """To the last digit, but for the machine's line at the end."""
    results = estimators.RESULTS / "estimators.jsonl"
    done = estimators.finished(results)
    parts = estimators.collected(done, 300, 12)
    made = estimators.table(parts)
    assert made.splitlines()[:-1] == results.with_suffix(".md").read_text(encoding="utf-8").splitlines()[:-1]
    # What is promised of networks in training, where there are repeats enough to tell.
    for part in estimators.TRAINED:
        whole = parts.get(part, {}).get("all five", {"repeats": 0})
        for name in estimators.OURS if whole["repeats"] >= 40 else ():
            assert 0.85 <= whole["scores"][name]["coverage"] <= 0.95
    assert parts["c"]["all five"]["repeats"] >= 40
