"""A verdict: a headline, the reasons in numbers, and what to change next."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_bsscale.theory.numbers import describe_count
from lightning_bsscale.verdict.facts import RunFacts
from lightning_bsscale.verdict.growth import explain_batch, explain_monitor
from lightning_bsscale.verdict.measured import Said, describe_measured, explain_unmeasured
from lightning_bsscale.verdict.savings import describe_savings, explain_adam_memory

__all__ = ["Verdict", "verdict_of"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a training found; `str` gives one paragraph.

    Attributes:
        headline: What the batch did, or what the noise scale is, in one sentence.
        reasons: Why, with the numbers, a sentence or two each.
        next_steps: What to change next, a sentence each; empty where nothing is to be gained.
    """

    headline: str
    reasons: tuple[str, ...] = ()
    next_steps: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return one paragraph."""
        then = (f"Next: {' '.join(self.next_steps)}",) if self.next_steps else ()
        return " ".join((self.headline, *self.reasons, *then))


def verdict_of(facts: RunFacts) -> Verdict:
    """Put a run's facts into words.

    Args:
        facts: The facts.

    Returns:
        The verdict. Every number in it is one of the facts, or follows from them by a formula of `theory`.
    """
    said = [Said(reasons=_position(facts)), Said(reasons=describe_measured(facts))]
    if facts.noise is None:
        said.append(explain_unmeasured(facts))
    if not facts.numbers.decides:
        said.append(explain_monitor(facts))
    else:
        said += [explain_batch(facts), Said(reasons=describe_savings(facts)), explain_adam_memory(facts)]
    return Verdict(
        _headline(facts),
        tuple(reason for one in said for reason in one.reasons),
        tuple(dict.fromkeys(step for one in said for step in one.next_steps)),
    )


def _headline(facts: RunFacts) -> str:
    unit = facts.profile.unit
    now = describe_count(facts.batch_size, unit)
    if not facts.numbers.decides:
        return f"The noise scale was {'not ' if facts.noise is None else ''}measured, at a batch of {now}."
    start, changes = describe_count(facts.start_batch_size), facts.decisions.changes
    dry = "" if facts.numbers.acts else "Dry run: the batch would have "
    if not changes:
        return f"{dry or 'The batch '}stayed at {now}."
    many = f"in {describe_count(changes)} changes" if changes > 1 else "in one change"
    if facts.batch_size == facts.start_batch_size:
        return f"{dry or 'The batch '}returned to {now} {many}."
    verb = "grow" if facts.batch_size > facts.start_batch_size else "shrink"
    done = {"grow": ("grown", "grew"), "shrink": ("shrunk", "shrank")}[verb][0 if dry else 1]
    return f"{dry or 'The batch '}{done} from {start} to {now} {many}."


def _position(facts: RunFacts) -> tuple[str, ...]:
    total, unit = facts.numbers.total_examples, facts.profile.unit
    notes = []
    if facts.profile.is_resumed:
        notes.append("The run was resumed; the numbers are those of all its parts.")
    if total is not None and facts.used_examples + facts.batch_size <= total:
        share = f"{100 * facts.used_examples / total:.3g} %"
        notes.append(
            f"Training is at {describe_count(facts.used_examples)} of {describe_count(total, unit)} ({share})."
        )
    return tuple(notes)
