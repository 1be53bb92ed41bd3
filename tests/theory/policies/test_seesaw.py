"""Growth for decay: batch and learning rate against the schedule, the gate, and the steps that are saved."""

import math
from dataclasses import replace

import pytest

from lightning_bsscale.theory.policies import Limits, Reason, Seesaw, Situation, Smith
from lightning_bsscale.theory.rules import FactorPath, Linear, Sqrt
from tests.helpers.simulated import noise_of

FINE = Limits(granularity=1, min_batch_size=1, max_batch_size=10**9)
START, TOTAL = 10_000, 10_000_000
SHAPES = {
    "cosine": lambda t: 0.05 + 0.95 * (1 + math.cos(math.pi * t)) / 2,
    "linear": lambda t: 1 - 0.95 * t,
    "step": lambda t: 0.1 ** ((t >= 0.5) + (t >= 0.75)),
    "exponential": lambda t: 0.01**t,
    "wsd": lambda t: 1.0 if t < 0.8 else 1 - 0.9 * (t - 0.8) / 0.2,
    "warmup": lambda t: (t + 1e-9) / 0.2 if t < 0.2 else (1 + math.cos(math.pi * (t - 0.2) / 0.8)) / 2 + 1e-9,
    "one cycle": lambda t: 1 + 80 * t if t < 0.3 else 25 * 0.001 ** ((t - 0.3) / 0.7),
}


def walk(policy, shape, rule, **situation):
    """Batch, schedule's share of its peak, and learning rate relative to the peak, after each window."""
    batch, seen, peak, path, steps = START, 0.0, shape(0.0), FactorPath(), []
    while seen < TOTAL:
        factor = shape(seen / TOTAL)
        peak = max(peak, factor)
        now = Situation(
            batch_size=batch,
            start_batch_size=START,
            examples_seen=seen,
            total_examples=TOTAL,
            schedule_factor=factor,
            schedule_peak=peak,
            **situation,
        )
        decision = policy.decide(now, FINE)
        path = path.extended(rule, batch, decision.batch_size, None)
        batch = decision.batch_size
        steps.append((batch, factor / peak, factor / peak * path.factor(rule)))
        seen += batch
    return steps


FORMS = [
    (lambda cut: Seesaw(cut=cut, gate=None), Sqrt(), 1.0, 0.5),
    (lambda cut: Seesaw(cut=cut, gate=None, form="sgd"), Linear(), 0.5, 0.5),
    (lambda cut: Smith(cut=cut), Linear(), 1.0, 0.0),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cut", [2.0, 2**0.25, 1.001])
@pytest.mark.parametrize(("policy", "rule", "growth", "decay"), FORMS, ids=["adam", "sgd", "smith"])
def test_batch_and_learning_rate_share_the_decay(policy, rule, growth, decay, cut, shape):
    """B = B0 / f^growth and the learning rate f^decay, each within one cut, and the noise is the schedule's."""
    for batch, share, rate in walk(policy(cut), SHAPES[shape], rule):
        ratio, rounding = batch / START, 1.001 if growth == 1 else 1.0015
        assert share**-growth / (cut * rounding) <= ratio <= share**-growth * (1 + 1e-9)
        assert share**decay / (cut * rounding) <= rate <= share**decay * (1 + 1e-9)
        # Adam's noise is the learning rate over the root of the batch, SGD's over the batch.
        noise = rate / (math.sqrt(ratio) if isinstance(rule, Sqrt) else ratio)
        assert noise == pytest.approx(share, rel=1e-9)


@pytest.mark.parametrize(
    ("cut", "saved"), [(2.0, 0.345), (2**0.25, 0.437), (1.0001, 0.475)], ids=["halves", "default", "limit"]
)
def test_steps_saved_over_half_a_cosine(cut, saved):
    steps = walk(Seesaw(cut=cut, gate=None), SHAPES["cosine"], Sqrt())
    assert 1 - len(steps) * START / TOTAL == pytest.approx(saved, abs=0.003)
    assert Seesaw().cut == 2**0.25


def at(share, batch=64, noise=None, **changes):
    now = Situation(batch_size=batch, start_batch_size=64, examples_seen=500, schedule_factor=share, noise=noise)
    return replace(now, **changes)


LIMITS = Limits(granularity=8, min_batch_size=8, max_batch_size=1024)


@pytest.mark.parametrize(
    ("situation", "batch", "code"),
    [
        (at(0.5, noise=noise_of(1000)), 128, "grow"),
        (at(0.5, noise=noise_of(100)), 96, "grow"),  # as far as the noise scale allows, in loader batches
        (at(0.5, noise=noise_of(70)), 64, "above_noise_scale"),  # less than a cut
        (at(0.9, noise=noise_of(1000)), 64, "no_cut_due"),
        (at(2.0, noise=noise_of(1000)), 64, "no_cut_due"),
        (at(0.5, batch=128, noise=noise_of(1000)), 128, "no_cut_due"),
        (at(0.9, batch=128, noise=noise_of(1000)), 128, "no_cut_due"),  # never shrinks
        (at(1.0, schedule_peak=4.0, noise=noise_of(1000)), 256, "grow"),
        (at(0.0, noise=noise_of(300)), 296, "grow"),
        (at(0.0, noise=noise_of(10**6)), 1024, "grow"),
        (at(0.01, batch=1024, noise=noise_of(10**6)), 1024, "at_limit"),
        (at(0.5, warmup_examples=501, noise=noise_of(1000)), 64, "in_warmup"),
        (at(0.5), 64, "no_estimate"),
        (at(0.5, noise=noise_of(1000, resolved=False)), 64, "unresolved"),
    ],
)
def test_the_gate(situation, batch, code):
    decision = Seesaw().decide(situation, LIMITS)
    assert (decision.batch_size, decision.code) == (batch, code)
    assert decision.reason.startswith("grow: " if code == "grow" else "hold: ")


@pytest.mark.parametrize("cut", [2.0, 2**0.25, 1.1, 10.0])
def test_a_schedule_in_whole_cuts_loses_none_to_rounding(cut):
    for cuts in range(1, 8):
        decision = Seesaw(cut=cut, gate=None).decide(at(cut**-cuts), FINE)
        assert decision.target == pytest.approx(64 * cut**cuts)


def test_without_a_gate_nothing_is_measured():
    assert Seesaw(gate=None).decide(at(0.5), LIMITS).batch_size == 128
    assert Smith().decide(at(0.5), LIMITS).batch_size == 128
    assert Smith(gate=1.0).decide(at(0.5), LIMITS).reason == Reason.NO_ESTIMATE.value


def test_the_gate_is_a_share_of_a_lower_bound():
    noise = noise_of(200, spread=0.2)
    decision = Seesaw(gate=0.5, confidence=0.8).decide(at(0.25, noise=noise), LIMITS)
    assert (decision.bound, decision.confidence) == (noise.lower_bound(0.8), 0.8)
    assert decision.target == 0.5 * noise.lower_bound(0.8) == pytest.approx(87, abs=3)
    assert decision.needed == pytest.approx(64 * 2**0.25)
    assert decision.batch_size == LIMITS.clip(decision.target) == 80
    assert "is at 0.25 of its peak and asks for a batch of 256" in decision.reason
    assert "lower bound allows" in decision.reason
    assert Seesaw(gate=0.5, confidence=0.5).decide(at(0.25, noise=noise), LIMITS).batch_size == 96


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Seesaw(cut=1), "cut must be a finite number above 1, got 1"),
        (lambda: Seesaw(form="lion"), "form must be one of 'adam', 'sgd', got 'lion'"),
        (lambda: Seesaw(gate=0), r"gate \(or None\) must be a finite number above 0, got 0"),
        (lambda: Smith(confidence=1), "confidence must be a finite number at least 0.5 and below 1, got 1"),
    ],
)
def test_wrong_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
