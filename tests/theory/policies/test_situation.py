import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_bsscale.theory.policies import Limits


@pytest.mark.parametrize(
    ("asked", "expected"), [(0, 8), (8, 8), (15.9, 8), (16, 16), (100, 96), (1e9, 96), (math.inf, 96)]
)
def test_clip_rounds_down_and_stays_within(asked, expected):
    assert Limits(granularity=8, min_batch_size=5, max_batch_size=100).clip(asked) == expected


@given(st.integers(1, 20), st.integers(1, 200), st.integers(0, 200), st.floats(0, 1e4))
def test_clip_gives_only_possible_batches(granularity, smallest, width, asked):
    largest = smallest + width + granularity
    batch = Limits(granularity=granularity, min_batch_size=smallest, max_batch_size=largest).clip(asked)
    assert batch % granularity == 0
    assert smallest <= batch <= largest
    assert batch <= asked or batch < smallest + granularity


@pytest.mark.parametrize(
    ("granularity", "smallest", "largest", "error", "message"),
    [
        (0, 1, 8, ValueError, "granularity must be an integer of at least 1, got 0"),
        (8, 8.0, 8, TypeError, "min_batch_size must be an integer of at least 1, got 8.0"),
        (8, 9, 15, ValueError, "must have a multiple of granularity between them, got 9, 15 and a granularity of 8"),
    ],
)
def test_bounds_are_checked(granularity, smallest, largest, error, message):
    with pytest.raises(error, match=message):
        Limits(granularity=granularity, min_batch_size=smallest, max_batch_size=largest)


def test_nan_is_no_batch_size():
    with pytest.raises(ValueError, match="batch_size must be a number at least 0, got nan"):
        Limits(granularity=8, min_batch_size=8, max_batch_size=8).clip(math.nan)
