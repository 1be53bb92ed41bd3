"""Averages of limited influence: where they equal plain ones, where they differ, and what that costs."""

import dataclasses
import json
import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_bsscale.theory.estimate import Averages
from lightning_bsscale.theory.robust import START, RobustAverages
from lightning_bsscale.theory.stored import as_plain, from_plain
from tests.helpers.simulated import averaged, heavy_tailed_windows, window

robust = partial(averaged, kind=RobustAverages)


def ordinary(count, seed=0, level=8.0):
    rng = np.random.default_rng(seed)
    return [window(t, g) for t, g in zip(rng.normal(level, 1, count), rng.normal(1, 0.3, count), strict=True)]


@pytest.mark.parametrize("count", [1, 2, 4, START - 1, START, START + 1, 100])
@pytest.mark.parametrize("memory", [math.inf, 300])
def test_ordinary_windows_are_averaged_as_plain_ones(count, memory):
    found = robust(ordinary(count), memory)
    assert found.limited == 0
    assert found.sums.to_state() == pytest.approx(averaged(ordinary(count), memory).to_state())


@pytest.mark.parametrize("size", [10, 1000, 1e12])
@pytest.mark.parametrize("position", [0, 3, START - 1, START, 50])
def test_one_spike_hardly_moves_the_estimate(position, size):
    windows = ordinary(100)
    clean = robust(windows).noise_scale()
    windows[position] = window(8 * size**2, size)
    spiked, plain = robust(windows), averaged(windows)
    assert spiked.limited == 1
    assert spiked.noise_scale().resolved
    assert spiked.noise_scale().trace == pytest.approx(clean.trace, rel=0.1)
    assert spiked.noise_scale().low > 0.7 * clean.low
    assert plain.noise_scale().low < 0.4 * clean.low  # the twin


@pytest.mark.parametrize("position", [2, 5])
def test_a_spike_among_the_first_windows_is_found_as_soon_as_there_are_four(position):
    windows = ordinary(START)
    windows[position] = window(8e6, 1e3)
    for count in range(max(4, position + 1), START + 1):
        assert robust(windows[:count]).limited == 1


def test_two_spikes_are_both_limited():
    windows = ordinary(60)
    windows[20], windows[40] = window(8e6, 1e3), window(8e4, 100)
    assert robust(windows).limited == 2


@pytest.mark.parametrize("jump", [100.0, 0.01, 1e4])
@pytest.mark.parametrize("memory_in_windows", [20, 100])
def test_a_lasting_change_of_level_enters_within_a_memory(jump, memory_in_windows):
    """It is not a spike: after one memory the average is nearly where the plain one is."""
    memory = 16 * memory_in_windows
    before, after = ordinary(3 * memory_in_windows), ordinary(memory_in_windows, seed=1)
    after = [window(m.trace * jump, m.grad_sq * jump) for m in after]
    found, plain = robust(before + after, memory), averaged(before + after, memory)
    assert found.noise_scale().trace == pytest.approx(plain.noise_scale().trace, rel=0.25)


def test_a_memory_of_few_windows_limits_nothing():
    """What is usual cannot be told from less than four windows."""
    windows = ordinary(30)
    windows[20] = window(8e6, 1e3)
    assert robust(windows, memory=16).limited == 0
    assert robust(windows, memory=64).limited == 1


@pytest.mark.parametrize(("difference", "last"), [(0.0, 900.0), (1e-3, 10.0)], ids=["no", "hardly any"])
def test_windows_without_a_spread_limit_nothing(difference, last):
    windows = [window(8.0 * (1 + difference * (i % 3))) for i in range(30)]
    assert robust([*windows, window(last)]).limited == 0


def test_small_windows_may_scatter_more():
    """A window of a quarter of the examples has twice the standard deviation."""
    windows = ordinary(100)
    mean, spread = 8.0, averaged(windows).spread[0]
    far = mean + 60 * spread
    assert robust([*windows, window(far)]).limited == 1
    assert robust([*windows, window(far, examples=4.0)]).limited == 0


@pytest.mark.parametrize("bad", [window(math.nan), window(math.inf), window(8, -math.inf), window(1e200)])
@pytest.mark.parametrize("position", [0, 3, 30])
def test_windows_that_are_not_finite_are_dropped_not_limited(bad, position):
    windows = ordinary(40)
    with_bad = [*windows[:position], bad, *windows[position:]]
    found = robust(with_bad, 400)
    assert (found.dropped, found.limited) == (1, 0)
    assert found.sums.to_state() == pytest.approx(averaged(with_bad, 400).to_state())


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(-1e3, 1e3), st.integers(1, 99)), max_size=12), st.integers(0, 12)
)
def test_a_run_that_stops_and_resumes_is_the_same(values, stop):
    """State goes through JSON, as the strictest of what a checkpoint may pass."""
    windows = [window(trace, grad_sq, float(examples)) for trace, grad_sq, examples in values]
    whole, resumed = RobustAverages(), RobustAverages()
    for index, moments in enumerate(windows):
        if index == stop:
            resumed = from_plain(RobustAverages, json.loads(json.dumps(as_plain(resumed))))
        whole = whole.updated(moments, examples_since_last=20, memory=100)
        resumed = resumed.updated(moments, examples_since_last=20, memory=100)
    assert whole == resumed


@pytest.mark.parametrize("count", [5, 30])
def test_emptied_averages_keep_their_counts_and_start_anew(count):
    windows = [*ordinary(count), window(8e6, 1e3), window(math.nan)]
    emptied = robust(windows).cleared()
    assert (emptied.limited, emptied.dropped, emptied.noise_scale()) == (1, 1, None)
    again = averaged(windows, kind=lambda: emptied)
    assert (again.limited, again.dropped) == (2, 2)
    assert again.noise_scale() == robust(windows).noise_scale()


def test_the_state_is_bounded():
    short, long = (robust(ordinary(count), 400) for count in (50, 5000))
    assert len(json.dumps(as_plain(long))) < 1.2 * len(json.dumps(as_plain(short)))


# Simulated: bias and coverage

MEMORY = 25  # measured windows


@pytest.fixture(scope="module", params=["gaussian", "student", "student per example", "log-normal"])
def looks(request):
    """For each look at the interval: plain and robust estimates, and the truth (the memory's own weighted mean)."""
    rng = np.random.default_rng(5)
    found = {kind: [] for kind in (Averages, RobustAverages)}
    for _ in range(60):
        traces, squares = heavy_tailed_windows(rng, request.param, 5 * MEMORY, trace=80.0, grad_sq=1.0)
        for kind, kept in found.items():
            averages = kind()
            for index, (trace, grad_sq) in enumerate(zip(traces, squares, strict=True)):
                averages = averages.updated(window(trace, grad_sq), examples_since_last=16, memory=16.0 * MEMORY)
                if index >= 2 * MEMORY and index % MEMORY == 0:
                    kept.append(averages.noise_scale())
    return request.param, found


def symmetric(noise):
    return dataclasses.replace(noise, third_moment=0.0)


def test_the_trace_is_unbiased(looks):
    """To within two percent, but where the square of a single example's norm has no variance: its giants are spikes."""
    family, found = looks
    traces = np.array([noise.trace for noise in found[RobustAverages]])
    error = 3 * traces.std() / math.sqrt(traces.size / 2)  # looks of one run share a part of their memory
    lowest = 80.0 * (0.96 if family == "student per example" else 0.98) - error
    assert lowest <= traces.mean() <= 80.0 * 1.01 + error
    assert np.mean([noise.grad_sq for noise in found[RobustAverages]]) == pytest.approx(1.0, rel=0.02)


def test_the_interval_covers_the_truth(looks):
    family, found = looks
    covered = np.mean([noise.low <= 80.0 <= noise.high for noise in found[RobustAverages]])
    assert 0.85 - 0.03 <= covered <= 0.95 + 0.02  # 180 looks, three a run: a standard error of about 0.025
    if family in ("student per example", "log-normal"):
        # The twin: without the longer upper end.
        short = [noise.low <= 80.0 <= symmetric(noise).upper_bound(0.95) for noise in found[Averages]]
        assert np.mean(short) < 0.82
