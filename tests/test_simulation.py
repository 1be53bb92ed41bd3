"""Simulated training against closed forms. A claim has a twin: a case in which it must not hold."""

import math

import numpy as np
import pytest

from lightning_bsscale.simulation.control import Control, Still, controlled, false_growths, sampled_sums
from lightning_bsscale.simulation.forecast import Numbers, Training, _reference_run, forecast
from lightning_bsscale.simulation.optimum import best_schedule
from lightning_bsscale.simulation.quadratic import (
    Adam,
    Momentum,
    NoisyQuadratic,
    Sign,
    expected_losses,
    sampled_losses,
    sgd_step,
    sign_step,
)
from lightning_bsscale.theory.moments import moments_of
from lightning_bsscale.theory.policies import POLICIES, NoiseScalePolicy, Reason
from lightning_bsscale.theory.rules import Constant, Linear, Saturating, Sqrt, Surge
from lightning_bsscale.theory.schedules import WarmupCosine
from tests.helpers.simulated import noise_of

TWO_MODES = NoisyQuadratic(curvature=[1.0, 0.1], noise=[3.0, 1.0], drift=[0.01, 0.02])


def trained(quadratic, moments, batches, rates):
    for batch, rate in zip(batches, rates, strict=True):
        moments = quadratic.after_sgd(moments, batch, rate)
    return moments


# ---------------------------------------------------------------- the recursions


@pytest.mark.parametrize("tail", [math.inf, 12.0])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sampled_runs_scatter_around_the_exact_recursion(momentum, tail):
    quadratic = NoisyQuadratic(curvature=[1.0, 0.1], noise=[3.0, 1.0], drift=[0.01, 0.02], tail=tail)
    batches, rates = [4, 4, 16, 16, 8] * 8, [0.1, 0.2, 0.2, 0.1, 0.05] * 8
    exact = expected_losses(quadratic, [1.0, 2.0], batches, rates, momentum=momentum)
    runs = sampled_losses(quadratic, [1.0, 2.0], batches, rates, optimizer=Momentum(momentum), runs=4000, seed=0)
    error = runs.std(1)[1:] / math.sqrt(4000)
    assert np.abs((runs.mean(1) - exact)[1:] / error).max() < 4
    without = NoisyQuadratic(curvature=[1.0, 0.1], noise=[3.0, 1.0], tail=tail)
    assert (
        np.abs(
            (runs.mean(1) - expected_losses(without, [1.0, 2.0], batches, rates, momentum=momentum))[1:] / error
        ).max()
        > 6
    )


def test_tails_are_heavier_at_the_same_variance():
    drawn = {
        tail: NoisyQuadratic(curvature=1.0, noise=2.0, tail=tail).sample_noise(1, 200_000, np.random.default_rng(0))
        for tail in (math.inf, 5.0)
    }
    assert drawn[5.0].var() == pytest.approx(2.0, rel=0.05)
    assert (np.abs(drawn[5.0]) > 6).mean() > 10 * (np.abs(drawn[math.inf]) > 6).mean()


def test_many_steps_at_once_are_single_steps():
    moments = np.array([1.0, 4.0])
    assert TWO_MODES.after_sgd(moments, 8, 0.3, steps=7) == pytest.approx(
        trained(TWO_MODES, moments, [8] * 7, [0.3] * 7)
    )
    assert TWO_MODES.after_sgd(moments, 8, 0.0, steps=7) == pytest.approx(moments + 7 * 8 * TWO_MODES.drift)


def test_power_law():
    quadratic = NoisyQuadratic.power_law(100, 1.5, 7.0)
    assert quadratic.noise.sum() == pytest.approx(7)
    assert quadratic.noise[9] / quadratic.noise[0] == pytest.approx(10**-1.5)
    assert np.ptp(NoisyQuadratic.power_law(100, 1.5, 7.0, proportional=False).noise) == 0


def test_the_noise_scales_at_any_parameters():
    moments = np.array([1.0, 4.0])
    gradient, hessian = TWO_MODES.curvature * np.sqrt(moments), np.diag(TWO_MODES.curvature)
    assert TWO_MODES.simple_scale(moments) == pytest.approx(4 / (gradient @ gradient))
    weighted = np.trace(hessian @ np.diag(TWO_MODES.noise)) / (gradient @ hessian @ gradient)
    assert TWO_MODES.hessian_scale(moments) == pytest.approx(weighted)


def test_one_step_of_sgd_takes_the_progress_of_its_batch():
    moments = np.array([1.0, 4.0])
    gradient, hessian, sigma = TWO_MODES.curvature * np.sqrt(moments), np.diag(TWO_MODES.curvature), np.diag([3.0, 1.0])
    scale = float(TWO_MODES.hessian_scale(moments))
    rate, progress = sgd_step(hessian, gradient, sigma, scale)
    largest_rate, largest = sgd_step(hessian, gradient, sigma, 1e12)
    assert (rate / largest_rate, progress / largest) == pytest.approx((0.5, 0.5))
    without = NoisyQuadratic(curvature=TWO_MODES.curvature, noise=TWO_MODES.noise)
    assert without.loss(moments) - without.loss(without.after_sgd(moments, scale, rate)) == pytest.approx(progress)


@pytest.mark.parametrize(("optimizer", "first"), [(Sign(), 1.0), (Sign(0.9), 1.0), (Adam(), 1.0)])
def test_sign_like_optimizers_move_by_the_learning_rate(optimizer, first):
    quiet = NoisyQuadratic(curvature=[1.0, 0.01], noise=0.0)
    losses = sampled_losses(quiet, [3.0, 3.0], [1], [0.5], optimizer=optimizer, runs=2)
    assert losses[1] == pytest.approx(quiet.loss(np.array([2.5, 2.5]) ** 2))
    assert losses[1, 0] != pytest.approx(sampled_losses(quiet, [3.0, 3.0], [1], [0.5], runs=1)[1, 0])


# ---------------------------------------------------------------- the hyperbola


def steps_to(target, batch, share, noise):
    """Steps of plain SGD to a loss, at this share of the best learning rate; noise is a function of the moments."""
    moments, steps, curvature = np.array([1.0]), 0.0, np.array([1.0])
    while True:
        quadratic = NoisyQuadratic(curvature=curvature, noise=noise(moments))
        loss = quadratic.loss(moments)
        best = 1 / (1 + quadratic.hessian_scale(moments) / batch)
        after = quadratic.after_sgd(moments, batch, share * best)
        if quadratic.loss(after) <= target:
            return steps + float(math.log(loss / target) / math.log(loss / quadratic.loss(after)))
        moments, steps = after, steps + 1


@pytest.mark.parametrize("noise", [lambda p: 16 * p, lambda p: np.array([4.0])], ids=["fixed scale", "growing scale"])
def test_steps_and_examples_lie_on_the_hyperbola(noise):
    def product(share):
        steps = {batch: steps_to(0.1, batch, share, noise) for batch in (1.0, 4.0, 16.0, 64.0, 1e5)}
        fewest_steps, fewest_examples = steps[1e5], steps[1.0] - steps[1e5]  # the two ends: S = S_min + E_min / B
        return [(steps[b] / fewest_steps - 1) * (b * steps[b] / fewest_examples - 1) for b in (4.0, 16.0, 64.0)]

    assert product(0.05) == pytest.approx([1, 1, 1], rel=0.05)
    # It is a law of small steps: where one step may take everything, a large batch wastes nothing.
    assert product(1.0) != pytest.approx([1, 1, 1], rel=0.3)


# ---------------------------------------------------------------- rules


@pytest.mark.parametrize(("start", "agree"), [(1, True), (64, False)])
def test_linear_and_saturating_agree_below_the_noise_scale_only(start, agree):
    quadratic, moments, examples = NoisyQuadratic(curvature=[1.0, 0.05], noise=[20.0, 1.0]), np.array([1.0, 10.0]), 1024
    scale = float(quadratic.hessian_scale(moments))
    losses = {}
    for name, rule in (("before", None), ("linear", Linear()), ("saturating", Saturating())):
        batch = start if rule is None else 8 * start
        factor = 1.0 if rule is None else rule.ratio(start, batch, noise_of(20 * scale if agree else scale))
        steps = examples // batch * (1 if agree else 16)
        losses[name] = float(
            quadratic.loss(quadratic.after_sgd(moments, batch, factor * 0.004 * min(start, 30), steps))
        )
    assert (losses["linear"] == pytest.approx(losses["saturating"], rel=0.05)) is agree
    assert (losses["linear"] == pytest.approx(losses["before"], rel=0.05)) is agree


def test_without_a_rule_growth_costs_loss_per_example():
    quadratic, moments = NoisyQuadratic(curvature=[1.0, 0.05], noise=[20.0, 1.0]), np.array([1.0, 10.0])
    losses = [
        float(quadratic.loss(quadratic.after_sgd(moments, 8, 0.01 * rule.ratio(1, 8, None), 400 // 8)))
        for rule in (Constant(), Sqrt(), Linear())
    ]
    before = float(quadratic.loss(quadratic.after_sgd(moments, 1, 0.01, 400)))
    assert losses[2] == pytest.approx(before, rel=0.05)
    assert losses[0] > 1.1 * losses[1] > 1.2 * before


def surge(coupling):
    """Batches, the best learning rates of sign updates there, and B_noise, for a coupling of the coordinates."""
    dimension, signal = 200, 0.02
    hessian = coupling * np.ones((dimension, dimension)) + (1 - coupling) * np.eye(dimension)
    gradient, deviation = np.full(dimension, signal), np.ones(dimension)
    batches = np.geomspace(0.1, 1e4, 200)
    rates = np.array([sign_step(hessian, gradient, deviation, batch)[0] for batch in batches])
    return batches, rates, np.trace(hessian) / (gradient @ hessian @ gradient)


def test_the_best_rate_of_sign_updates_surges_at_the_noise_scale():
    batches, rates, scale = surge(0.5)
    peak = batches[rates.argmax()]
    # B_noise in the derivation of the rule contains the factor pi/2 of the expected sign.
    assert peak == pytest.approx(math.pi / 2 * scale, rel=0.06)
    rule = [Surge().ratio(batches[0], batch, noise_of(peak)) for batch in batches]
    near = batches < 4 * peak
    assert rates[near] / rates[0] == pytest.approx(np.array(rule)[near], rel=0.05)


def test_no_surge_where_the_coordinates_do_not_couple():
    batches, rates, _ = surge(0.0)
    assert rates.argmax() == len(batches) - 1


def test_a_sampled_sign_step_is_the_exact_one():
    hessian, gradient = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([0.5, -0.2])
    noise = np.random.default_rng(0).standard_normal((400_000, 2)) * np.array([1.0, 2.0]) / math.sqrt(3)
    rate, progress = sign_step(hessian, gradient, np.array([1.0, 2.0]), 3)
    steps = rate * np.sign(gradient + noise)
    changes = -steps @ gradient + np.einsum("ni,ij,nj->n", steps, hessian, steps) / 2
    assert -changes.mean() == pytest.approx(progress, rel=0.03)


# ---------------------------------------------------------------- decay traded for growth


def traded(noise, cut_batch, cut_rate, *, normalised):
    """The loss after a cosine decay f: the batch is f^-cut_batch, the learning rate f^cut_rate times the first."""
    quadratic = NoisyQuadratic.power_law(20, 1.0, noise)
    moments, seen, total, schedule = np.ones(20), 0.0, 20_000.0, WarmupCosine(final=0.05)
    while seen < total:
        factor = schedule.factor(seen, total, 0)
        batch, rate = factor**-cut_batch, 0.01 * factor**cut_rate
        if normalised:
            rate /= math.sqrt(quadratic.grad_sq(moments) + noise / batch) / math.sqrt(
                quadratic.grad_sq(np.ones(20)) + noise
            )
        moments, seen = quadratic.after_sgd(moments, batch, rate), seen + batch
    return float(quadratic.loss(moments))


@pytest.mark.parametrize(
    ("normalised", "rate"), [(True, 0.5), (False, 0.0)], ids=["Seesaw, normalised SGD", "Smith, SGD"]
)
def test_growth_instead_of_decay_gives_the_same_loss_below_the_noise_scale(normalised, rate):
    decayed, grown = (traded(200.0, *cuts, normalised=normalised) for cuts in ((0, 1.0), (1.0, rate)))
    assert grown == pytest.approx(decayed, rel=0.05)
    # The other optimizer's learning rate does not do.
    assert traded(200.0, 1.0, 0.5 - rate, normalised=normalised) != pytest.approx(decayed, rel=0.1)


def test_seesaw_loses_above_the_noise_scale():
    decayed, grown = (traded(1e-4, *cuts, normalised=True) for cuts in ((0, 1.0), (1.0, 0.5)))
    assert grown > 1.15 * decayed


# ---------------------------------------------------------------- the best schedule


def test_the_best_schedule_of_one_mode_is_the_mean_of_all_examples():
    options = dict(units=32, unit=4, batches=(1, 4, 32), price=1e-3, points=150)
    quadratic = NoisyQuadratic(curvature=[1.0], noise=[100.0])
    best = best_schedule(quadratic, [1.0], rates=np.geomspace(1e-3, 1.5, 150), **options)
    exact = 1 / (1 + 128 / 100) / 2
    assert (best.batches, best.loss) == ((128,), pytest.approx(exact, rel=1e-3))
    assert best_schedule(quadratic, [1.0], rates=[0.05, 0.1], **options).loss > 1.02 * exact


def test_the_best_schedule_of_two_modes_grows_the_batch():
    quadratic, start = NoisyQuadratic(curvature=[1.0, 0.02], noise=[10.0, 0.2]), [1.0, 5.0]
    rates = np.geomspace(0.02, 1.9, 24)
    best = best_schedule(
        quadratic, start, units=64, unit=8, batches=(1, 2, 4, 8, 16), rates=rates, price=3e-4, points=32
    )
    cost = best.loss + 3e-4 * len(best.batches)
    assert best.value == pytest.approx(cost, rel=0.02)
    assert expected_losses(quadratic, start, best.batches, best.rates)[-1] == pytest.approx(best.loss)
    constant = [
        expected_losses(quadratic, start, [8 * b] * (64 // b), [rate] * (64 // b))[-1] + 3e-4 * (64 // b)
        for b in (1, 2, 4, 8, 16)
        for rate in rates
    ]
    assert cost < 0.5 * min(constant)
    third = len(best.batches) // 3
    assert np.mean(best.batches[-third:]) > 1.5 * np.mean(best.batches[:third])


def test_the_best_schedule_needs_a_small_problem():
    with pytest.raises(ValueError, match="one or two modes"):
        best_schedule(NoisyQuadratic.power_law(3, 1, 1), 1.0, units=1, unit=1, batches=[1], rates=[0.1], price=0)


# ---------------------------------------------------------------- the control


def control(windows=400, batch=8, **options):
    settings = dict(
        policy=NoiseScalePolicy(target_ratio=1, confidence=0.9),
        loader_batch=batch,
        max_batch_size=10**6,
        total_examples=windows * batch,
    )
    return Control(**{**settings, **options})


def test_sampled_sums_have_the_right_means():
    rng = np.random.default_rng(0)
    drawn = [
        moments_of(sampled_sums(rng, samples=3, examples=24, trace=50.0, grad_sq=2.0, directions=40))
        for _ in range(20_000)
    ]
    for values, truth in (([d.trace for d in drawn], 50), ([d.grad_sq for d in drawn], 2)):
        assert abs(np.mean(values) - truth) < 4 * np.std(values) / math.sqrt(len(drawn))
    assert np.std([d.trace for d in drawn]) == pytest.approx(50 * math.sqrt(2 / (2 * 40)), rel=0.05)


def test_sampled_sums_with_a_tail_have_the_same_means_and_more_scatter():
    """Of 8 examples each: the trace's variance gets the fourth moment of the factor, which exists for a tail of 6."""
    rng = np.random.default_rng(0)
    settings = dict(samples=3, examples=24, trace=50.0, grad_sq=2.0, directions=400)
    drawn = [moments_of(sampled_sums(rng, tail=6.0, **settings)) for _ in range(20_000)]
    for values, truth in (([d.trace for d in drawn], 50), ([d.grad_sq for d in drawn], 2)):
        assert abs(np.mean(values) - truth) < 4 * np.std(values) / math.sqrt(len(drawn))
    # The factor (tail - 2) / chi-square has a variance of 2 / (tail - 4) = 1, and a sum over 24 examples one of 1/24;
    # the directions add 2 / (2 * 400).
    assert np.std([d.trace for d in drawn]) == pytest.approx(50 * math.sqrt(1 / 24 + 1 / 400), rel=0.1)
    gaussian = [moments_of(sampled_sums(rng, **settings)).trace for _ in range(2000)]
    assert np.std(gaussian) == pytest.approx(50 / math.sqrt(400), rel=0.1)  # the twin
    # Without a tail to speak of, both ways of drawing agree.
    mild = [moments_of(sampled_sums(rng, tail=1e7, **settings)) for _ in range(5000)]
    plain = [moments_of(sampled_sums(rng, **settings)) for _ in range(5000)]
    for key in ("trace", "grad_sq"):
        one, two = (np.array([getattr(d, key) for d in found]) for found in (mild, plain))
        assert abs(one.mean() - two.mean()) < 4 * one.std() / 50
        assert one.std() == pytest.approx(two.std(), rel=0.06)


def test_the_remembered_scale_is_the_mean_over_the_memory():
    class Jump:
        def truth(self, examples_seen):
            return (10.0, 1.0) if examples_seen < 1600 else (40.0, 1.0)

        def train(self, examples_seen, batch_size, steps, rate):
            pass

    still = control(policy=NoiseScalePolicy(target_ratio=1e-6), warmup=0, memory=0.1)
    run = list(controlled(still, Jump(), np.random.default_rng(0)))
    assert all(s.remembered_scale == pytest.approx(10) for s in run if s.examples_seen < 1600)
    after = [s for s in run if s.examples_seen >= 1600]
    scales = [s.remembered_scale for s in after]
    assert scales == sorted(scales)
    # A window at every 64 examples, a fifth of the memory.
    assert scales[9] == pytest.approx(40 - 30 * math.exp(-0.2 * 10), rel=0.01)
    assert {s.true_scale for s in after} == {40.0}


@pytest.mark.parametrize("batch", [1, 8, 24, 120])
def test_windows_are_measured_where_they_contain_a_due_loader_batch(batch):
    seen = [0]
    for stretch in controlled(
        control(policy=NoiseScalePolicy(target_ratio=1e-6), batch=batch, warmup=0),
        Still(10.0),
        np.random.default_rng(0),
    ):
        assert stretch.steps * stretch.batch_size == stretch.examples_seen - seen[-1]
        seen.append(stretch.examples_seen)
    # Loader batches 0, 8, 16 ... each in a window of one, and the end of the budget.
    assert seen[1:4] == [batch, 9 * batch, 17 * batch]
    assert seen[-1] == 400 * batch


@pytest.mark.parametrize("name", POLICIES)
def test_each_policy_runs_under_control(name):
    numbers = Numbers(noise_scale=20, noise_scale_end=200, examples=4000, batch_size=4, max_batch_size=64)
    start, row = forecast(numbers, policies=[name]).rows
    assert (start.steps, row.examples, row.policy) == (1000, 4000, name)
    assert row.steps == sum(stretch.steps for stretch in row.stretches)
    assert all(stretch.batch_size <= 64 and stretch.batch_size % 4 == 0 for stretch in row.stretches)
    assert forecast(numbers, policies=[name]).rows[1] == row


def test_the_batch_follows_an_exactly_measured_noise_scale():
    # Two samples of nearly all directions measure the trace exactly, and the signal where the batch is large.
    run = list(controlled(control(4000, directions=10**9, samples=4), Still(400.0), np.random.default_rng(0)))
    assert 400 / 1.25 - 8 <= run[-1].batch_size <= 400
    assert Reason.CLOSE_ENOUGH.code in {stretch.record.decision.code for stretch in run if stretch.record is not None}


def test_the_model_follows_the_users_law():
    numbers = Numbers(noise_scale=10, noise_scale_end=400, examples=32_000, batch_size=4, max_batch_size=4000)
    reference = _reference_run(numbers, WarmupCosine())
    followed = reference.trace / reference.grad_sq / numbers.law(reference.examples)
    assert np.abs(np.log(followed)).max() < math.log(2)
    assert followed[0] == pytest.approx(1, rel=0.01)
    # The best rate is within the grid, and the noise costs something.
    assert 1e-3 < reference.rate < 1
    world = Training(numbers, reference)
    before = world.loss
    world.train(0, 4, 8000, 0.2)
    assert world.loss < before


def test_false_growths_are_as_rare_as_the_confidence_of_the_whole_run_says():
    def found(**options):
        made = control(
            2000, policy=NoiseScalePolicy(target_ratio=1, confidence=0.9, **options), max_batch_size=2000, memory=0.02
        )
        return false_growths(made, Still(8 * 23.0), target_ratio=1.0, runs=30, seed=0)

    whole, each = found(whole_run=True), found()
    assert max(whole.share, whole.on_high_bound) < 0.1 < each.on_high_bound
    assert whole.share < each.share
    assert 0.7 < whole.final < each.final
    assert whole.largest < 1
