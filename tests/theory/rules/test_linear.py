import pytest

from lightning_bsscale.theory.rules import Linear
from tests.helpers.simulated import ratios


@pytest.mark.parametrize("scale", [1e-6, 512.0, 1e12])
def test_the_factor_grows_as_the_batch(scale):
    assert ratios(Linear(), scale=scale) == [1, 2, 4, 8]
