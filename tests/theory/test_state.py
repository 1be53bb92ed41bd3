"""What a run's record says of itself."""

from dataclasses import replace

import pytest

from lightning_bsscale.theory.example_count import ExampleCount
from lightning_bsscale.theory.schedules import WarmupCosine
from tests.helpers.simulated_run import Host, Program

PLACES = Program(batches=(4,)).places()


def state_after(loader_batches, **changes):
    return replace(Host.begin(Program(batches=(4,))).train(PLACES[:loader_batches]).state, **changes)


@pytest.mark.parametrize(
    ("loader_batches", "begun_more", "expected"),
    [
        (0, 0, (0, 1)),  # before the first: the current batch size
        (1, 0, (1, 4)),  # at a window's end: the next one's place
        (3, 0, (1, 4)),  # within a window: its own
        (3, 1, (1, 5)),  # within a loader batch, after an exception: no window may end there
    ],
)
def test_window_at_restart(loader_batches, begun_more, expected):
    state = state_after(loader_batches)
    if begun_more:
        state = replace(state, window=replace(state.window, begun=state.window.begun + 1))
    assert state.window_at_restart() == expected


@pytest.mark.parametrize(
    ("max_steps", "total", "lost", "over"),
    [
        *((-1, None, 0, False), (6, None, 0, False), (5, None, 0, True), (0, None, 0, True)),
        *((-1, 20, 0, True), (-1, 21, 0, False), (-1, 21, 1, True), (3, 21, 0, False)),
    ],
)
def test_a_run_is_over_when_its_steps_or_its_examples_are_used_up(max_steps, total, lost, over):
    state = state_after(5, lost_examples=lost)  # five of the plan's steps, 20 examples
    assert (state.planned_steps, state.examples) == (5, ExampleCount(known=20))
    assert state.is_over(max_steps, total) is over


def test_an_own_schedule_needs_a_budget():
    settings = Program().settings
    schedule = WarmupCosine()
    assert settings.scheduled(10) is None
    assert replace(settings, schedule=schedule).scheduled(10) is None
    own = replace(settings, schedule=schedule, total_examples=100.0, warmup_examples=20.0)
    assert own.scheduled(10) == schedule.factor(10, 100.0, 20.0) == pytest.approx(0.5)
