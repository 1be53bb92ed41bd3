import math

import numpy as np
import pytest

from lightning_bsscale.theory.checks import check_integer, check_number


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
    with pytest.raises(ValueError, match=r"above 0 and below 1, got 1"):
        check_number("x", 1, above=0, below=1)
    with pytest.raises(ValueError, match=r"above 0 and below 1, got 0"):
        check_number("x", 0, above=0, below=1)
    assert check_number("x", 0, at_least=0, at_most=0) == 0


def test_infinity_passes_where_it_has_leave_and_nan_never():
    assert check_number("x", math.inf, above=0, may_be_infinite=True) == math.inf
    with pytest.raises(ValueError, match="a number above 0, got nan"):
        check_number("x", math.nan, above=0, may_be_infinite=True)
    with pytest.raises(ValueError, match="a finite number, got nan"):
        check_number("x", math.nan)


@pytest.mark.parametrize("value", [1.0, True, "1", None])
def test_what_is_no_integer_is_refused(value):
    with pytest.raises(TypeError, match=r"^n must be an integer of at least 1, got"):
        check_integer("n", value, at_least=1)


def test_integers_pass_from_the_bound():
    assert check_integer("n", np.int64(1), at_least=1) == 1
    with pytest.raises(ValueError, match=r"^n must be an integer of at least 1, got 0$"):
        check_integer("n", 0, at_least=1)
