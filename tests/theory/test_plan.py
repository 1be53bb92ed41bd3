"""The plan counted by position, against the plan carried out one micro-batch at a time."""

import json

from hypothesis import given
from hypothesis import strategies as st

from lightning_bsscale.theory.plan import Budget


def plan_by_hand(epochs, accumulate, max_steps, frequency):
    """(steps, scheduler steps) after every micro-batch, by Lightning's own rules."""
    steps = scheduler_steps = 0
    for batches in epochs:
        for index in range(batches):
            if (index + 1) % accumulate == 0 or index + 1 == batches:
                if max_steps is not None and steps == max_steps:
                    return
                steps += 1
                scheduler_steps += (index + 1) % frequency == 0
            yield steps, scheduler_steps


@given(
    epochs=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    accumulate=st.integers(1, 5),
    max_steps=st.one_of(st.none(), st.integers(1, 20)),
    frequency=st.integers(1, 4),
    windows=st.lists(st.integers(1, 7), min_size=48, max_size=48),
)
def test_each_step_of_a_scheduler_is_at_its_step_of_the_plan(epochs, accumulate, max_steps, frequency, windows):
    budget = Budget(
        accumulate=accumulate,
        max_steps=max_steps,
        total_examples=None,
        granularity=1,
        epoch_batches=None,
        frequencies=[frequency],
    )
    plan, windows = list(plan_by_hand(epochs, accumulate, max_steps, frequency)), iter(windows)
    # The plan's step at which the scheduler is stepped for the first time, the second, …
    expected = [steps for (steps, now), (_, before) in zip(plan, [(0, 0), *plan], strict=False) if now > before]
    found, passed = [], 0
    for batches, came in zip(epochs, [0, *epochs], strict=False):
        budget.start_epoch(None, came)
        ready = 0
        while ready < batches and passed + ready < len(plan):
            ready = min(ready + next(windows), batches)
            steps = budget.planned_steps_after(ready, is_last=ready == batches)
            budget.advance(ready, is_last=ready == batches)
            assert budget.planned_steps() == steps
            due = range(len(found) + 1, budget.planned_steps(frequency) + 1)
            found += [budget.step_of_scheduler_step(frequency, number) for number in due]
        passed += batches
    assert found == expected


@given(
    epochs=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    accumulate=st.integers(1, 5),
    max_steps=st.one_of(st.none(), st.integers(1, 20)),
    frequency=st.integers(1, 4),
    same=st.booleans(),
    reload=st.booleans(),
)
def test_it_counts_as_the_plan_would(epochs, accumulate, max_steps, frequency, same, reload):
    if same:
        epochs = [epochs[0]] * len(epochs)
    budget = Budget(
        accumulate=accumulate,
        max_steps=max_steps,
        total_examples=None,
        granularity=1,
        epoch_batches=epochs[0] if same else None,
        frequencies=[frequency],
    )
    expected = plan_by_hand(epochs, accumulate, max_steps, frequency)
    seen = 0
    for batches, came in zip(epochs, [0, *epochs], strict=False):
        budget.start_epoch(batches if same else None, came)
        for index in range(batches):
            left = budget.batches_left(index, seen)
            budget.advance(index + 1, is_last=index + 1 == batches)
            seen += 1
            steps, scheduler_steps = next(expected)
            assert budget.planned_steps() == steps
            assert budget.planned_steps(frequency) == scheduler_steps
            ended = max_steps is not None and steps == max_steps
            assert budget.is_used_up(seen) == ended
            if left is not None and same:
                assert (left == 1) == ended
            if reload:
                state = json.loads(json.dumps(budget.state()))
                budget.load(state)
            if ended and index + 1 == batches:
                return
            if ended:
                # Past its end the plan makes no more steps.
                budget.advance(index + 2, is_last=False)
                assert budget.planned_steps() == max_steps
                return


def test_the_length_of_an_epoch_is_what_the_last_one_showed():
    budget = Budget(accumulate=1, max_steps=None, total_examples=None, granularity=1, epoch_batches=30)
    budget.start_epoch(30, 0)
    assert budget.epoch_length(0) == 30
    budget.start_epoch(30, 18)
    assert [budget.epoch_length(index) for index in (0, 17, 18)] == [18, 18, 30]
    budget.start_epoch(12, 30)
    assert budget.epoch_length(0) == 12


def test_an_explicit_budget_counts_examples():
    budget = Budget(accumulate=1, max_steps=3, total_examples=41, granularity=8, epoch_batches=100)
    assert [budget.batches_left(0, seen) for seen in (0, 32, 33, 40, 41)] == [6, 2, 1, 1, None]
    assert [budget.is_used_up(seen) for seen in (40, 41)] == [False, True]
