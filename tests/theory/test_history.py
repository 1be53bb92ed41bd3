"""Measured windows kept as numbers are the same windows, read as a list of them."""

import copy
import math
import pickle
import random
import re
import tracemalloc
from dataclasses import fields, replace

import pytest

import lightning_bsscale.theory.history as packed
from lightning_bsscale.theory.history import CHUNK, History
from lightning_bsscale.theory.measured import ClosedWindow, MeasuredWindows
from tests.helpers.records import MEASUREMENT, NOISE
from tests.helpers.simulated import equal_sums

SIZES = [0, 1, CHUNK, 2 * CHUNK - 1, 2 * CHUNK, 3 * CHUNK, 5 * CHUNK + 7]


def windows(count):
    """Measured windows with every kind of number, some without an estimate."""
    dice = random.Random(0)

    def number():
        return dice.choice([dice.gauss(0, 1), dice.gauss(0, 1) * 10.0 ** dice.randint(-300, 300), 0.0, math.inf])

    def noise():
        numbers = {field.name: number() for field in fields(NOISE) if field.name != "resolved"}
        return replace(NOISE, **numbers, resolved=dice.random() < 0.5)

    return [
        replace(
            MEASUREMENT,
            examples_seen=10**18 + 8 * place,
            optimizer_steps=place,
            trace=number(),
            grad_sq=-number(),
            lr=number(),
            noise=noise() if dice.random() < 0.8 else None,
        )
        for place in range(count)
    ]


def added(records):
    history = History()
    for record in records:
        history = history.added(record)
    return history


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("make", [History, added])
def test_it_is_read_as_a_list(make, count):
    records = windows(count)
    history = make(records)
    assert list(history) == records
    assert (len(history), bool(history)) == (count, bool(records))
    assert [history[place] for place in range(-count, count)] == records * 2
    for places in (slice(None), slice(-1, None), slice(3, -3), slice(None, None, -2), slice(0, 10**6, 7)):
        assert history[places] == records[places]
    assert list(reversed(history)) == records[::-1]
    for place in (count, -count - 1):
        with pytest.raises(IndexError, match=f"{count} measured windows, but not one with the index {place}"):
            history[place]


@pytest.mark.parametrize("count", SIZES)
def test_equal_windows_make_equal_histories(count):
    records = windows(count)
    history = History(records)
    assert history == added(records) == records == history == tuple(records)
    assert history != [*records, MEASUREMENT]
    assert history != "windows"
    assert history != History([*records[:-1], MEASUREMENT])
    for copied in (copy.deepcopy(history), pickle.loads(pickle.dumps(history)), history[:5]):
        assert copied == history[: len(copied)]


def test_windows_whose_numbers_are_unknown_are_equal_to_themselves():
    unknown = [replace(MEASUREMENT, trace=math.nan, noise=None)] * (3 * CHUNK)
    assert History(unknown) == added(unknown)
    assert all(math.isnan(made.trace) for made in History(unknown))


def test_a_history_does_not_change_when_a_window_is_added():
    records = windows(3 * CHUNK)
    shorter = [added(records[:count]) for count in range(len(records))]
    for count, history in enumerate(shorter):
        assert [made.optimizer_steps for made in history.added(MEASUREMENT)][:-1] == list(range(count))
        assert len(history) == count


@pytest.mark.parametrize("huge", [2**63, 10**300])
def test_a_number_that_no_machine_holds_stays(huge):
    """As in a damaged checkpoint, whose whole numbers may have any number of digits."""
    records = windows(4 * CHUNK)
    records[3] = replace(records[3], examples_seen=huge)
    history = History(records)
    assert list(history) == records
    assert history[3].examples_seen == huge
    assert history[3 - len(records)] == records[3]


def test_the_module_says_how_many_numbers_a_record_has_and_what_they_take_packed():
    names = [field.name for field in (*fields(MEASUREMENT), *fields(NOISE)) if field.name != "noise"]
    (numbers,), (size,) = (re.findall(pattern, packed.__doc__) for pattern in (r"holds (\d+) num", r"packed (\d+)"))
    assert (int(numbers), int(size)) == (len(names), packed._LAYOUT.size)


def test_a_window_takes_less_than_200_bytes():
    dice, record = random.Random(0), MeasuredWindows()

    def measured(record, first, count):
        for number in range(first, first + count):
            sums = equal_sums(4 * 3 * dice.uniform(0.5, 1.5), dice.uniform(0.5, 1.5), 4, 4)
            numbers = dict(examples_seen=16 * number, optimizer_steps=number, batch_size=1000, loader_batches=300)
            window = ClosedWindow(**numbers, lr=dice.random(), lr_scale=dice.random())
            record = record.added(sums, window, memory=math.inf)
        return record

    record = measured(record, 1, 500)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        record = measured(record, 501, 3000)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(record.history) == 3500
    assert taken / 3000 < 200
