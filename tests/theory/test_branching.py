"""The critical batch from branches, against noisy quadratics whose critical batch is computed."""

import math

import numpy as np
import pytest

from lightning_bsscale.theory.branching import Verdict, critical_batch, ratio_to_noise_scale, shares_needed
from lightning_bsscale.theory.estimate import noise_scale_from_means

CURVATURE = 1 / np.arange(1, 65)
START = np.ones(64)
MULTIPLES = np.array([0.5, 1, 2, 4, 8])
LOSS = 0.5 * float(CURVATURE @ START**2)


def rate(batch):
    """The rule `saturating` at a noise scale of 64."""
    return 0.25 / (1 + 64 / batch)


def expected_loss(batch, examples, deviation, rate=rate):
    """Exact loss of SGD after `examples / batch` steps, any real number: mean and variance of each direction.

    `deviation` is that of one example's gradient, in every direction.
    """
    steps, step = examples / batch, rate(batch)
    decay = (1 - step * CURVATURE) ** 2
    noise = step**2 * deviation**2 / batch * (1 - decay**steps) / (1 - decay)
    return 0.5 * float(CURVATURE @ (decay**steps * START**2 + noise))


def root(is_below, low):
    """Where a condition ends, by bisection."""
    high = 1e6
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return low


def exact_critical_batch(smallest, examples, deviation):
    """Where the smallest batch comes to the same loss with the share (1 + smallest / b) / 2 of the examples."""

    def is_below(batch):
        share = (1 + smallest / batch) / 2
        return expected_loss(batch, examples, deviation) < expected_loss(smallest, share * examples, deviation)

    return root(is_below, smallest)


def branches(rng, base, examples, offsets, deviation):
    """Losses of simulated branches, each offset with one stream of examples for all batches.

    Returns:
        The last losses, and those of the smallest batch at the shares of its examples.
    """
    smallest, sizes = base // 2, base * MULTIPLES
    noise = rng.normal(size=(offsets, examples // smallest, 64)) * deviation / math.sqrt(smallest)
    losses = []
    for multiple in MULTIPLES:
        means = noise.reshape(offsets, -1, round(2 * multiple), 64).mean(2)
        weights, step, after = np.tile(START, (offsets, 1)), rate(base * multiple), []
        for index in range(means.shape[1]):
            weights = weights - step * (CURVATURE * weights + means[:, index])
            after.append(0.5 * weights**2 @ CURVATURE)
        losses.append(after)
    looks = [losses[0][round(share * len(losses[0])) - 1] for share in shares_needed(sizes)]
    return np.array([after[-1] for after in losses]).T.tolist(), np.array(looks).T.tolist()


@pytest.mark.parametrize(
    ("base", "examples", "deviation"), [(24, 384, 4.0), (32, 256, 4.0), (48, 384, 4.0), (32, 256, 6.0), (48, 384, 8.0)]
)
def test_the_interval_contains_the_critical_batch_and_narrows_with_the_budget(base, examples, deviation):
    truth, rng, widths = exact_critical_batch(base / 2, examples, deviation), np.random.default_rng(0), []
    for offsets in (4, 16, 64):
        found = [
            critical_batch((base * MULTIPLES).tolist(), LOSS, *branches(rng, base, examples, offsets, deviation))
            for _ in range(50)
        ]
        covered = sum(one.low <= truth <= one.high for one in found)
        assert covered >= 42, (covered, truth)
        grid = [math.log2(min(one.high, 16 * base) / max(one.low, base / 4)) for one in found]
        widths.append(sum(grid) / len(grid))
    assert widths[0] > widths[1] + 0.5 > widths[2] + 0.8, widths
    assert sum(one.resolved for one in found) >= 40


def test_at_equal_examples_the_answer_would_be_larger_the_longer_the_branch():
    """Why the smallest batch is looked at on its way: half the progress is no half of the examples."""
    answers = []
    for examples in (256, 512, 1024):
        progress = lambda batch: LOSS - expected_loss(batch, examples, 6.0)  # noqa: B023, E731
        at_equal_examples = root(lambda b: progress(b) > (1 + 16 / b) / 2 * progress(16), 16)  # noqa: B023
        answers.append((exact_critical_batch(16, examples, 6.0), at_equal_examples))
    assert [round(one) for pair in answers for one in pair] == [106, 193, 130, 320, 193, 608]


def test_one_step_at_the_best_learning_rate_gives_the_hessian_weighted_noise_scale():
    """The definition's limit, where the loss falls evenly: the progress of one step of each batch, for each example."""
    gradient, deviation = CURVATURE * START, 3.0
    squared, curved = float(gradient @ gradient), float(gradient @ (CURVATURE * gradient))
    b_noise = deviation**2 * float(CURVATURE.sum()) / curved

    def progress(batch):
        best = squared / curved / (1 + b_noise / batch)  # McCandlish 2018, eq. 2.6
        return (LOSS - expected_loss(batch, batch, deviation, lambda _: best)) / batch

    found = root(lambda b: progress(b) > (1 + 4 / b) / 2 * progress(4), 4)
    assert found == pytest.approx(b_noise, rel=1e-9)


def hyperbola(critical, sizes, jitter):
    """Branches in which a batch gets as far as the smallest does with fewer examples, by the hyperbola.

    The loss falls ever more slowly. Each offset falls a little more or less.
    """
    fall = lambda share, shift: 2 - (1 + shift) * (1 - math.exp(-2 * share))  # noqa: E731
    worth = [(1 + sizes[0] / critical) / (1 + size / critical) for size in sizes]
    losses = [[fall(share, shift) for share in worth] for shift in jitter]
    return losses, [[fall(share, shift) for share in shares_needed(sizes)] for shift in jitter]


SIZES = [8, 16, 32, 64, 128]


@pytest.mark.parametrize(
    ("critical", "low", "high"), [(24, 16, 32), (45, 32, 64), (90, 64, 128), (12, 0, 16), (500, 128, math.inf)]
)
def test_ends_are_the_neighbours_on_the_grid(critical, low, high):
    found = critical_batch(SIZES, 2.0, *hyperbola(critical, SIZES, (-0.01, 0.0, 0.01)))
    assert (found.low, found.high) == (low, high)
    assert found.resolved == (low > 0 and high < math.inf)
    assert found.reason.startswith("The critical" if found.resolved else "Not resolved")
    if found.resolved:
        assert found.value == pytest.approx(critical, rel=0.15)


def test_an_undecided_batch_hides_nothing_but_a_contradiction_does():
    losses, earlier = map(np.array, hyperbola(1000, SIZES, (0.0,) * 4))
    losses[:, 1] += [0.9, -0.9, 0.9, -0.9]
    found = critical_batch(SIZES, 2.0, losses.tolist(), earlier.tolist())
    assert [row.verdict for row in found.rows][1:3] == [Verdict.OPEN, Verdict.BELOW]
    assert (found.low, found.high) == (128, math.inf)
    losses[:, 2] = 1.9
    found = critical_batch(SIZES, 2.0, losses.tolist(), earlier.tolist())
    assert (found.low, found.high, found.resolved) == (0, math.inf, False)
    assert "a larger one below" in found.reason


def test_no_batch_is_called_wrongly_more_often_than_promised():
    """All batches exactly critical: with any correction missing, one in three answers would be wrong."""
    rng, wrong, earlier = np.random.default_rng(0), 0, 2.0 - np.array(shares_needed(SIZES))
    for _ in range(600):
        losses = np.append(1.0, earlier) + rng.normal(size=(8, 5)) * [0, 0.1, 0.1, 0.1, 0.1]
        found = critical_batch(SIZES, 2.0, losses.tolist(), [earlier.tolist()] * 8)
        wrong += any(row.verdict in (Verdict.BELOW, Verdict.ABOVE) for row in found.rows)
    assert wrong / 600 <= 0.13, wrong / 600


def test_a_branch_that_diverged_is_above():
    losses, earlier = hyperbola(1000, SIZES, (-0.01, 0.0, 0.01))
    losses[1][4] = math.nan
    found = critical_batch(SIZES, 2.0, losses, earlier)
    assert found.rows[4].verdict is Verdict.DIVERGED
    assert (found.low, found.high) == (64, 128)
    losses[0][0] = math.inf
    assert "smallest batch diverged" in critical_batch(SIZES, 2.0, losses, earlier).reason


def test_without_progress_nothing_is_said():
    found = critical_batch(SIZES, 1.0, *hyperbola(30, SIZES, (-0.01, 0.0, 0.01)))
    assert (found.low, found.high, found.resolved) == (0, math.inf, False)
    assert "no progress" in found.reason
    assert {row.verdict for row in found.rows} == {Verdict.REFERENCE, Verdict.OPEN}


@pytest.mark.parametrize(("tolerance", "low", "high"), [(0.05, 16, 32), (0.2, 32, 64), (10.0, 128, math.inf)])
def test_not_worse_by_a_tolerance(tolerance, low, high):
    losses = [[1 + shift, 1.01 + shift, 1.1 + shift, 1.3 + shift, 1.9 + shift] for shift in (0.0, 0.1, 0.3)]
    found = critical_batch(SIZES, 2.0, losses, tolerance=tolerance)
    assert (found.low, found.high) == (low, high)


def test_the_ratio_has_the_interval_of_both():
    noise = noise_scale_from_means(
        trace=10.0,
        grad_sq=1.0,
        trace_variance=0.25,
        grad_sq_variance=0.0,
        covariance=0.0,
        effective_windows=10.0,
        confidence=0.9,
    )
    answer = critical_batch(SIZES, 2.0, *hyperbola(45, SIZES, (-0.01, 0.0, 0.01)))
    found = ratio_to_noise_scale(answer, noise)
    assert found.value == pytest.approx(answer.value / 10)
    assert (found.low, found.high) == (32 / noise.high, 64 / noise.low)
    unknown = ratio_to_noise_scale(critical_batch(SIZES, 1.0, *hyperbola(45, SIZES, (0.0, 0.1))), noise)
    assert unknown.to_json() == {"value": None, "low": 0.0, "high": None}
    # Undecided batches between a judged one and none: the answer has a value, but no second end.
    losses, earlier = hyperbola(45, SIZES, (0.0,) * 3)
    losses = [[x + swing * size / 2000 for x, size in zip(losses[0], SIZES, strict=True)] for swing in (-1, 0, 1)]
    half = critical_batch(SIZES, 2.0, losses, earlier)
    assert half.low > 0
    assert math.isfinite(half.value)
    assert math.isinf(half.high)
    assert ratio_to_noise_scale(half, noise).to_json() == {"value": None, "low": half.low / noise.high, "high": None}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(batch_sizes=[16, 8, 32]), "batch_sizes must"),
        (dict(losses=[[1.0] * 3]), "losses must have at least two offsets"),
        (dict(losses=[[1.0] * 3, [1.0] * 2]), "losses must"),
        (dict(earlier=[[1.0] * 3] * 2), "earlier must have 2 offsets with 2 losses"),
        (dict(earlier=[[1.0] * 2]), "earlier must"),
        (dict(tolerance=-1.0), "tolerance must"),
    ],
)
def test_what_is_wrong_is_named(changed, message):
    given = dict(batch_sizes=[8, 16, 32], start_loss=2.0, losses=[[1.0] * 3] * 2, earlier=[[1.0] * 2] * 2)
    with pytest.raises(ValueError, match=message):
        critical_batch(**given | changed)


def test_the_worth_is_the_share_at_which_the_smallest_batch_has_the_loss():
    found = critical_batch(SIZES, 2.0, *hyperbola(30, SIZES, (-0.01, 0.0, 0.01)))
    wanted = [(1 + 8 / 30) / (1 + size / 30) for size in SIZES]
    # The looks at the smallest batch are between 17/32 and 1 of its examples; below, the line from the start is above.
    assert [row.worth for row in found.rows[:3]] == pytest.approx(wanted[:3], abs=0.015)
    assert all(row.worth > share for row, share in zip(found.rows[3:], wanted[3:], strict=True))
    assert [row.needed for row in found.rows] == [1.0, *shares_needed(SIZES)]
