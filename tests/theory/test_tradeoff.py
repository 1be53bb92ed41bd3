import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_bsscale.theory import tradeoff

positive = st.floats(1e-3, 1e6)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (tradeoff.step_progress(64, 192), 0.25),
        (tradeoff.step_progress(64, 0), 1.0),
        (tradeoff.step_progress(64, math.inf), 0.0),
        (tradeoff.relative_gradient_error(64, 192), 3.0),
        (tradeoff.sample_efficiency(192, 64), 0.25),
        (tradeoff.batch_size_for_efficiency(0.5, 64), 64.0),
        (tradeoff.batch_size_for_efficiency(0.25, 64), 192.0),
        (tradeoff.batch_size_for_prices(64, step_price=100, example_price=1), 80.0),
        (tradeoff.batch_size_for_prices(math.inf, step_price=0, example_price=1), 0.0),
        (tradeoff.relative_steps(64, 192), 4.0),
        (tradeoff.relative_examples(192, 64), 4.0),
        (tradeoff.critical_batch_size(min_steps=100, min_examples=6400), 64.0),
        (tradeoff.steps_for_examples(8000, min_steps=100, min_examples=6400), 500.0),
        (tradeoff.examples_for_steps(500, min_steps=100, min_examples=6400), 8000.0),
    ],
)
def test_golden_values_by_hand(found, expected):
    assert found == pytest.approx(expected)


@given(positive, positive)
def test_steps_and_examples_lie_on_the_hyperbola(batch, critical):
    steps, examples = tradeoff.relative_steps(batch, critical), tradeoff.relative_examples(batch, critical)
    assert critical / batch * (batch / critical) == pytest.approx(1)
    if min(batch, critical) / max(batch, critical) > 1e-5:  # beyond that, 1 + x - 1 has lost x
        assert (steps - 1) * (examples - 1) == pytest.approx(1, rel=1e-6)
        assert examples / steps == pytest.approx(batch / critical)


@given(positive, positive, st.floats(1.001, 1e3))
def test_the_hyperbola_is_its_own_inverse(min_steps, min_examples, ratio):
    steps = tradeoff.steps_for_examples(min_examples * ratio, min_steps=min_steps, min_examples=min_examples)
    back = tradeoff.examples_for_steps(steps, min_steps=min_steps, min_examples=min_examples)
    assert back == pytest.approx(min_examples * ratio, rel=1e-6)
    # The batch that buys this point, examples / steps, has the relative costs of the other functions.
    critical = tradeoff.critical_batch_size(min_steps=min_steps, min_examples=min_examples)
    batch = min_examples * ratio / steps
    assert tradeoff.relative_examples(batch, critical) == pytest.approx(ratio, rel=1e-6)
    assert tradeoff.relative_steps(batch, critical) == pytest.approx(steps / min_steps, rel=1e-6)


@given(st.floats(0.001, 0.999), positive)
def test_the_batch_for_an_efficiency_has_that_efficiency(efficiency, critical):
    batch = tradeoff.batch_size_for_efficiency(efficiency, critical)
    assert tradeoff.sample_efficiency(batch, critical) == pytest.approx(efficiency)


@given(positive, positive)
def test_progress_and_error_are_two_views_of_one_ratio(batch, noise):
    assert tradeoff.step_progress(batch, noise) == pytest.approx(
        1 / (1 + tradeoff.relative_gradient_error(batch, noise))
    )
    # What a step gains in progress per example is what an example is worth.
    tiny = 1e-9
    per_example = tradeoff.step_progress(batch, noise) / batch
    assert per_example / (tradeoff.step_progress(tiny, noise) / tiny) == pytest.approx(
        tradeoff.sample_efficiency(batch, noise), rel=1e-5
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tradeoff.step_progress(0, 1), "batch_size must be a finite number above 0, got 0"),
        (lambda: tradeoff.relative_gradient_error(1, math.nan), "noise_scale .* got nan"),
        (lambda: tradeoff.relative_steps(1, math.inf), "critical_batch_size must be .* got inf"),
        (lambda: tradeoff.batch_size_for_efficiency(1, 8), "efficiency must be .*above 0 and below 1, got 1"),
        (lambda: tradeoff.steps_for_examples(10, min_steps=1, min_examples=10), "examples must be .* above 10, got 10"),
        (lambda: tradeoff.examples_for_steps(1, min_steps=1, min_examples=10), "steps must be .* above 1, got 1"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@given(positive, positive, positive, st.floats(0.01, 100))
def test_no_batch_costs_less_than_the_one_for_prices(critical, step, example, times):
    def cost(batch):
        return tradeoff.relative_steps(batch, critical) * (step + example * batch)

    best = tradeoff.batch_size_for_prices(critical, step_price=step, example_price=example)
    assert cost(best) <= cost(times * best) * (1 + 1e-9)
    assert max(cost(best / 2), cost(2 * best)) <= 1.125 * cost(best) * (1 + 1e-9)
