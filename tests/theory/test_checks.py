import math

import numpy as np
import pytest

from lightning_bsscale.theory.checks import as_number, as_numbers, check_integer, check_number, show


@pytest.mark.parametrize("value", [1, 1.5, np.float32(1.5), np.int64(3)])
def test_numbers_of_any_kind_pass_as_floats(value):
    assert type(check_number("x", value)) is float
    assert check_number("x", value) == value


@pytest.mark.parametrize("value", [True, False, np.True_, "1", None, [1], 1j])
def test_what_is_no_number_is_refused_by_type(value):
    with pytest.raises(TypeError, match=r"^x must be a finite number above 0, got .* \(\w+\)$"):
        check_number("x", value, above=0)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, -math.inf])
def test_numbers_out_of_bounds_are_refused_by_value(value):
    with pytest.raises(ValueError, match=rf"^x must be a finite number above 0, got {value}$"):
        check_number("x", value, above=0)


def test_all_bounds_hold_and_are_named():
    with pytest.raises(ValueError, match=r"at least 0 and at most 1, got 1\.5"):
        check_number("x", 1.5, at_least=0, at_most=1)
    for bound in (0, 1):
        with pytest.raises(ValueError, match=f"above 0 and below 1, got {bound}"):
            check_number("x", bound, above=0, below=1)
    assert check_number("x", 0, at_least=0, at_most=0) == 0


def test_infinity_passes_where_it_has_leave_and_nan_never():
    assert check_number("x", math.inf, above=0, may_be_infinite=True) == math.inf
    with pytest.raises(ValueError, match="a number above 0, got nan"):
        check_number("x", math.nan, above=0, may_be_infinite=True)
    with pytest.raises(ValueError, match="a finite number, got nan"):
        check_number("x", math.nan)


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (1.0, TypeError), (True, TypeError), ("1", TypeError), (None, TypeError)]
)
def test_integers_pass_from_the_bound_and_nothing_else_does(value, error):
    assert check_integer("n", np.int64(1), at_least=1) == 1
    with pytest.raises(error, match=rf"^n must be an integer of at least 1, got '?{value}"):
        check_integer("n", value, at_least=1)


@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_what_no_float_can_hold_is_out_of_bounds(value):
    with pytest.raises(ValueError, match=r"^x must be a finite number, got "):
        check_number("x", value)
    assert check_number("x", abs(value), may_be_infinite=True) == math.inf


def test_what_was_found_is_shown_in_one_short_line():
    assert show(np.ones((2, 2))) == "array([[1., 1.], [1., 1.]])"
    assert show("a" * 1000) == "'" + "a" * 115 + " ..."
    assert show(int) == "the class int instead of an instance"
    with pytest.raises(TypeError, match=r"^x must be a finite number, got \[0, 1, .* \.\.\. \(list\)$"):
        check_number("x", list(range(1000)))


class OneElement:
    """What NumPy's arrays and torch's tensors have in common; theory knows neither."""

    def __init__(self, *values):
        self.values = values

    def item(self):
        if len(self.values) != 1:
            raise RuntimeError("several")
        return self.values[0]


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.array(2), np.array([2.0]), OneElement(2)])
def test_one_number_of_any_kind(value):
    assert as_number("x", value) == 2.0
    assert type(as_number("x", value)) is float


def test_as_number_lets_nan_and_infinity_pass():
    assert math.isnan(as_number("x", math.nan))
    assert as_number("x", -math.inf) == -math.inf


@pytest.mark.parametrize(
    "value", [True, np.True_, OneElement(True), "2", None, [2], 2j, np.ones(2), np.ones(0), OneElement(1, 2), int]
)
def test_what_is_not_one_number(value):
    with pytest.raises(TypeError, match=r"^x must be a number \(or a tensor of one element\), got .* \(\w+\)$"):
        as_number("x", value)


@pytest.mark.parametrize("values", [[1, 2], (1.0, 2.0), np.array([1, 2]), iter([1, 2]), {1: 0, 2: 0}])
def test_several_numbers(values):
    assert as_numbers("x", values) == [1.0, 2.0]


@pytest.mark.parametrize("values", [None, 3, "12", OneElement(1)])
def test_what_is_no_sequence(values):
    with pytest.raises(TypeError, match=r"^x must be a sequence of numbers, got "):
        as_numbers("x", values)


@pytest.mark.parametrize("values", [np.array(1.0), np.ones((2, 2))])
def test_what_has_other_dimensions(values):
    with pytest.raises(ValueError, match=r"^x must have one dimension, got the shape "):
        as_numbers("x", values)


def test_a_wrong_item_is_named_by_its_place():
    with pytest.raises(TypeError, match=r"^x\[1\] must be a number .*, got None"):
        as_numbers("x", [1, None])
