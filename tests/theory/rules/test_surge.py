import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_bsscale.theory.rules import Surge
from tests.helpers.simulated import noise_of, ratios

ROOTS = (1, 2**0.5, 2, 8**0.5)


def test_golden_row():
    # By hand, at 1, 2, 4, 8 times 64 and a noise scale of 512: sqrt(r) 576/(512 + 64 r).
    assert ratios(Surge()) == pytest.approx((1, 1.272792, 1.5, 1.590990), rel=1e-6)


@given(st.floats(1, 1e3))
def test_rises_as_the_square_root_below_the_noise_scale_and_falls_as_it_above(old):
    assert ratios(Surge(), old=old, scale=1e12) == pytest.approx(ROOTS, rel=1e-6)
    assert ratios(Surge(), old=old, scale=1e-7) == pytest.approx([1 / root for root in ROOTS], rel=1e-6)


@given(st.floats(1, 1e4), st.floats(1, 1e4), st.floats(1, 1e5))
def test_it_is_the_ratio_of_its_bell(old, new, scale):
    def bell(batch):
        return 2 / (math.sqrt(scale / batch) + math.sqrt(batch / scale))

    assert Surge().ratio(old, new, noise_of(scale)) == pytest.approx(bell(new) / bell(old))


def test_the_peak_is_at_the_noise_scale():
    factors = {batch: Surge().ratio(64, batch, noise_of(512.0)) for batch in (64, 256, 512, 1024, 4096)}
    assert max(factors, key=factors.get) == 512
