"""The plan counted by position, against the plan carried out by hand, one example at a time."""

import json
from itertools import cycle, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_bsscale.theory.plan import PlanPosition, steps_made
from lightning_bsscale.theory.stored import as_plain, from_plain
from tests.helpers.simulated_run import user_plan as make

EPOCHS = st.lists(st.integers(1, 40), min_size=1, max_size=4)  # examples
SIZES, ACCUMULATE, FREQUENCY = st.integers(1, 6), st.integers(1, 5), st.integers(1, 4)
MAX_STEPS = st.one_of(st.none(), st.integers(1, 20))
NO_LENGTH = {"epoch_batches": None, "epoch_examples": None}
WINDOWS = st.lists(st.integers(1, 7), min_size=1, max_size=12)


def by_hand(epochs, size, accumulate, frequency, max_steps=None):
    """For every epoch, (steps, scheduler steps) after 0, 1, 2, … examples of it, by Lightning's own rules."""
    steps = scheduler_steps = 0
    for examples in epochs:
        after, loader_batches = [(steps, scheduler_steps)], 0
        for number in range(1, examples + 1):
            if number % size == 0 or number == examples:
                loader_batches += 1
                has_stepped = loader_batches % accumulate == 0 or number == examples
                if has_stepped and (max_steps is None or steps < max_steps):
                    steps += 1
                    scheduler_steps += loader_batches % frequency == 0
            after.append((steps, scheduler_steps))
        yield after


def stored(position):
    """The position as a checkpoint gives it back."""
    return from_plain(PlanPosition, json.loads(json.dumps(as_plain(position))))


def walk(plan, epochs, windows, frequency, truth, *, is_sized=True, reload=False):
    """Go through the epochs window by window; whatever the plan says is compared with the truth at each."""
    found, expected, windows = [], [], cycle(windows)
    position, batches, size = None, 0, plan.granularity
    for examples, after in zip(epochs, truth, strict=True):
        last, batches = batches, -(-examples // size)
        loader = {"epoch_batches": batches, "epoch_examples": examples} if is_sized else NO_LENGTH
        position = position or plan.begin(**loader, frequencies=[frequency])
        position = plan.start_epoch(position, loader_batches=last, **loader)
        at, ready = [after[min(index * size, examples)] for index in range(batches + 1)], 0
        while ready < batches:
            check_end(plan, position, ready, [steps for steps, _ in at], is_sized)
            begun, ready = ready, min(ready + next(windows), batches)
            steps = plan.steps_after(position, ready, is_last=ready == batches)
            position = plan.advance(position, ready, is_last=ready == batches)
            if reload:
                position = plan.resumed(stored(position), **loader, frequencies=[frequency])
            assert (plan.steps(position), plan.steps(position, frequency)) == at[ready]
            assert plan.steps(position) == steps == steps_made(position, plan.accumulate)
            assert plan.is_used_up(position, 0) == (steps == plan.max_steps)
            due = range(len(found) + 1, plan.steps(position, frequency) + 1)
            found += [plan.step_of_scheduler_step(position, frequency, number) for number in due]
            inside = after[min(begun * size, examples) : min(ready * size, examples) + 1]
            expected += [now[0] for before, now in pairwise(inside) if now[1] > before[1]]
    assert found == expected, "each step of the scheduler is at its step of the plan"
    return position


def check_end(plan, position, batch_idx, steps, is_sized):
    """`batches_left` ends the training where the plan has made its steps, given the steps after each loader batch."""
    left, batches = plan.batches_left(position, batch_idx, 0), len(steps) - 1
    ends = [index for index, made in enumerate(steps) if made == plan.max_steps]
    if not ends:
        assert left is None or (not is_sized and left > batches - batch_idx)
    elif batch_idx >= ends[0]:
        assert left is None
    elif is_sized or ends[0] < batches:  # a loader without a length does not know its ragged end
        assert min(left, batches - batch_idx) == ends[0] - batch_idx


@given(EPOCHS, SIZES, ACCUMULATE, MAX_STEPS, FREQUENCY, WINDOWS, st.booleans(), st.booleans())
def test_it_counts_as_the_plan_would(epochs, size, accumulate, max_steps, frequency, windows, is_sized, reload):
    plan = make(accumulate, size=size, max_steps=max_steps)
    truth = list(by_hand(epochs, size, accumulate, frequency, max_steps))
    position = walk(plan, epochs, windows, frequency, truth, is_sized=is_sized, reload=reload)
    if not plan.is_used_up(position, 0):  # as if never reloaded, to the last field
        assert position == walk(plan, epochs, windows, frequency, truth, is_sized=is_sized)


@given(EPOCHS, SIZES, SIZES, ACCUMULATE, MAX_STEPS, FREQUENCY, WINDOWS, st.booleans())
def test_it_counts_so_at_any_pace(epochs, size, now, accumulate, max_steps, frequency, windows, ends_with_epochs):
    plan = make(accumulate, size=now, plan_size=size, max_steps=max_steps, ends_with_epochs=ends_with_epochs)
    walk(plan, epochs, windows, frequency, by_hand(epochs, size, accumulate, frequency, max_steps))


@pytest.mark.parametrize("wrong", [make(2, size=4), make(2, size=4, plan_size=3), make(3, size=4, plan_size=2)])
def test_a_plan_of_another_pace_or_accumulation_is_found_out(wrong):
    epochs, truth = [21, 21], list(by_hand([21, 21], 2, 2, 1))
    walk(make(2, size=4, plan_size=2), epochs, [1], 1, truth)
    with pytest.raises(AssertionError):
        walk(wrong, epochs, [1], 1, truth)


@given(st.data(), EPOCHS, SIZES, SIZES, ACCUMULATE, FREQUENCY, st.booleans())
def test_resumed_within_an_epoch_with_other_loader_batches(
    data, epochs, size, now, accumulate, frequency, ends_with_epochs
):
    """Epochs end the training: the plan is where the epoch is. Steps do: it counts on from what it has made."""
    first = make(accumulate, size=size, ends_with_epochs=ends_with_epochs)
    position = walk(first, epochs, [3], frequency, by_hand(epochs, size, accumulate, frequency))
    examples = data.draw(st.integers(1, 40), label="examples of the epoch in progress")
    batches, batches_now = -(-examples // size), -(-examples // now)
    done = data.draw(st.integers(0, min(batches, batches_now) - 1), label="loader batches in windows that ended")
    lost = data.draw(
        st.integers(0, min(batches, batches_now) - 1 - done), label="those after them, before the checkpoint"
    )
    position = first.start_epoch(position, batches, loader_batches=position.loader_batches, epoch_examples=examples)
    if done:
        position = first.advance(position, done, is_last=False)
    plan = make(accumulate, size=now, plan_size=size, ends_with_epochs=ends_with_epochs)
    loader = {"epoch_batches": batches_now, "epoch_examples": examples}
    cut = {"lost": lost, "lost_examples": lost * size}
    position = plan.resumed(stored(position), **loader, frequencies=[frequency], **cut)
    done += lost
    # What the plan sees of this epoch: all of it, or as much as is trained on.
    seen = examples if ends_with_epochs else done * size + min((batches_now - done) * now, examples)
    seen = examples if now == size else seen
    *_, after = by_hand([*epochs, seen], size, accumulate, frequency)
    for ready in range(done + 1, batches_now + 1):
        position = plan.advance(position, ready, is_last=ready == batches_now)
        assert plan.steps(position) <= after[seen][0]
        passed = done * size + (ready - done) * now
        if ready == batches_now or passed < seen:
            passed = seen if ready == batches_now else passed
            assert (plan.steps(position), plan.steps(position, frequency)) == after[passed]


def test_a_repeated_part_of_an_epoch_makes_no_more_steps_than_the_epoch_has():
    """9 of 10 loader batches of 4, then from index 9 on those of 1: most of the epoch is trained on again."""
    first, plan, loader = make(size=4), make(size=1, plan_size=4), {"epoch_batches": 40, "epoch_examples": 40}
    position = first.advance(first.begin(epoch_batches=10, epoch_examples=40), 9, is_last=False)
    position = plan.resumed(position, **loader)
    assert [plan.steps_after(position, ready, is_last=ready == 40) for ready in (12, 13, 30, 40)] == [9, 10, 10, 10]


@given(SIZES, SIZES, ACCUMULATE, FREQUENCY, st.integers(1, 40), st.data())
def test_steps_never_fall_while_an_epoch_is_repeated(size, now, accumulate, frequency, examples, data):
    first, loader = make(accumulate, size=size), {"epoch_examples": examples}
    batches, batches_now = -(-examples // size), -(-examples // now)
    *_, after = by_hand([examples], size, accumulate, frequency)
    position = first.begin(epoch_batches=batches, epoch_examples=examples, frequencies=[frequency])
    done = data.draw(st.integers(0, batches - 1), label="loader batches before the checkpoint")
    reached = after[done * size]
    position = first.advance(position, done, is_last=False)
    plan = make(accumulate, size=now, plan_size=size)
    position = plan.resumed(position, epoch_batches=batches_now, **loader, frequencies=[frequency])
    position = plan.start_epoch(position, batches_now, loader_batches=done, **loader, is_repeated=True)
    for ready in range(1, batches_now + 1):
        position = plan.advance(position, ready, is_last=ready == batches_now)
        made = (plan.steps(position), plan.steps(position, frequency))
        assert made == tuple(map(max, reached, after[min(ready * now, examples)]))


def test_steps_count_on_in_a_repeated_epoch_where_they_end_the_training():
    plan = make(2, ends_with_epochs=False)
    position = plan.advance(plan.begin(epoch_batches=8, epoch_examples=8), 4, is_last=False)
    position = plan.start_epoch(position, 8, loader_batches=4, epoch_examples=8, is_repeated=True)
    assert [plan.steps_after(position, ready, is_last=False) for ready in (0, 2, 7)] == [2, 3, 5]


@given(EPOCHS, SIZES, ACCUMULATE, st.data())
def test_it_begins_within_a_training_that_has_run_by_the_plan(epochs, size, accumulate, data):
    *_, after = by_hand(epochs, size, accumulate, 1)
    batches, plan = -(-epochs[-1] // size), make(accumulate, size=size)
    start = data.draw(st.integers(0, batches - 1))
    begun = plan.begin(epoch_batches=batches, epoch_examples=epochs[-1])
    position = plan.begin_at(begun, start, after[start * size][0])
    for ready in range(start, batches + 1):
        at_end = plan.advance(position, ready, is_last=ready == batches)
        assert plan.steps(at_end) == after[min(ready * size, epochs[-1])][0]


def test_another_scheduler_counts_from_where_it_joins():
    plan = make(accumulate=2)
    position = plan.advance(plan.begin(epoch_batches=8, epoch_examples=8), 8, is_last=True)
    with pytest.raises(KeyError):
        plan.steps(position, 4)
    position = plan.start_epoch(position, 8, loader_batches=8)
    position = plan.count_for(position, [4, 1])
    position = plan.advance(position, 8, is_last=True)
    assert (plan.steps(position), plan.steps(position, 4)) == (8, 2)
    assert position.before == ((1, 4), (4, 0))


def test_a_resumed_run_may_begin_an_epoch_within_it():
    """Loader batches of 4 in the plan, of 2 now: what lies before the first one counts where epochs end training."""
    for ends_with_epochs, steps in ((True, 5), (False, 3)):
        plan = make(size=2, plan_size=4, ends_with_epochs=ends_with_epochs)
        position = plan.begin(epoch_batches=10, epoch_examples=20)
        position = plan.start_epoch(position, 10, loader_batches=10, epoch_examples=20, first=5)
        assert (position.loader_batches, position.origin) == (5, (2 if ends_with_epochs else 0, 5))
        assert plan.steps(plan.advance(position, 10, is_last=True)) == steps


def test_one_loader_batch_after_the_end_of_an_epoch_without_max_epochs():
    plan = make(ends_with_epochs=False, max_steps=4)
    position = plan.advance(plan.begin(epoch_batches=3, epoch_examples=3), 3, is_last=True)
    position = plan.resumed(position, epoch_batches=3, epoch_examples=3)
    assert plan.batches_left(position, 3, 0) == 1
    position = plan.start_epoch(position, 3, loader_batches=3, epoch_examples=3, first=3)
    assert plan.epoch_length(position, 3) == 4
    assert plan.steps(plan.advance(position, 4, is_last=True)) == 4


def test_the_length_of_an_epoch_is_what_the_last_one_showed():
    plan = make()
    position = plan.begin(epoch_batches=30, epoch_examples=None)
    position = plan.start_epoch(position, 30, loader_batches=0)
    assert plan.epoch_length(position, 0) == 30
    position = plan.start_epoch(position, 30, loader_batches=18)
    assert [plan.epoch_length(position, index) for index in (0, 17, 18)] == [18, 18, 30]
    # A checkpoint keeps it, unless loader batches are of another size.
    loader = {"epoch_batches": 30, "epoch_examples": None}
    assert plan.resumed(stored(position), **loader).expected == 18
    assert make(size=2, plan_size=1).resumed(stored(position), **loader).expected == 30
    position = plan.start_epoch(position, 12, loader_batches=30)
    assert plan.epoch_length(position, 0) == 12
    position = plan.start_epoch(position, 40, loader_batches=12)
    assert plan.epoch_length(position, 0) == 40, "not shorter than announced: the loader has grown"


def test_an_explicit_budget_counts_examples():
    plan = make(max_steps=3, total_examples=41, size=8)
    position = plan.begin(epoch_batches=100, epoch_examples=800)
    assert [plan.batches_left(position, 0, seen) for seen in (0, 32, 33, 40, 41)] == [6, 2, 1, 1, None]
    assert [plan.is_used_up(position, seen) for seen in (40, 41)] == [False, True]
    # Past its steps the plan makes no more, though training continues.
    assert plan.steps(plan.advance(position, 10, is_last=False)) == 3
