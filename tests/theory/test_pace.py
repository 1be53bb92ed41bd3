import math
import statistics

import pytest

from lightning_bsscale.theory.pace import MIN_FIRST_WINDOWS, Pace


def pace_of(*windows):
    """The pace of windows, given by seconds, examples, and whether they are of the first batch and not measured."""
    pace = Pace()
    for seconds, examples, is_first in windows:
        pace = pace.added(seconds, examples, is_plain_first=is_first)
    return pace


def test_the_plans_seconds_are_those_of_the_first_batchs_windows():
    first = [(3.0, 4, True)] * MIN_FIRST_WINDOWS
    pace = pace_of(*first, (3.5, 4, False), (10.0, 32, False))
    assert pace.seconds == 24 + 13.5
    assert pace.examples == 4 * 9 + 32
    assert pace.seconds_of_plan == pytest.approx(3.0 / 4 * (4 * 9 + 32))


def test_they_are_unknown_from_too_few_windows():
    pace = pace_of(*[(3.0, 4, True)] * (MIN_FIRST_WINDOWS - 1), *[(3.0, 4, False)] * 100)
    assert pace.seconds_of_plan is None
    assert pace.relative_error == math.inf


def test_their_error_is_that_of_a_mean():
    seconds = [1.0, 2.0, 4.0, 3.0, 2.5, 1.5, 2.0, 3.5, 2.2]
    pace = pace_of(*[(one, 4, True) for one in seconds])
    error = statistics.stdev(seconds) / math.sqrt(len(seconds)) / statistics.mean(seconds)
    assert pace.relative_error == pytest.approx(error)


def test_a_pause_is_no_training():
    steady = pace_of(*[(1.0, 4, True)] * 10)
    assert steady.added(80.0, 32, is_plain_first=False).windows == 11  # ten times as long an example, and no more
    assert steady.added(81.0, 32, is_plain_first=False) is steady
    assert steady.added(None, 4, is_plain_first=True) is steady
