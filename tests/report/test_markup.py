"""Markup: what is text stays text, and what the page may not have cannot be written."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_bsscale.report.markup import LONGEST_TEXT, Markup, cut, data_block, number, tag, text
from tests.helpers.read_page import _Reader


def parsed(markup):
    reader = _Reader()
    reader.feed(markup)
    reader.close()
    return reader.root


@given(st.text())
def test_any_text_is_one_text(words):
    (element,) = parsed(tag("p", words, aria_label=words)).children
    assert element.name == "p"
    assert element.text == element.attributes["aria-label"]
    assert {"Cc", "Cf", "Cs", "Zl", "Zp"}.isdisjoint(map(unicodedata.category, element.text))


def test_marks_that_turn_the_direction_are_shown():
    assert text("a\u202eb\u2066\x1b\ud800") == "a[U+202E]b[U+2066][U+001B][U+D800]"
    assert text("two\nlines") == "two lines"
    assert text("日本語 éα 🙂") == "日本語 éα 🙂"


def test_markup_is_written_once_only():
    inner = tag("strong", "<")
    assert text(inner) is inner
    assert tag("p", [inner, None, [" & "]]) == "<p><strong>&lt;</strong> &amp; </p>"
    assert text(str(inner)).startswith("&lt;strong&gt;")


@pytest.mark.parametrize("given", [dict(onload="x"), dict(style="x")])
def test_attributes_that_run_or_style_are_no_attributes(given):
    with pytest.raises(AssertionError):
        tag("p", **given)


@pytest.mark.parametrize("name", ["iframe", "img", "p onload=x", "P"])
def test_other_elements_are_no_elements(name):
    with pytest.raises(AssertionError):
        tag(name)


def test_attributes():
    assert tag("input", checked=True, id=None, class_="a", http_equiv="b") == '<input checked class="a" http-equiv="b">'
    assert tag("path", d="M0 0", viewBox="0") == '<path d="M0 0" viewBox="0"/>'


@pytest.mark.parametrize(("value", "written"), [(1.0, "1"), (1.25, "1.2"), (-0.01, "0"), (330, "330"), (0.96, "1")])
def test_numbers_are_short(value, written):
    assert number(value) == written


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_place_is_a_number(value):
    with pytest.raises(AssertionError):
        number(value)


@given(st.dictionaries(st.text(), st.text()))
def test_data_cannot_end_its_element(data):
    (element,) = parsed(data_block("data", data)).children
    assert json.loads(element.text) == data


def test_long_texts_are_cut():
    assert cut("x" * LONGEST_TEXT) == "x" * LONGEST_TEXT
    assert len(cut("x" * (LONGEST_TEXT + 1))) == LONGEST_TEXT
    assert isinstance(text("x"), Markup)
