"""The losses that a training logged, each with where the run was."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_bsscale.theory.frozen import changed

__all__ = ["LossCurve", "LossEvent", "LossPoint", "Losses"]

POINTS_LIMIT = 512
CURVES_LIMIT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LossPoint:
    """One value of a loss.

    Attributes:
        examples_seen: Examples of all windows by then.
        optimizer_steps: Optimizer steps by then.
        seconds: Seconds of the timed windows by then, without validation.
        value: The value, as it was logged on the first rank.
    """

    examples_seen: float
    optimizer_steps: int
    seconds: float
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LossCurve:
    """The values of one loss, in order.

    Attributes:
        name: The name that it was logged by.
        points: Its values. Beyond :data:`POINTS_LIMIT` every second one of the older half is dropped.
    """

    name: str
    points: tuple[LossPoint, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """The losses of a run. Nothing that a run computes depends on them.

    Attributes:
        curves: One for each name, at most :data:`CURVES_LIMIT`.
    """

    curves: tuple[LossCurve, ...] = ()

    def with_point(self, name: str, point: LossPoint) -> Losses:
        """Return the losses with one more value; a name too many is left out.

        Example:
            >>> point = LossPoint(examples_seen=8, optimizer_steps=1, seconds=0.1, value=2.5)
            >>> Losses().with_point("val_loss", point).curves[0].points[0].value
            2.5
        """
        curves = {curve.name: curve for curve in self.curves}
        if name not in curves and len(curves) >= CURVES_LIMIT:
            return self
        points = (*(curves[name].points if name in curves else ()), point)
        if len(points) > POINTS_LIMIT:
            half = POINTS_LIMIT // 2
            points = points[:half:2] + points[half:]
        curves[name] = LossCurve(name=name, points=points)
        return changed(self, curves=tuple(curves.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class LossEvent:
    """A loss was logged.

    Attributes:
        name: The name that it was logged by.
        value: The value, on the first rank.
        examples_seen: Examples of all windows by then, which may be earlier than the line in the journal.
        optimizer_steps: Optimizer steps by then.
    """

    name: str
    value: float
    examples_seen: float
    optimizer_steps: int
