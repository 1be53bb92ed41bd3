"""The losses of a run, in bounded memory."""

from lightning_bsscale.theory.losses import CURVES_LIMIT, POINTS_LIMIT, Losses, LossPoint
from lightning_bsscale.theory.stored import as_plain, check_stored, from_plain


def point(number):
    return LossPoint(examples_seen=8.0 * number, optimizer_steps=number, seconds=0.5, value=1 / (1 + number))


def test_values_are_kept_by_name_in_order():
    losses = Losses().with_point("a", point(1)).with_point("b", point(2)).with_point("a", point(3))
    assert [(curve.name, curve.points) for curve in losses.curves] == [("a", (point(1), point(3))), ("b", (point(2),))]


def test_a_long_curve_is_thinned_and_covers_the_whole_run():
    losses = Losses()
    for number in range(4 * POINTS_LIMIT):
        losses = losses.with_point("loss", point(number))
    (curve,) = losses.curves
    steps = [one.optimizer_steps for one in curve.points]
    assert POINTS_LIMIT // 2 < len(steps) <= POINTS_LIMIT
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (0, 4 * POINTS_LIMIT - 1)


def test_a_name_too_many_is_left_out():
    losses = Losses()
    for number in range(CURVES_LIMIT + 2):
        losses = losses.with_point(f"loss {number}", point(1))
    assert [curve.name for curve in losses.curves] == [f"loss {number}" for number in range(CURVES_LIMIT)]
    assert losses.with_point("loss 0", point(2)).curves[0].points == (point(1), point(2))


def test_they_come_back_from_a_checkpoint():
    losses = Losses().with_point("a", point(1)).with_point("b", point(2))
    plain = as_plain(losses)
    check_stored(Losses, plain)
    assert from_plain(Losses, plain) == losses
