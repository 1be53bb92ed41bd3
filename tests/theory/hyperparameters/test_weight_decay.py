import math

import pytest

from lightning_bsscale import Power, Sqrt, WeightDecay


@pytest.mark.parametrize(
    ("rule", "decay"), [(Sqrt(), WeightDecay(0.5)), (Power(), WeightDecay()), (Power(1), WeightDecay(0))]
)
@pytest.mark.parametrize("ratio", [0.5, 1, 3, 64])
def test_weights_forget_in_the_same_number_of_examples(rule, decay, ratio):
    """B / (lr λ) stays, under the learning-rate rule that the exponent is for."""
    lr = 0.01 * rule.ratio(8, 8 * ratio, None)
    time_scale = 8 * ratio / (lr * decay.scaled({"weight_decay": 0.1}, ratio)["weight_decay"])
    assert time_scale == pytest.approx(8 / (0.01 * 0.1))


def test_no_weight_decay_stays_none():
    assert WeightDecay().scaled({"weight_decay": 0}, math.pi) == {"weight_decay": 0}
