"""Seconds per loader batch and per step, by a clock that the test turns."""

import time
import weakref

import pytest
import torch

from lightning_bsscale.callbacks.trainer.timing import UNTIMED_WINDOWS, WEIGHT_OF_NEW, RowTimes, StepTimes, WindowClock


@pytest.fixture
def run(monkeypatch):
    """Let loader batches take so many seconds, with a step or without."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def run(times, *loader_batches):
        for seconds, stepped in loader_batches:
            times.start()
            now[0] += seconds
            times.stop(stepped=stepped)
            now[0] += 100  # between loader batches nothing is timed
        return times

    return run


def test_a_step_costs_what_its_loader_batch_takes_longer(run):
    times = run(StepTimes(world_size=1), (2.0, False), (5.0, True))
    assert times.own == times.shared == (2.0, 3.0)
    run(times, (3.0, False))
    assert times.own == pytest.approx((2 + WEIGHT_OF_NEW, 3 - WEIGHT_OF_NEW))


@pytest.mark.parametrize(
    ("loader_batches", "own"),
    [
        *(([], (None, None)), ([(5.0, True)], (None, None)), ([(5.0, False)], (5.0, None))),
        ([(5.0, False), (1.0, True)], (5.0, 0.0)),
    ],
)
def test_what_is_unknown_is_none_and_a_step_never_costs_less_than_nothing(run, loader_batches, own):
    assert run(StepTimes(world_size=1), *loader_batches).own == own


def test_many_ranks_decide_by_their_means_alone(run):
    times = run(StepTimes(world_size=2), (2.0, False), (5.0, True))
    assert times.shared == (None, None)
    times.share((1.5, None))
    assert (times.shared, times.own) == ((1.5, None), (2.0, 3.0))


def test_what_decisions_rest_on_is_short_to_write(run):
    times = run(StepTimes(world_size=1), (2 / 3, False), (1.0, True))
    assert times.shared == (0.6667, 0.3333)
    assert times.own == (2 / 3, 1 - 2 / 3)
    of_two = StepTimes(world_size=2)
    of_two.share((1e-5 / 3, 12_345.6789))
    assert of_two.shared == (3.333e-06, 12_350.0)


def test_a_loader_batch_that_never_began_is_not_timed(run):
    times = run(StepTimes(world_size=1), (2.0, False))
    times.stop(stepped=True)
    assert times.own == (2.0, None)


@pytest.fixture
def turns(monkeypatch):
    """Turn the clock."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def turn(seconds):
        now[0] += seconds

    return turn


def window(clock, turn, *, before, within):
    """Seconds of a window, from the end of the last one on."""
    turn(before)
    clock.run()
    turn(within)
    return clock.lap()


def test_a_window_is_timed_from_the_end_of_the_last_one(turns):
    clock = WindowClock()
    first = [window(clock, turns, before=100.0, within=50.0) for _ in range(UNTIMED_WINDOWS)]
    assert first == [None] * UNTIMED_WINDOWS  # those of a process's start
    assert window(clock, turns, before=2.0, within=3.0) == 5.0  # with what lies between two loader batches


def test_validation_is_no_part_of_a_window(turns):
    clock = WindowClock()
    for _ in range(UNTIMED_WINDOWS):
        window(clock, turns, before=0.0, within=1.0)
    turns(2.0)
    clock.pause()
    turns(1000.0)
    clock.pause()  # an epoch's end follows its validation
    assert window(clock, turns, before=500.0, within=3.0) == 5.0


@pytest.mark.clock
def test_times_that_nobody_takes_hold_no_events(monkeypatch):
    """As on a GPU in a training whose windows are no longer measured; the device is five events behind."""

    class Event:
        recorded, alive = 0, weakref.WeakSet()

        def __init__(self, enable_timing):
            assert enable_timing
            self.alive.add(self)

        def record(self, stream):
            Event.recorded += 1
            self.at = Event.recorded

        def query(self):
            return self.at <= Event.recorded - 5

        def elapsed_time(self, other):
            return 1000.0 * (other.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    times = RowTimes(torch.device("cuda"))
    for _ in range(1000):
        with times.section(8):
            pass
    assert 0 < len(Event.alive) < 10
    Event.recorded += 5
    assert times.take() == (1000.0, 8000)
    assert times.take() == (0.0, 0)
