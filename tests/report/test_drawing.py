"""Axes and the parts of a picture: what is drawn is where its numbers are."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_bsscale.report.axes import linear, logarithmic, short
from lightning_bsscale.report.drawing import band, frame, line, picture, spans, stairs

X = linear([0, 100], 0, 100)
Y = linear([0, 100], 100, 0)


def places(markup):
    return re.search(r' d="([^"]*)"', markup)[1]


def test_a_line_has_gaps_where_nothing_is_known():
    drawn = line([(0, 0), (10, 20), (20, math.nan), (30, 30), (40, math.inf), (50, 50)], X, Y, "noise")
    assert places(drawn) == "M0 100h.1L10 80M30 70h.1M50 50h.1"
    assert line([(0, math.nan)], X, Y, "noise") is None


def test_a_staircase_keeps_each_value_until_the_next():
    assert places(stairs([(0, 8), (25, 16), (100, 16)], X, Y, "batch")) == "M0 92H25V84H100V84"


def test_steps_on_one_place_become_one():
    drawn = places(stairs([(0, 0), *((50 + index / 1000, index) for index in range(100)), (100, 99)], X, Y, "batch"))
    assert drawn.endswith("H100V1")
    assert drawn.count("H") == 2


def test_a_band_reaches_the_edge_where_its_end_is_infinite():
    assert places(band([(0, 10, 20), (50, 0, math.inf), (60, math.nan, 1)], X, Y, "band")) == "M0 80L50 0L50 100L0 90Z"
    assert band([(0, 10, 20)], X, Y, "band") is None


def test_spans_that_touch_are_one():
    drawn = spans([(0, 10), (10, 20), (50, 50.1)], X, "span", top=0, bottom=5)
    assert [re.search(r' x="(.*?)".* width="(.*?)"', one).groups() for one in drawn] == [("0", "20"), ("50", "0.6")]


NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(NUMBERS, max_size=5), st.booleans(), st.booleans())
def test_an_axis_holds_what_can_be_drawn(values, is_log, from_zero):
    scale = logarithmic(values, 0, 100) if is_log else linear(values, 0, 100, from_zero=from_zero)
    assert math.isfinite(scale.low)
    assert scale.low < scale.high
    assert all(scale.low <= tick <= scale.high * (1 + 1e-9) for tick in scale.ticks)
    assert len(scale.ticks) <= 20
    for value in values:
        if not math.isnan(value):
            assert 0 <= scale.place(value) <= 100
    frame(scale, scale, "x")


def test_ticks_are_round():
    assert linear([0, 33_675], 0, 1).ticks == (0, 10_000, 20_000, 30_000)
    assert logarithmic([4, 300], 0, 1).ticks == (4, 8, 16, 32, 64, 128, 256)


@pytest.mark.parametrize(
    ("value", "words"), [(0, "0"), (0.05, "0.05"), (999, "999"), (1000, "1k"), (33_675, "33.7k"), (2.5e9, "2.5B")]
)
def test_numbers_of_ticks_are_short(value, words):
    assert short(value) == words


def test_a_picture_is_named_and_described():
    drawn = picture("a", "Title <b>", "What is seen", axis="steps")
    assert 'role="img"' in drawn
    assert 'aria-labelledby="a-title a-description"' in drawn
    assert '<title id="a-title">Title &lt;b&gt;</title><desc id="a-description">What is seen</desc>' in drawn
