"""The search for the fastest micro-batch size: where it ends, by a device whose times are known."""

import random

import pytest

from lightning_bsscale.theory.size_search import TIMES_NEEDED, SizeSearch


def found(seconds_of, *, start=8, longest=10**6, room=10**9, disturbed=lambda k: 1.0):
    """The search at its end, or when nothing changes any more."""
    search = SizeSearch(size=start)
    for number in range(100 * TIMES_NEEDED):
        size = search.next_size
        seconds = seconds_of(size) / size * disturbed(number) if size <= longest else None
        search = search.timed(size, seconds, has_room=2 * size <= room)
    return search


def test_a_device_that_is_idle_in_small_micro_batches_gets_larger_ones():
    # Ten milliseconds and 0.1 a row: from 512 to 1024, a row is 13 % faster; from 2048 to 4096 2.4 %.
    search = found(lambda rows: 10 + 0.1 * rows)
    assert (search.size, search.ended, search.next_size) == (2048, "4096 are not 3 % faster", 2048)


def test_a_device_that_is_busy_keeps_the_loader_batch():
    search = found(lambda rows: 0.1 * rows)
    assert (search.size, search.ended) == (8, "16 are not 3 % faster")


def disturbance(seed, *, width, period=10**9):
    """A factor on each time: up to `width` at random, and two in every second stretch of `period`."""
    draw = random.Random(seed)
    return lambda number: (2 if number // period % 2 else 1) * (1 + width * draw.random())


# Where the gain of a doubling is near 3 %, either answer is right; a row is within 20 % of its shortest time from 512.
@pytest.mark.parametrize("period", [7, 23, 60, 10**9])
def test_neither_noise_nor_other_programs_mislead_it(period):
    for seed in range(30):
        idle = found(lambda rows: 10 + 0.1 * rows, disturbed=disturbance(seed, width=0.1, period=period))
        assert 512 <= idle.size <= 8192, (seed, idle)
        busy = found(lambda rows: 0.1 * rows, disturbed=disturbance(seed, width=0.1, period=period))
        assert busy.size <= 32, (seed, busy)


def test_it_waits_for_windows_that_are_long_enough():
    search = found(lambda rows: 10 + 0.1 * rows, longest=32)
    assert (search.size, search.ended, len(search.times), search.doubled) == (32, None, 1, ())


def test_it_ends_where_memory_does():
    search = found(lambda rows: 10 + 0.1 * rows, room=100)
    assert (search.size, search.ended) == (64, "128 may not fit into memory")


@pytest.mark.parametrize("first", [1e3, 1e-3])
def test_the_first_time_at_a_size_does_not_count(first):
    search = SizeSearch(size=8)
    for seconds in (first, *[1.0] * (TIMES_NEEDED - 1)):
        search = search.timed(8, seconds).timed(16, 0.5 if seconds == 1 else first)
    assert search == SizeSearch(size=16)


def test_a_doubling_must_fail_twice():
    search = SizeSearch(size=8)
    for failures in (1, 2):
        for _ in range(TIMES_NEEDED):
            assert search.ended is None
            search = search.timed(8, 1.0).timed(16, 1.0)
        assert search == SizeSearch(size=8, failures=1) or failures == 2
    assert search == SizeSearch(size=8, ended="16 are not 3 % faster")


def test_what_has_ended_or_was_not_asked_for_stays_as_it_is():
    ended, begun = SizeSearch(size=8, ended="done"), SizeSearch(size=8)
    assert ended.timed(8, 1.0) is ended
    assert begun.timed(None, 1.0) is begun.timed(32, 1.0) is begun.timed(8, None) is begun


@pytest.mark.parametrize(("limit", "size"), [(8, 8), (64, 16)])
def test_it_ends_where_memory_ran_out(limit, size):
    search = SizeSearch(size=16, times=(1.0,), doubled=(1.0,)).limited(limit)
    assert search == SizeSearch(size=size, ended="larger ones do not fit into memory")
    assert search.timed(size, 0.1) is search
