import math

import pytest

from lightning_bsscale.theory.policies.position import check_position, in_examples, need_budget


@pytest.mark.parametrize(
    ("given", "position", "examples"),
    [(0.25, 0.25, 250), (1.0, 1.0, 1000), (300, 300, 300), ("0.25", 0.25, 250), ("2_000", 2000, 2000), (0, 0, 0)],
)
def test_a_share_or_examples(given, position, examples):
    found = check_position("at", given, may_be_text=True)
    assert (found, type(found)) == (position, type(position))
    assert in_examples(found, 1000.0) == examples
    is_share = isinstance(position, float)
    assert need_budget([0, found]) == is_share
    assert in_examples(found, None) == (math.inf if is_share else examples)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (1, ValueError, "at .* must not be the integer 1: write 1.0 for the end of the budget"),
        (1.5, ValueError, "at .* must be a finite number at least 0 and at most 1, got 1.5"),
        (-3, ValueError, "at .* must be an integer of at least 0, got -3"),
        ("soon", TypeError, "at .* must be .*, got 'soon'"),
        (True, TypeError, "at .* must be .*, got True"),
    ],
)
def test_anything_else_is_named(given, error, message):
    with pytest.raises(error, match=message):
        check_position("at", given, may_be_text=True)
    with pytest.raises(TypeError, match=r"must be a finite number .* got '0.5'"):
        check_position("at", "0.5")
