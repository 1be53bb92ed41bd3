"""Records made plain, checked, and made again."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from lightning_bsscale.theory.records import DecisionRecord, Measurement
from lightning_bsscale.theory.state import RunState
from lightning_bsscale.theory.stored import FRACTIONS, as_plain, check_stored, from_plain, plain_value
from tests.helpers.records import DECISION, LIMITS, MEASUREMENT
from tests.helpers.simulated_run import Host, Program

# A window in progress, one whose sums have arrived, decisions, measurements: every field has a value.
PLACES = Program().places()
HOST = Host.begin(Program(batches=(2, 3, 2), accumulate=2, ranks=2)).train(PLACES[:8])
STATE = replace(HOST.snapshot(), cut=None)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float64(1.5), 1.5),
        (np.int32(3), 3),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (math.nan, "nan"),
        (np.float32("inf"), "inf"),
        (True, True),
        (((1, math.nan), [None]), [[1, "nan"], [None]]),
        ({"a": LIMITS}, {"a": {"granularity": 8, "min_batch_size": 8, "max_batch_size": 64}}),
    ],
)
def test_plain_values(value, plain):
    assert plain_value(value) == plain
    assert type(plain_value(value)) is type(plain)
    json.dumps(plain_value(value), allow_nan=False)


@pytest.mark.parametrize("record", [DECISION, MEASUREMENT, STATE], ids=lambda record: type(record).__name__)
def test_through_json_and_back(record):
    plain = json.loads(json.dumps(as_plain(record), allow_nan=False))
    check_stored(type(record), plain, fractions=FRACTIONS)
    assert as_plain(record) == plain
    assert repr(from_plain(type(record), plain)) == repr(record)  # NaN is not equal to itself


def changed(plain, path, value):
    """The same with one field replaced; a path of names and indexes."""
    *outer, last = path
    plain = json.loads(json.dumps(plain))
    inner = plain
    for name in outer:
        inner = inner[name]
    if value is KeyError:
        del inner[last]
    else:
        inner[last] = value
    return plain


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["windows"], -1, "windows must be a whole number"),
        (["windows"], 1.5, "windows must be a whole number"),
        (["windows"], True, "windows must be a whole number"),
        (["windows"], KeyError, "lacks windows"),
        (["weather"], 1, "has unknown fields: 'weather'"),
        (["is_resumed"], 1, "is_resumed must be true or false"),
        (["window"], [], "window must be an object with the fields of a OpenWindow"),
        (["window", "planned"], "2", "window.planned must be a whole number"),
        (["batch", "lr_scale"], "big", "batch.lr_scale must be a finite number"),
        (["batch", "lr_scale"], None, "batch.lr_scale must be a finite number"),
        (["batch", "path", "product"], 10**400, "batch.path.product must be a finite number"),
        (["measured", "history"], {}, "measured.history must be a list"),
        (["measured", "history", 0, "lr"], [], "measured.history must be a list, but an item lr must be"),
        (["pending", "arrived", "sums", "num_samples"], None, "pending.arrived.sums.num_samples must be a whole"),
        (["decisions", "records", 0, "lr_rule"], 3, "decisions.records must be a list, but an item lr_rule must be"),
        (["position", "origin"], [0], "position.origin must be a list of 2"),
        (["position", "origin"], [0, 0, 0], "position.origin must be a list of 2"),
        (["position", "before", 0], [1], "position.before must be a list, but an item must be a list of 2"),
        (["position", "origin", 1], "x", "position.origin must be a list, but an item must be a whole"),
    ],
)
def test_what_is_wrong_is_named(path, value, words):
    plain = as_plain(STATE)
    check_stored(RunState, plain, fractions=FRACTIONS)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        check_stored(RunState, changed(plain, path, value), fractions=FRACTIONS)
    assert words in str(caught.value)


def test_a_fraction_is_one_where_it_is_allowed():
    plain = changed(as_plain(DECISION), ["decision", "batch_size"], 11.9)
    check_stored(DecisionRecord, plain, fractions=FRACTIONS)
    with pytest.raises(ValueError, match=r"decision\.batch_size must be a whole number"):
        check_stored(DecisionRecord, plain)
    check_stored(Measurement, as_plain(MEASUREMENT))
