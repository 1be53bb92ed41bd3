"""What a batch takes, against the closed forms, and the choice, against all rows."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_bsscale.theory.planning import Hardware, Interval, Prices, Spent, examples_for_batch, plan_batches
from lightning_bsscale.theory.tradeoff import relative_examples, relative_steps

positive = st.floats(0.1, 1e5)
NARROW = Interval(value=480.0, low=480.0, high=480.0)
WIDE = Interval(value=480.0, low=300.0, high=900.0)
TEN_MILLION = (Spent(examples=1e7, batch_size=32),)
PRICES = Prices(seconds_per_example=0.002, seconds_per_step=0.1)


@given(positive, positive, positive, positive)
def test_examples_at_a_batch_are_worth_fewer_in_small_ones(batch, critical, examples, spent_in):
    """E at B0 gives E_min = E/(1 + B0/B_crit); B then takes E_min (1 + B/B_crit) in S_min (1 + B_crit/B) steps."""
    min_examples = examples / (1 + spent_in / critical)
    found = examples_for_batch(batch, critical, [Spent(examples=examples, batch_size=spent_in)])
    assert found == pytest.approx(min_examples * relative_examples(batch, critical))
    assert found / batch == pytest.approx(min_examples / critical * relative_steps(batch, critical))


def test_a_run_that_grew_is_the_sum_of_its_parts():
    parts = [Spent(examples=3000, batch_size=16), Spent(examples=1000, batch_size=192)]
    assert examples_for_batch(64, 64, parts) == pytest.approx(2 * (3000 / 1.25 + 1000 / 4))
    assert examples_for_batch(64, math.inf, parts) == 4000
    assert examples_for_batch(64, 0, parts) == pytest.approx(64 * (3000 / 16 + 1000 / 192))


@given(st.integers(1, 64), st.integers(1, 2000), st.integers(1, 100))
def test_micro_batches_are_equal_fit_and_are_as_few_as_can_be(ranks, share, most):
    layout = Hardware(ranks=ranks, max_per_device=most).layout(ranks * share)
    assert layout is not None
    size, accumulate = layout
    assert size * accumulate == share
    assert size <= most
    assert not [one for one in range(1, accumulate) if share % one == 0 and share // one <= most]


def test_batches_that_the_devices_can_have():
    assert Hardware().batches(3, 40) == {4, 8, 16, 32}
    assert Hardware(ranks=3).batches(3, 40) == {3, 6, 12, 24}
    assert Hardware(ranks=4, max_per_device=6).batches(3, 100) == {4, 8, 16, 32, 64, 24, 48, 96}
    assert Hardware(ranks=100).batches(3, 40) == {100}
    assert Hardware(ranks=4).layout(30) is None


def test_rows_hold_the_closed_forms():
    plan = plan_batches(WIDE, TEN_MILLION, [Hardware(ranks=2, max_per_device=24)], PRICES)
    assert plan.min_examples == pytest.approx(1e7 / (1 + 32 / 480))
    assert plan.min_steps == pytest.approx(plan.min_examples / 480)
    (row,) = (row for row in plan.rows if row.batch_size == 96)
    assert (row.micro_batch_size, row.accumulate, row.efficiency) == (24, 2, pytest.approx(480 / 576))
    for end, critical in (("value", 480), ("high", 300), ("low", 900)):  # a larger critical batch favours larger ones
        examples = 1e7 * (critical + 96) / (critical + 32)
        assert getattr(row.examples, end) == pytest.approx(examples)
        assert getattr(row.steps, end) == pytest.approx(examples / 96)
        assert getattr(row.hours, end) == pytest.approx(examples / 96 * (0.1 + 0.002 * 48) / 3600)
    assert row.cost is None
    present = next(row for row in plan.rows if row.batch_size == 32)
    assert (present.examples.low, present.examples.value, present.examples.high) == pytest.approx((1e7, 1e7, 1e7))
    smaller = next(row for row in plan.rows if row.batch_size == 8)
    assert smaller.examples.low == pytest.approx(1e7 * 308 / 332)


def test_an_interval_without_ends_has_numbers_all_the_same():
    plan = plan_batches(Interval(value=480.0, low=0.0, high=math.inf), TEN_MILLION, prices=PRICES)
    for row in plan.rows:
        assert row.examples.high / row.examples.low == pytest.approx(max(row.batch_size / 32, 32 / row.batch_size))
    assert plan.between == (min(row.batch_size for row in plan.rows), max(row.batch_size for row in plan.rows))


@pytest.mark.parametrize("critical", [NARROW, Interval(value=7.5, low=1.0, high=10.0)])
@pytest.mark.parametrize("step", [0.0, 1e-3, 0.1, 10.0, 1e4])
def test_the_fastest_batch_is_recommended_and_stands_beside_the_exact_one(critical, step):
    plan = plan_batches(critical, TEN_MILLION, prices=Prices(seconds_per_example=0.002, seconds_per_step=step))
    assert plan.recommended.hours.value == min(row.hours.value for row in plan.rows)
    assert plan.cheapest == pytest.approx(math.sqrt(critical.value * step / 0.002))
    sizes = sorted(row.batch_size for row in plan.rows)
    assert max(1, plan.cheapest) / 2 < plan.recommended.batch_size < 2 * max(sizes[0], plan.cheapest)
    assert "fastest" in plan.reason


def test_time_prefers_many_devices_and_money_few():
    machines = [Hardware(ranks=ranks) for ranks in (8, 1, 4)]
    fast = plan_batches(NARROW, TEN_MILLION, machines, PRICES)
    cheap = plan_batches(
        NARROW, TEN_MILLION, machines, Prices(seconds_per_example=0.002, seconds_per_step=0.1, per_hour=2.5)
    )
    assert (fast.recommended.ranks, cheap.recommended.ranks) == (8, 1)
    assert fast.recommended.batch_size > cheap.recommended.batch_size
    assert cheap.recommended.cost.value == min(row.cost.value for row in cheap.rows)
    for row in cheap.rows:
        assert row.cost.value == pytest.approx(2.5 * row.ranks * row.hours.value)
    assert "cheapest" in cheap.reason


@pytest.mark.parametrize(
    ("efficiency", "prices", "batch"), [(0.9, PRICES, 32), (0.8, None, 64), (None, None, 256), (0.9999, None, 4)]
)
def test_an_efficiency_is_kept(efficiency, prices, batch):
    """480 (1/0.9 - 1) = 53, 480 (1/0.8 - 1) = 120, and half an example's worth is at 480."""
    plan = plan_batches(NARROW, TEN_MILLION, prices=prices, efficiency=efficiency)
    assert plan.recommended.batch_size == batch
    assert ("none keeps" in plan.reason) == (efficiency == 0.9999)


def test_the_interval_says_between_which_batches():
    assert plan_batches(NARROW, TEN_MILLION, prices=PRICES).between == (128, 128)
    # sqrt(300 * 50) = 122, sqrt(480 * 50) = 155, sqrt(900 * 50) = 212
    assert plan_batches(WIDE, TEN_MILLION, prices=PRICES).between == (128, 256)
    assert plan_batches(WIDE, TEN_MILLION).between == (256, 512)
