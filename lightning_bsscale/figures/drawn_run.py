"""What is drawn of a run, and where its lines go; no line of it needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lightning_bsscale.theory.losses import LossPoint
from lightning_bsscale.theory.policies import most_with_enough_steps
from lightning_bsscale.theory.records import DecisionRecord, Measurement

__all__ = ["DrawnRun", "spread"]

MOST_POINTS = 1000
LIMIT_POINTS = 200
Points = list[tuple[float, float]]


def spread(items: Sequence[Measurement], most: int = MOST_POINTS) -> list[Measurement]:
    """Return at most so many of the items and one more, spread over all, with the last."""
    stride = max(1, math.ceil(len(items) / most))
    return [*items[:-1:stride], *items[-1:]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnRun:
    """A run as its picture shows it.

    Attributes:
        history: The measured windows.
        decisions: The recorded decisions; none of a monitor.
        losses: The logged losses by name.
        unit: What the run counts, as a plural word.
        examples_seen: Examples at its end.
        warmup_examples: Examples before the batch may grow.
        batch_size: The batch at its end; None before training.
        granularity: Examples of one loader batch over all ranks; None if unknown.
        is_dry_run: Whether the batch is the one that a run which changes nothing would have used.
        min_steps: The policy's `min_steps`, which limits the batch; 0 where it has none.
        total_examples: The budget in examples; None if unknown.
        why: What to say where nothing was measured.
    """

    history: Sequence[Measurement] = ()
    decisions: Sequence[DecisionRecord] = ()
    losses: Mapping[str, Sequence[LossPoint]] = field(default_factory=dict)
    unit: str = "examples"
    examples_seen: float = 0.0
    warmup_examples: float = 0.0
    batch_size: int | None = None
    granularity: int | None = None
    is_dry_run: bool = False
    min_steps: int = 0
    total_examples: float | None = None
    why: str = ""

    @property
    def end(self) -> float:
        """Examples at the end of what is known."""
        known = [self.examples_seen, *(made.examples_seen for made in self.history[-1:])]
        return max(known + [record.situation.examples_seen for record in self.decisions[-1:]])

    @property
    def changes(self) -> list[DecisionRecord]:
        """The changes of the batch."""
        return [record for record in self.decisions if record.is_change]

    @property
    def batch(self) -> Points:
        """The batch where it begins to be used, and at the end: a staircase."""
        changes = self.changes
        if changes:
            steps = [(0.0, float(changes[0].situation.batch_size))]
            steps += [(record.situation.examples_seen, float(record.batch_size)) for record in changes]
        elif self.decisions:
            steps = [(0.0, float(self.decisions[0].batch_size))]
        else:  # a monitor, or a run in its warmup: what was measured had the batch of the window that ends there
            sizes = [(0.0, float(self.batch_size))] if self.batch_size is not None and not self.history else []
            for before, made in zip([None, *self.history], self.history, strict=False):
                if before is None or before.batch_size != made.batch_size:
                    sizes.append((0.0 if before is None else before.examples_seen, float(made.batch_size)))
            steps = sizes
        return [*steps, (self.end, steps[-1][1])] if steps else []

    @property
    def confidence(self) -> float | None:
        """The one-sided confidence of the bound that decides; None where no bound does."""
        known = (record.decision.confidence for record in reversed(self.decisions))
        return next((one for one in known if one is not None and 0.5 <= one < 1), None)

    def bound(self, windows: Iterable[Measurement]) -> Points:
        """The lower bound that decides, where the noise scale is resolved; nan elsewhere."""
        confidence, points = self.confidence, []
        for made in windows:
            is_known = confidence is not None and made.noise is not None and made.noise.resolved
            value = made.noise.lower_bound(confidence) if is_known else 0.0  # type: ignore[union-attr, arg-type]
            points.append((float(made.examples_seen), value if value > 0 else math.nan))
        return points

    @property
    def target_ratio(self) -> float | None:
        """The target as a multiple of the bound; None where the decisions do not agree on one."""
        pairs = [(record.decision.bound, record.decision.target) for record in self.decisions]
        ratios = [target / bound for bound, target in pairs if bound and target and 0 < bound < math.inf]
        is_one = bool(ratios) and all(math.isclose(ratio, ratios[0], rel_tol=1e-6) for ratio in ratios)
        return ratios[0] if is_one and math.isfinite(ratios[0]) else None

    @property
    def targets(self) -> Points:
        """The targets of the decisions that had one."""
        known = [(record.situation.examples_seen, record.decision.target) for record in self.decisions]
        return [(seen, target) for seen, target in known if target is not None and 0 < target < math.inf]

    def step_limit(self, bottom: float, top: float) -> Points:
        """The largest batch that `min_steps` allows, where it lies between these two; empty where it nowhere does."""
        total, steps = self.total_examples, self.min_steps
        if steps == 0 or total is None:
            return []
        try:
            # The limit is N / (2 M u), so a value belongs to the share N / (2 M value) that is left.
            begin, end = (max(0.0, total - total**2 / (2 * steps * value)) for value in (bottom, top))
        except ArithmeticError:  # numbers of a file that cannot belong together
            return []
        end = min(end, self.end)
        if not begin < end:
            return []
        places = [begin + (end - begin) * index / LIMIT_POINTS for index in range(LIMIT_POINTS + 1)]
        return [(seen, min(max(most_with_enough_steps(steps, total, seen), bottom), top)) for seen in places]

    @property
    def unresolved(self) -> Points:
        """Beginning and end of the stretches without a resolved noise scale."""
        stretches: Points = []
        since = 0.0
        for made in self.history:
            if made.noise is None or not made.noise.resolved:
                if stretches and stretches[-1][1] == since:
                    stretches[-1] = (stretches[-1][0], made.examples_seen)
                else:
                    stretches.append((since, made.examples_seen))
            since = made.examples_seen
        return stretches

    @property
    def schedule(self) -> Points:
        """The learning rate without the factor for the batch, at the measured windows."""
        known = [made for made in self.history if made.lr_scale > 0 and math.isfinite(made.lr / made.lr_scale)]
        return [(float(made.examples_seen), made.lr / made.lr_scale) for made in known]

    @property
    def learning_rate(self) -> Points:
        """The learning rate as it was in windows of the current batch size, with both ends of each jump.

        An epoch's last window may be shorter, with a factor of its own.
        """
        plain = self.schedule
        if self.is_dry_run or not plain:
            return plain
        points: Points = []
        changes, factor = self.changes, 1.0
        usual = {float(made.examples_seen): made.lr_scale for made in self.history if self._is_usual(made)}
        for index, (seen, value) in enumerate(plain):
            while changes and changes[0].situation.examples_seen < seen:
                at, change = changes[0].situation.examples_seen, changes.pop(0)
                jump = _between(plain, index, at)
                points += [(at, jump * factor), (at, jump * change.lr_scale)]
                factor = change.lr_scale
            # A rule may be replaced without a change of the batch, which the windows' own factors show.
            factor = usual.get(seen, factor)
            points.append((seen, value * factor))
        return points

    def _is_usual(self, made: Measurement) -> bool:
        return self.granularity is None or made.accumulate_grad_batches * self.granularity == made.batch_size


def _between(points: Points, index: int, at: float) -> float:
    """Return the value of a line before its point `index`, at a place."""
    x1, y1 = points[index]
    x0, y0 = points[max(0, index - 1)]
    return y1 if x1 <= x0 or at <= x0 else y0 + (y1 - y0) * (at - x0) / (x1 - x0)
