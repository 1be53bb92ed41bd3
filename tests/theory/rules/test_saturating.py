import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_bsscale.theory.rules import Saturating
from tests.helpers.simulated import noise_of, ratios


def test_golden_row():
    # By hand, at 1, 2, 4, 8 times 64 and a noise scale of 512: 9 / (1 + 8/r).
    assert ratios(Saturating()) == pytest.approx((1, 1.8, 3, 4.5), rel=1e-6)


@given(st.floats(1, 1e3))
def test_linear_far_below_the_noise_scale_and_flat_far_above(old):
    assert ratios(Saturating(), old=old, scale=1e12) == pytest.approx((1, 2, 4, 8), rel=1e-6)
    assert ratios(Saturating(), old=old, scale=1e-7) == pytest.approx((1, 1, 1, 1), rel=1e-6)


@given(st.floats(1, 1e4), st.floats(1, 1e4), st.floats(1, 1e5))
def test_it_is_the_ratio_of_the_best_learning_rates(old, new, scale):
    def best(batch):
        return 1 / (1 + scale / batch)

    assert Saturating().ratio(old, new, noise_of(scale)) == pytest.approx(best(new) / best(old))
