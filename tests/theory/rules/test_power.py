import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_bsscale.theory.rules import Constant, Linear, Power, Sqrt
from tests.helpers.simulated import ratios


@pytest.mark.parametrize("scale", [1e-6, 512.0, 1e12])
def test_golden_rows(scale):
    assert ratios(Constant(), scale=scale) == [1, 1, 1, 1]
    assert ratios(Linear(), scale=scale) == [1, 2, 4, 8]
    assert ratios(Sqrt(), scale=scale) == pytest.approx((1, 1.414214, 2, 2.828427), rel=1e-6)
    assert ratios(Power(), scale=scale) == pytest.approx((1, 1.681793, 2.828427, 4.756828), rel=1e-6)


@given(st.floats(0, 1), st.floats(1, 1e3), st.floats(0.1, 100))
def test_the_exponent_is_the_slope_in_logarithms(exponent, old, growth):
    ratio = Power(exponent).ratio(old, old * growth, None)
    assert math.log(ratio) == pytest.approx(exponent * math.log(growth), rel=1e-6, abs=1e-9)
