import math

import pytest

from lightning_bsscale.theory.rules import Capped, Linear


def test_the_ceiling_is_on_the_whole_factor():
    capped = Capped(Linear(), 3)
    assert capped.ratio(1, 8, None) == 8
    assert [capped.applied(path) for path in (0.5, 2.0, 8.0)] == [0.5, 2.0, 3.0]
    assert Capped(Capped(Linear(), 5), 3).applied(8.0) == Capped(Capped(Linear(), 3), 5).applied(8.0) == 3.0
    assert capped.name == "linear, at most 3"


@pytest.mark.parametrize(
    ("rule", "cap", "error", "message"),
    [
        (Linear(), 0.5, ValueError, "cap must be a finite number at least 1, got 0.5"),
        (Linear(), math.inf, ValueError, "cap .* got inf"),
        (Linear(), True, TypeError, "cap .* got True"),
        ("sqrt", 2, TypeError, r"rule must be a LearningRateRule such as Sqrt\(\), got 'sqrt'"),
    ],
)
def test_options_are_checked(rule, cap, error, message):
    with pytest.raises(error, match=message):
        Capped(rule, cap)
