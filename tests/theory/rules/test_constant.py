import pytest

from lightning_bsscale.theory.rules import Constant
from tests.helpers.simulated import ratios


@pytest.mark.parametrize("scale", [1e-6, 512.0, 1e12])
def test_the_learning_rate_stays(scale):
    assert ratios(Constant(), scale=scale) == [1, 1, 1, 1]
