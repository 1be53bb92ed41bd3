import pytest

from lightning_bsscale import Momentum


def worth_of_a_gradient(group):
    """How far one gradient moves the weights in all, in learning rates: torch's SGD, step by step."""
    moved, buffer, gradient = 0.0, 0.0, 1.0
    for _ in range(5000):
        buffer = group["momentum"] * buffer + (1 - group["dampening"]) * gradient
        moved += gradient + group["momentum"] * buffer if group["nesterov"] else buffer
        gradient = 0.0
    return moved


@pytest.mark.parametrize(("dampening", "nesterov"), [(0.0, False), (0.9, False), (0.3, False), (0.0, True)])
@pytest.mark.parametrize("ratio", [0.5, 1, 3, 20])
def test_the_averaging_time_and_the_worth_of_a_gradient_stay(dampening, nesterov, ratio):
    group = {"momentum": 0.9, "dampening": dampening, "nesterov": nesterov}
    new = {**group, **Momentum().scaled(group, ratio)}
    assert new["momentum"] == pytest.approx(0.9**ratio)
    assert worth_of_a_gradient(new) == pytest.approx(worth_of_a_gradient(group))


@pytest.mark.parametrize(("momentum", "ratio"), [(0.0, 4.0), (1e-300, 2.0)])
def test_without_momentum_nothing_changes(momentum, ratio):
    group = {"momentum": momentum, "dampening": 0.0, "nesterov": True}
    assert Momentum().scaled(group, ratio) == {"momentum": momentum, "dampening": 0.0}
