import pytest

from lightning_bsscale import Beta2


def beta2_of(rule, beta2, ratio):
    beta1, found = rule.scaled({"betas": (0.9, beta2)}, ratio)["betas"]
    assert beta1 == 0.9
    return found


@pytest.mark.parametrize("ratio", [2, 5])
def test_one_large_step_forgets_as_much_as_the_small_ones(ratio):
    average = 1.0
    for _ in range(ratio):
        average *= 0.99
    assert beta2_of(Beta2(), 0.99, ratio) == pytest.approx(average)


@pytest.mark.parametrize(
    ("floor", "beta2", "ratio", "expected"),
    [
        *((0.95, 0.999, 1, 0.999), (0.95, 0.999, 1000, 0.95), (0.5, 0.999, 1000, 0.5), (0, 0.9, 2, 0.81)),
        (0.95, 0.9, 4, 0.9),  # below the floor already
        (0.95, 0.999, 0.5, 0.999**0.5),
        (0.95, 0.9, 0.5, 0.9**0.5),
    ],
)
def test_not_below_the_floor(floor, beta2, ratio, expected):
    assert beta2_of(Beta2(floor), beta2, ratio) == pytest.approx(expected)


def test_further_betas_stay():
    assert Beta2().scaled({"betas": (0.9, 0.99, 0.5)}, 2)["betas"][2] == 0.5
