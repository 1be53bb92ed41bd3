"""Which windows are compared, and what follows."""

import pytest

from lightning_bsscale.theory.agreement import COMPARED_EVERY, COMPARED_FIRST, MOST_CHANGES, Agreement


def watch(windows, agreement=None):
    """Take so many windows, with nothing found; which were watched, and which compared."""
    agreement, watched, compared = agreement or Agreement(), [], []
    for number in range(windows):
        agreement, is_watched, is_compared = agreement.next_window()
        watched += [number] if is_watched else []
        compared += [number] if is_compared else []
    return agreement, watched, compared


def test_the_first_windows_are_compared_and_then_one_in_a_prime_number():
    agreement, watched, compared = watch(60)
    assert watched == [*range(60)]
    assert compared == [0, 1, 2, 3, 17, 34, 51]
    assert (COMPARED_FIRST, COMPARED_EVERY, agreement.windows) == (4, 17, 60)


def test_changed_gradients_are_watched_only_to_be_compared_again():
    agreement, found = Agreement().with_result(False)
    assert (found, agreement.is_good) == (True, False)
    assert agreement.with_result(False) == (agreement, False)
    agreement, watched, compared = watch(40, agreement)
    assert watched == compared == [16, 33]
    good, found = agreement.with_result(True)
    assert (good, found) == (Agreement(changes=1), False)
    assert watch(4, good)[2] == [0, 1, 2, 3]


@pytest.mark.parametrize("changes", [MOST_CHANGES - 1, MOST_CHANGES])
def test_gradients_that_change_again_are_given_up(changes):
    agreement = Agreement()
    for number in range(changes):
        agreement, _ = agreement.with_result(False)
        if number + 1 < changes:
            agreement, _ = agreement.with_result(True)
    assert bool(watch(100, agreement)[1]) == (changes < MOST_CHANGES)
