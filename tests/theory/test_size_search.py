"""The search for the fastest micro-batch size: where it ends, by a device whose times are known."""

import random

import pytest

from lightning_bsscale.theory.size_search import TIMES_NEEDED, SizeSearch


def found(seconds_of, *, start=8, longest=10**6, room=10**9, noise=0.0, seed=0):
    """The search at its end, or when nothing changes any more."""
    draw, search = random.Random(seed), SizeSearch(size=start)
    for _ in range(40 * TIMES_NEEDED):
        is_tried = search.size <= longest
        seconds = seconds_of(search.size) / search.size * draw.uniform(1 - noise, 1 + noise) if is_tried else None
        search = search.timed(seconds, has_room=2 * search.size <= room)
    return search


def test_a_device_that_is_idle_in_small_micro_batches_gets_larger_ones():
    # Ten milliseconds and 0.1 a row: from 512 to 1024, a row is 13 % faster; from 2048 to 4096 2.4 %.
    search = found(lambda rows: 10 + 0.1 * rows)
    assert (search.size, search.ended) == (2048, "4096 are not 3 % faster")


def test_a_device_that_is_busy_keeps_the_loader_batch():
    search = found(lambda rows: 0.1 * rows)
    assert (search.size, search.ended) == (8, "16 are not 3 % faster")


def test_noise_of_a_few_percent_misleads_by_a_doubling_at_most():
    for seed in range(30):
        assert found(lambda rows: 10 + 0.1 * rows, noise=0.05, seed=seed).size in {512, 1024, 2048, 4096}
        assert found(lambda rows: 0.1 * rows, noise=0.05, seed=seed).size in {8, 16}


def test_it_waits_for_windows_that_are_long_enough():
    search = found(lambda rows: 10 + 0.1 * rows, longest=32)
    assert (search.size, search.ended, search.times) == (64, None, ())


def test_it_ends_where_memory_does():
    search = found(lambda rows: 10 + 0.1 * rows, room=100)
    assert (search.size, search.ended) == (64, "128 may not fit into memory")


@pytest.mark.parametrize("first", [1e3, 1e-3])
def test_the_first_time_at_a_size_does_not_count(first):
    search = SizeSearch(size=8)
    for seconds in (first, *[1.0] * (TIMES_NEEDED - 1), first, *[0.5] * (TIMES_NEEDED - 1)):
        search = search.timed(seconds)
    assert (search.size, search.before, search.ended) == (32, 0.5, None)


def test_what_has_ended_stays_as_it_is():
    search = SizeSearch(size=8, ended="done")
    assert search.timed(1.0) is search


@pytest.mark.parametrize(("limit", "size"), [(8, 8), (64, 16)])
def test_it_ends_where_memory_ran_out(limit, size):
    search = SizeSearch(size=16, before=1.0, times=(1.0,)).limited(limit)
    assert search == SizeSearch(size=size, ended="larger ones do not fit into memory")
    assert search.timed(0.1) is search
