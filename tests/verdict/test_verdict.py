"""The sentences, from facts that no short training has: extreme numbers, every gate, and the forecast of windows."""

import dataclasses
import math
import random

import pytest
import torch

from lightning_bsscale import BatchSizeScaler
from lightning_bsscale.theory.pace import Pace
from lightning_bsscale.theory.policies import Decision, Reason
from lightning_bsscale.theory.profile import RunProfile
from lightning_bsscale.verdict import read_facts, verdict_of
from lightning_bsscale.verdict.measured import MOST_TIMES, windows_needed, with_windows
from tests.helpers.simulated import noise_of
from tests.helpers.training import Regression, fit, regression_loader
from tests.helpers.written_runs import write_run


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    """Facts of a run that no Trainer made, with a noise scale of about 50."""
    return read_facts(write_run(tmp_path_factory.mktemp("run") / "run.jsonl"))


def text_of(facts, **changes):
    return str(verdict_of(dataclasses.replace(facts, **changes)))


def test_a_written_run_grew_towards_its_noise_scale(facts):
    assert facts.noise.resolved
    assert facts.batch_size > facts.start_batch_size == 8
    assert text_of(facts).startswith(f"The batch grew from 8 to {facts.batch_size} examples in ")
    # The plan makes a step of two loader batches of four.
    assert facts.planned_steps == 200
    saved = 200 - facts.optimizer_steps
    assert f"instead of 200 of your plan: {saved} saved. The seconds saved are not known" not in text_of(facts)
    assert f"{saved} saved. That is about " in text_of(facts)


def last_decision(facts, code, **numbers):
    """A hold by a gate, with a bound that would have been enough."""
    latest = facts.decisions.records[-1]
    size = facts.batch_size
    made = dict(bound=4.0 * size, confidence=0.9, target=4.0 * size, needed=1.25 * size) | numbers
    decision = Decision(batch_size=size, reason=Reason[code.upper()].value, code=code, **made)
    situation = dataclasses.replace(latest.situation, batch_size=size)
    return dataclasses.replace(latest, situation=situation, batch_size=size, decision=decision)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("cooling_down", "it was cooling down after the last change"),
        ("near_end", "the end of the budget was too near"),
        ("no_prices", "the seconds of a step were not measured yet"),
    ],
)
def test_each_gate_is_named_with_what_it_withheld(facts, code, why):
    small = dataclasses.replace(facts, batch_size=12)
    text = text_of(small, latest=last_decision(small, code))
    assert f"needed a target of 15, and the lower bound of 48 (90 %) gave 48, but {why}." in text


def test_too_few_steps(facts):
    text = text_of(facts, latest=last_decision(facts, "few_steps"))
    assert "A run of 200 steps is too short to grow further: with fewer steps it loses loss" in text
    assert "If steps count and loss does not, lower min_steps." in text
    assert "A longer run may grow further." in text_of(facts, latest=last_decision(facts, "few_steps", target=1.0))


@pytest.mark.min_steps
def test_a_short_training_says_that_it_was_too_short(tmp_path):
    scaler = BatchSizeScaler(max_batch_size=64)
    fit(Regression(lambda p: torch.optim.SGD(p, lr=1e-4)), regression_loader(400, noise=3.0), [scaler], max_epochs=4)
    assert scaler.batch_size == 4
    assert {record.decision.code for record in scaler.decisions} >= {"few_steps"}
    assert "The batch stayed at 4 examples." in str(scaler.verdict())
    assert "A run of 400 steps is too short to grow: with fewer" in str(scaler.verdict())
    assert "(the policy's min_steps=500). Next: " in str(scaler.verdict())
    assert "A run of about 1,000 steps may grow in its second half. To choose a batch" in str(scaler.verdict())


@pytest.mark.min_steps
def test_what_a_short_training_is_promised_is_what_a_longer_one_does():
    """With twice min_steps and a batch that can only double, growth begins at the half."""
    scaler = BatchSizeScaler(max_batch_size=64)
    fit(Regression(lambda p: torch.optim.SGD(p, lr=1e-4)), regression_loader(4000, noise=3.0), [scaler], max_epochs=1)
    grown = [record for record in scaler.decisions if record.is_change]
    assert grown
    assert all(record.situation.examples_seen >= 0.5 * 4000 for record in grown)


@pytest.mark.min_steps
def test_a_short_training_counts_its_ragged_steps_and_names_the_limit_that_would_hold_too():
    """Ten epochs of 9 batches and a short one are 100 steps, and an epoch of 10 has no room for a larger batch."""
    scaler = BatchSizeScaler()
    fit(Regression(lambda p: torch.optim.SGD(p, lr=1e-4)), regression_loader(38, noise=3.0), [scaler], max_epochs=10)
    text = str(scaler.verdict())
    assert "A run of 100 steps is too short to grow" in text
    assert "The batch is at its limit of 4, the default (at least 8 steps in an epoch)." in text
    assert "A run of about 1,000 steps may grow in its second half if max_batch_size is 8 or more." in text


def test_before_not_before(facts):
    assert "not_before was not reached" in text_of(facts, latest=last_decision(facts, "not_before"))


def test_a_target_by_prices_is_compared_as_it_is(facts):
    # The square root of the bound times a ratio of prices: proportional to no bound.
    priced = last_decision(facts, "close_enough", bound=0.0, target=5.0, needed=80.0)
    assert "needed a target of 80 and had 5" in text_of(facts, latest=priced)


def with_noise(facts, noise, **numbers):
    """Facts of a run whose last decision was made with this noise scale, at a batch of 64."""
    small = dataclasses.replace(facts, batch_size=64, noise=noise)
    latest = last_decision(small, "close_enough", **numbers)
    latest = dataclasses.replace(latest, situation=dataclasses.replace(latest.situation, noise=noise))
    return dataclasses.replace(small, latest=latest)


@pytest.mark.parametrize("had", [2818.0, 41.0])
def test_an_unresolved_bound_does_not_count_however_large_it_is(facts, had):
    noise = noise_of(4000.0, spread=0.9)
    assert not noise.resolved
    verdict = verdict_of(with_noise(facts, noise, bound=had, confidence=0.8, target=1.25 * had, needed=80.0))
    written = f"{had:,.0f}"
    assert (
        "Growing further waits until the noise scale is resolved: its interval has no upper end yet. Until then its "
        f"lower bound, {written} (80 %) so far, does not count; growing will need one of 64, as the "
        "target is 1.25 times the bound."
    ) in verdict.reasons
    assert "needed" not in str(verdict)
    (advice,) = (step for step in verdict.next_steps if "windows" in step)
    assert "windows would resolve it, with a lower bound of at least 64 (a forecast): " in advice


def test_an_unresolved_noise_scale_below_the_batch_is_still_worth_resolving(facts):
    # However many windows there are, its bound never reaches 64: only that it will be resolved is forecast.
    noise = noise_of(40.0, spread=0.9)
    verdict = verdict_of(with_noise(facts, noise, bound=20.0, confidence=0.8, target=25.0, needed=80.0))
    assert not noise.resolved
    assert windows_needed(noise, 64.0, 0.8) is None
    assert "windows would resolve it (a forecast): " in str(verdict)


def test_a_noise_scale_that_was_resolved_after_the_last_decision(facts):
    late = with_noise(facts, noise_of(4000.0, spread=0.9), bound=2818.0, target=3522.5, needed=80.0)
    text = text_of(late, noise=noise_of(4000.0, spread=0.1))
    assert "At the last decision the noise scale was not resolved yet, so nothing was decided." in text
    assert "not count" not in text


def test_of_a_resolved_one_the_width_of_its_interval_is_what_limits(facts):
    noise = noise_of(100.0, spread=0.3)
    assert noise.resolved
    had = noise.lower_bound(0.9)
    assert had < 80 < noise.upper_bound(0.9)
    held = with_noise(facts, noise, bound=had, confidence=0.9, target=had, needed=80.0)
    verdict = verdict_of(held)
    assert f"Growing further needed a lower bound of 80 and had {had:.3g} (90 %)." in verdict.reasons
    times = windows_needed(noise, 80.0, 0.9)
    (advice,) = (step for step in verdict.next_steps if "windows" in step)
    assert advice.startswith(f"About {times} times as many windows would narrow the interval to a lower bound of 80 (a")
    assert "resolve" not in str(verdict)
    # Where no number of windows would be enough, nothing of the kind is said.
    above = dataclasses.replace(held.latest.decision, needed=110.0)
    enough = verdict_of(dataclasses.replace(held, latest=dataclasses.replace(held.latest, decision=above)))
    assert noise.upper_bound(0.9) > 110
    assert "the noise scale is not far enough above the batch" in str(enough)


def test_a_monitor_is_told_how_many_windows_resolve_it(facts):
    numbers = dataclasses.replace(facts.numbers, decides=False, acts=False)
    text = text_of(facts, numbers=numbers, noise=noise_of(100.0, spread=0.9), latest=None)
    assert "windows would resolve it (a forecast): " in text
    assert "resolve" not in text_of(facts, numbers=numbers, noise=noise_of(100.0, spread=0.1), latest=None)


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        (20, "BatchSizeScaler would let the batch grow, to about "),
        (84, "The batch lies just below the interval, so a larger one would gain little."),
        (100, "The batch lies within the interval, so neither a smaller nor a larger one is clearly better."),
        (400, "A batch of about 100 would use its tokens better."),
    ],
)
def test_a_monitor_is_told_how_its_batch_compares(facts, batch, says):
    numbers = dataclasses.replace(facts.numbers, decides=False, acts=False)
    profile = dataclasses.replace(facts.profile, unit="tokens")
    noise = noise_of(100.0, spread=0.08)
    assert 90 > noise.low > 84 > noise.low / 1.25
    assert 110 < noise.high < 200
    text = text_of(facts, numbers=numbers, profile=profile, noise=noise, latest=None, batch_size=batch)
    assert f"By it, a token in a batch of {batch} is worth " in text
    assert says in text


def test_the_forecast_of_windows_is_the_smallest_power_of_two():
    noise = noise_of(100.0, spread=0.9)
    assert not noise.resolved
    times = windows_needed(noise, 20.0, 0.9)
    assert times is not None
    assert with_windows(noise, times).resolved
    assert not with_windows(noise, times / 2).resolved or with_windows(noise, times / 2).lower_bound(0.9) < 20
    # More is asked for, more is needed; what lies above the estimate is never reached.
    assert windows_needed(noise, 80.0, 0.9) > times
    assert windows_needed(noise, 101.0, 0.9) is None
    unknown = dataclasses.replace(noise, trace_variance=math.inf, grad_sq_variance=math.inf)
    assert windows_needed(unknown, 20.0, 0.9) is None
    assert windows_needed(dataclasses.replace(noise, grad_sq=-1.0, noise_scale=math.inf), 20.0, 0.9) is None
    assert MOST_TIMES == 64


def odd_noise(dice):
    noise = noise_of(10 ** dice.uniform(-2, 9), spread=10 ** dice.uniform(-2, 1))
    if dice.random() < 0.3:
        noise = dataclasses.replace(noise, trace_variance=math.inf, grad_sq_variance=math.inf, high=math.inf, low=0.0)
        noise = dataclasses.replace(noise, resolved=False)
    if dice.random() < 0.3:
        noise = dataclasses.replace(noise, noise_scale=math.inf, grad_sq=-noise.grad_sq, high=math.inf, resolved=False)
    return noise


@pytest.mark.parametrize("seed", range(300))
def test_no_run_is_too_odd_for_a_verdict(facts, seed):
    dice = random.Random(seed)
    noise = dice.choice([None, *(odd_noise(dice) for _ in range(4))])
    start, size = (4 * dice.choice([1, 2, 10**6]) for _ in range(2))
    code = dice.choice([reason.code for reason in Reason])
    numbers = {name: dice.choice([None, 0.0, 10 ** dice.uniform(-3, 8)]) for name in ("bound", "target", "needed")}
    odd = dataclasses.replace(
        facts,
        numbers=dataclasses.replace(
            facts.numbers,
            decides=dice.random() < 0.8,
            acts=dice.random() < 0.8,
            total_examples=dice.choice([None, 1600.0, 1e12]),
            measure_every=dice.choice([1, 8]),
        ),
        profile=RunProfile(
            unit=dice.choice(["examples", "tokens"]),
            policy=dice.choice(["NoiseScalePolicy", "Seesaw"]),
            optimizer="Adam",
            beta2=dice.choice([None, 0.0, 0.999, 1.0, 2.0]),
            split=dice.choice([None, False]),
            max_batch_size=dice.choice([None, 64]),
            is_resumed=dice.random() < 0.5,
        ),
        noise=noise,
        start_batch_size=start,
        batch_size=size,
        optimizer_steps=dice.choice([1, 150, 10**7]),
        measured_windows=dice.choice([0, 1, 10**6]),
        dropped_windows=dice.choice([0, 3]),
        found_changed=dice.random() < 0.1,
        pace=dice.choice([Pace(), Pace(windows=9, examples=99, seconds=9.0, first_windows=9, first_examples=36)]),
        seconds_per_step=dice.choice([None, 0.0, 1e-3]),
    )
    odd = dataclasses.replace(odd, latest=dice.choice([None, last_decision(odd, code, **numbers)]))
    verdict = verdict_of(odd)
    text = str(verdict)
    assert verdict.headline.endswith(".")
    for sentence in (*verdict.reasons, *verdict.next_steps):
        assert sentence.endswith(".")
        assert sentence[0].isupper()
    for word in ("None", "nan", "inf ", "inf.", "e+", "Reason.", "..", "  "):
        assert word not in text, text
    if odd.profile.unit == "tokens":
        assert "example" not in text
