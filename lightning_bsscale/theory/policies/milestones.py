"""The batch by the user's own plan: at so many examples, so large a batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

from lightning_bsscale.theory.checks import check_integer, check_number, join_names, show
from lightning_bsscale.theory.numbers import describe_count
from lightning_bsscale.theory.policies.policy import Decision, Limits, Policy, Situation
from lightning_bsscale.theory.policies.position import check_position, in_examples, need_budget

__all__ = ["Milestones"]

MOST_MILESTONES = 16
UNITS = ("multiples", "examples")


@final
@dataclass(frozen=True)
class Milestones(Policy):
    """Change the batch size at given positions: ``Milestones({0.3: 2, 0.6: 4})``.

    From a share of the budget (a float up to 1) or a number of examples (an int above 1) on, the batch is a multiple of
    the start batch, or has so many examples. Before the first one it is the start batch. It is rounded down to a
    possible batch size, and may also shrink. What falls into the scaler's warmup is done at its end. Nothing is
    measured: the plan is the user's, and a batch above the noise scale wastes examples.

    Source: what training recipes write down (the ramps of GPT-3, DeepSeek-V3 and nanochat, for example).

    Args:
        milestones: Position → size, at most 16, with rising positions. The keys may be text, as in YAML; pairs are
            allowed too.
        unit: ``"multiples"`` of the start batch, or ``"examples"`` over all devices.
    """

    milestones: Mapping[Any, float]
    unit: str = "multiples"

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            TypeError: If the milestones are neither a mapping nor pairs.
            ValueError: If they are none or too many or do not rise, or if the unit is unknown.
        """
        if self.unit not in UNITS:
            raise ValueError(f"unit must be one of {join_names(UNITS)}, got {show(self.unit)}")
        given: Any = self.milestones
        items = list(given.items()) if isinstance(given, Mapping) else given
        if not isinstance(items, (list, tuple)) or not all(isinstance(i, (list, tuple)) and len(i) == 2 for i in items):
            raise TypeError(f"milestones must map positions to sizes, such as {{0.3: 2, 0.6: 4}}, got {show(given)}")
        if not 1 <= len(items) <= MOST_MILESTONES:
            raise ValueError(f"milestones must be 1 to {MOST_MILESTONES}, got {len(items)}")
        pairs = tuple(
            (check_position("a milestone", key, may_be_text=True), self._checked_size(key, size)) for key, size in items
        )
        for kind in (int, float):  # a share and a number of examples cannot be compared before the budget is known
            places = [place for place, _ in pairs if isinstance(place, kind)]
            if any(later <= earlier for earlier, later in itertools.pairwise(places)):
                raise ValueError(f"milestones must rise, got {show(given)}")
        object.__setattr__(self, "milestones", pairs)  # a mapping would make the record unhashable

    def _checked_size(self, key: object, size: object) -> float:
        if self.unit == "examples":
            if isinstance(size, float) and size.is_integer():  # a command line may read a float
                size = int(size)
            return check_integer(f"milestones[{key!r}]", size, at_least=1)
        return check_number(f"milestones[{key!r}]", size, above=0)

    @property
    def _pairs(self) -> Iterable[tuple[int | float, float]]:
        pairs: Any = self.milestones
        return pairs  # type: ignore[no-any-return]

    @property
    def needs_budget(self) -> bool:
        """Whether a milestone is a share of the budget."""
        return need_budget(place for place, _ in self._pairs)

    def decide(self, situation: Situation, limits: Limits) -> Decision:  # noqa: D102
        seen, batch = situation.examples_seen, situation.batch_size
        placed = [(in_examples(place, situation.total_examples), size) for place, size in self._pairs]
        passed = [(place, size) for place, size in placed if place <= seen]
        ahead = [(place, size) for place, size in placed if place > seen]
        at, size = max(passed, key=lambda one: one[0], default=(0.0, 1.0))
        is_multiple = self.unit == "multiples" or not passed
        wanted = size * situation.start_batch_size if is_multiple else size
        reached = limits.clip(wanted)
        code = "milestone" if reached == batch else "grow" if reached > batch else "shrink"
        since = (
            f"the milestone at {describe_count(at)} asks for a batch of {describe_count(wanted)}"
            if passed
            else "no milestone is reached yet"
        )
        then = (
            f"; the next one is at {describe_count(min(place for place, _ in ahead))}"
            if ahead and code == "milestone"
            else ""
        )
        verb = "hold" if code == "milestone" else code
        return Decision(batch_size=reached, reason=f"{verb}: {since}{then}", code=code, target=float(wanted))
