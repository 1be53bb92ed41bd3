import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_bsscale.theory.windows import (
    WindowPlan,
    batches_until_step,
    default_max_batch_size,
    plan_window,
    planned_examples,
    planned_steps,
    step_of_scheduler_step,
)

counts = st.integers(1, 40)
maybe_counts = st.none() | counts


def steps_of_lightning(epoch_batches, accumulate):
    """After which loader batches of an epoch Lightning steps, by its own two conditions."""
    return [ready for ready in range(1, epoch_batches + 1) if ready % accumulate == 0 or ready == epoch_batches]


@pytest.mark.parametrize(
    ("arguments", "length", "is_short"),
    [
        ({"start": 0, "wanted": 4, "epoch_batches": None, "budget_batches": None}, 4, False),
        ({"start": 8, "wanted": 4, "epoch_batches": 12, "budget_batches": None}, 4, False),
        ({"start": 8, "wanted": 4, "epoch_batches": 10, "budget_batches": None}, 2, True),
        ({"start": 8, "wanted": 4, "epoch_batches": 10, "budget_batches": 1}, 1, True),
        ({"start": 8, "wanted": 4, "epoch_batches": None, "budget_batches": 3}, 3, True),
        ({"start": 8, "wanted": 4, "epoch_batches": None, "budget_batches": 0}, 1, True),
    ],
)
def test_a_window_is_cut_at_the_epochs_and_the_budgets_end(arguments, length, is_short):
    expected = WindowPlan(start=arguments["start"], num_loader_batches=length, is_short=is_short)
    assert plan_window(**arguments) == expected


@given(st.lists(counts, min_size=1, max_size=60), counts, maybe_counts)
def test_plans_cover_each_loader_batch_of_an_epoch_once(wanted, epoch_batches, budget):
    covered, start = [], 0
    for size in wanted * epoch_batches:
        left = None if budget is None else budget - start
        if start >= epoch_batches or left == 0:
            break
        plan = plan_window(start=start, wanted=size, epoch_batches=epoch_batches, budget_batches=left)
        assert 1 <= plan.num_loader_batches <= size
        assert plan.is_short == (plan.num_loader_batches < size)
        covered += range(plan.start, plan.start + plan.num_loader_batches)
        start += plan.num_loader_batches
    assert covered == list(range(min(epoch_batches, budget or epoch_batches)))


@given(counts, counts, counts)
def test_planned_steps_are_those_of_lightning(epoch_batches, accumulate, frequency):
    steps = steps_of_lightning(epoch_batches, accumulate)
    for ready in range(epoch_batches + 1):
        is_last = ready == epoch_batches
        assert planned_steps(ready, accumulate, is_last=is_last) == sum(step <= ready for step in steps)
        scheduled = [step for step in steps if step % frequency == 0 and step <= ready]
        assert planned_steps(ready, accumulate, is_last=is_last, frequency=frequency) == len(scheduled)


@pytest.mark.parametrize("accumulate", range(1, 14))
def test_batches_until_step_inverts_planned_steps(accumulate):
    for epoch_batches in range(1, 30):
        steps = [0, *steps_of_lightning(epoch_batches, accumulate)]
        for step in range(32):
            expected = steps[step] if step < len(steps) else None
            assert batches_until_step(step, accumulate, epoch_batches) == expected
            assert batches_until_step(step, accumulate, None) == step * accumulate


def examples_of_a_run(max_epochs, max_steps, epoch_batches, epoch_examples, accumulate, size):
    """Run the plan loader batch by loader batch; the epoch's last one holds what is left of its examples."""
    examples = steps = 0
    for _ in range(max_epochs if max_epochs is not None else 10**6):
        for ready in range(1, epoch_batches + 1):
            if max_steps is not None and steps == max_steps:
                return examples
            examples += size if ready < epoch_batches else epoch_examples - (epoch_batches - 1) * size
            steps += ready in steps_of_lightning(epoch_batches, accumulate)
    return examples


@given(st.integers(1, 4), maybe_counts, st.integers(1, 12), st.integers(1, 8), st.integers(1, 5), st.integers(1, 8))
def test_the_budget_is_what_the_plan_would_see(max_epochs, max_steps, epoch_batches, last, accumulate, size):
    epoch_examples = (epoch_batches - 1) * size + min(last, size)
    found = planned_examples(
        max_epochs=max_epochs,
        max_steps=max_steps,
        epoch_batches=epoch_batches,
        epoch_examples=epoch_examples,
        accumulate=accumulate,
        granularity=size,
    )
    assert found == examples_of_a_run(max_epochs, max_steps, epoch_batches, epoch_examples, accumulate, size)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_epochs": 3, "epoch_batches": 10}, 240.0),
        ({"max_epochs": 3, "epoch_batches": 10, "epoch_examples": 77}, 231.0),
        ({"max_epochs": 3, "epoch_examples": 77}, 231.0),
        ({"max_steps": 7}, 7 * 4 * 8.0),
        ({"max_steps": 7, "max_epochs": 3}, 7 * 4 * 8.0),
        ({"max_epochs": 3}, None),
        ({}, None),
        ({"epoch_batches": 10}, None),
    ],
)
def test_what_is_known_gives_the_budget(changes, expected):
    unknown = dict.fromkeys(("max_epochs", "max_steps", "epoch_batches", "epoch_examples"))
    assert planned_examples(**(unknown | changes), accumulate=4, granularity=8) == expected


@pytest.mark.parametrize(
    ("start", "granularity", "epoch", "total", "expected"),
    [
        (8, 8, 10**6, None, 256),  # 32 times the start
        (8, 8, 1347, None, 168),  # 8 steps an epoch: 168.4
        (8, 8, 1347, 10**6, 168),  # the epoch counts, not the budget
        (8, 8, None, 1600, 200),
        (8, 8, None, None, 256),
        (64, 8, 100, None, 64),  # never below the start
        (12, 12, 1000, None, 120),  # a multiple of the granularity
    ],
)
def test_default_maximum(start, granularity, epoch, total, expected):
    sizes = dict(start_batch=start, granularity=granularity)
    assert default_max_batch_size(**sizes, epoch_examples=epoch, total_examples=total) == expected


@given(st.integers(1, 8), counts, st.none() | st.floats(1, 1e6), st.none() | st.floats(1, 1e6))
def test_the_default_maximum_keeps_its_promises(accumulate, granularity, epoch, total):
    start = accumulate * granularity
    found = default_max_batch_size(
        start_batch=start, granularity=granularity, epoch_examples=epoch, total_examples=total
    )
    horizon = epoch if epoch is not None else total
    assert found % granularity == 0
    assert start <= found <= 32 * start
    assert found == start or horizon is None or horizon / found >= 8


EPOCH = {"epoch_batches": 10, "budget_batches": None}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan_window(start=10, wanted=4, **EPOCH), r"start must be below epoch_batches \(10\), got 10"),
        (lambda: plan_window(start=-1, wanted=4, **EPOCH), "start must be an integer of at least 0, got -1"),
        (lambda: plan_window(start=0, wanted=0, **EPOCH), "wanted must be an integer of at least 1, got 0"),
        (lambda: planned_steps(-1, 1, is_last=False), "ready must be"),
        (lambda: step_of_scheduler_step(1, 1, 0), "frequency must be"),
        (lambda: batches_until_step(-1, 1, 10), "step must be"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
