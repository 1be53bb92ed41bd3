"""The unit that a run counts in."""

from dataclasses import replace

import pytest

from lightning_bsscale.theory.start import Start, describe_change, read_unit

FIRST = Start(granularity=12, loader_batch_size=12, world_size=3, accumulate=2)


def test_sizes_of_a_start():
    assert (FIRST.batch_size, FIRST.granularity_per_rank, FIRST.own_granularity) == (24, 4, None)
    uneven = replace(FIRST, granularity=13)
    assert uneven.granularity_per_rank == pytest.approx(13 / 3)
    assert replace(FIRST, world_size=1).own_granularity == 12


@pytest.mark.parametrize(
    ("found", "loader_batch_size", "world_size", "first", "unit"),
    [
        (9, 12, 3, None, 9),  # a run that begins believes what it sees
        (9, 12, 3, FIRST, 12),  # a resumed one may begin with a short loader batch
        (9, None, 3, FIRST, 12),
        (9, 24, 3, FIRST, 24),  # the loaders say that it was changed
        (9, 8, 2, FIRST, 8),  # the same on each of fewer ranks
        (9, 8, 2, replace(FIRST, loader_batch_size=None), 8),
        (1, 1, 4, replace(FIRST, granularity=3), 4),  # one example for each rank at least
    ],
)
def test_the_unit_of_a_resumed_run_is_kept_unless_the_loaders_say_otherwise(
    found, loader_batch_size, world_size, first, unit
):
    assert read_unit(found, loader_batch_size, world_size, first) == unit


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"loader_batch_size": None}, ""),
        ({"accumulate": 1}, "accumulate_grad_batches=1 instead of 2"),
        ({"granularity": 13}, "loader batches of 4.3 instead of 4 examples"),
        ({"world_size": 2}, "loader batches of 6 instead of 4 examples, 2 instead of 3 devices"),
    ],
)
def test_a_change_is_described(changes, words):
    assert describe_change(FIRST, replace(FIRST, **changes)) == words
