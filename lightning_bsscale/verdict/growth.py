"""Why the batch is as large as it is: what the last decision needed, what it had, and what would change it."""

from __future__ import annotations

import math

from lightning_bsscale.theory.numbers import describe_count, describe_number, one_of
from lightning_bsscale.theory.policies import NoiseScalePolicy, Reason
from lightning_bsscale.theory.records import DecisionRecord
from lightning_bsscale.theory.tradeoff import sample_efficiency
from lightning_bsscale.verdict.facts import RunFacts
from lightning_bsscale.verdict.measured import Said, measure_more, more_windows, windows_needed

__all__ = ["explain_batch", "explain_monitor"]

WORTH_MORE = 1.25
"""Ratio of noise scale and batch from which on a monitor's reader is advised to let the batch grow."""


def explain_batch(facts: RunFacts) -> Said:
    """Say what the last decision rests on, and what to change next."""
    record = facts.latest or (facts.decisions.records[-1] if facts.decisions.records else None)
    if record is None:
        return _explain_warmup(facts)
    if facts.profile.policy != NoiseScalePolicy.__name__:
        return _explain_own_words(facts, record)
    if record.decision.code == Reason.NOT_BEFORE.code:
        return Said(reasons=("The policy's not_before was not reached.",), next_steps=("Lower not_before.",))
    if record.decision.code == Reason.FEW_STEPS.code or _was_too_short(facts):
        return _explain_few_steps(facts, record)
    if facts.largest_batch_size <= facts.batch_size:
        return _explain_limit(facts, record)
    if facts.noise is None or record.decision.bound is None:
        return Said()  # `explain_unmeasured` has said it
    return _explain_bound(facts, record)


def _explain_warmup(facts: RunFacts) -> Said:
    warmup = describe_count(facts.numbers.warmup_examples, facts.profile.unit)
    return Said(
        reasons=(f"Nothing grows in the warmup, whose {warmup} are not over.",),
        next_steps=("Train for longer, or lower warmup.",),
    )


def _explain_own_words(facts: RunFacts, record: DecisionRecord) -> Said:
    reason = record.decision.reason.removesuffix(".")
    said = f"The last decision of {facts.profile.policy}: {reason}."
    if facts.largest_batch_size <= facts.batch_size:
        return Said(reasons=(said, _limit(facts)))
    return Said(reasons=(said,))


def _limit(facts: RunFacts) -> str:
    largest = describe_count(facts.largest_batch_size)
    if facts.profile.max_batch_size is not None:
        return f"The batch is at its limit of {largest}, from max_batch_size={facts.profile.max_batch_size}."
    # `default_max_batch_size` takes the smaller of the two.
    granularity = facts.numbers.now.granularity
    is_multiple = facts.largest_batch_size + granularity > 32 * facts.numbers.first.batch_size
    why = "32 times the first batch" if is_multiple else "at least 8 steps in an epoch"
    return f"The batch is at its limit of {largest}, the default ({why})."


def _explain_limit(facts: RunFacts, record: DecisionRecord) -> Said:
    target, bound = record.decision.target, _bound(record)
    is_known = target is not None and facts.noise is not None and facts.noise.resolved
    if not is_known or target is None or target <= facts.batch_size:
        return Said(reasons=(_limit(facts),))
    allowed = f"The lower bound of {bound} would allow a batch of {describe_count(target)}."
    granularity = facts.numbers.now.granularity
    larger = max(facts.batch_size + granularity, int(target // granularity) * granularity)
    return Said(reasons=(_limit(facts), allowed), next_steps=(f"To let it grow further, set max_batch_size={larger}.",))


def _was_too_short(facts: RunFacts) -> bool:
    """Whether the batch never grew, and min_steps held it for half of the budget or longer."""
    records, total = facts.decisions.records, facts.numbers.total_examples
    held = [index for index, record in enumerate(records) if record.decision.code == Reason.FEW_STEPS.code]
    if not held or facts.decisions.changes or total is None:
        return False
    after = records[held[-1] + 1 :]
    return not after or after[0].situation.examples_seen >= total / 2


def _explain_few_steps(facts: RunFacts, record: DecisionRecord) -> Said:
    """Explain a hold by min_steps; the noise scale may have allowed more."""
    total, decision = facts.numbers.total_examples, record.decision
    planned = facts.planned_steps if total is None else max(facts.planned_steps, math.ceil(total / _first_batch(facts)))
    further = " further" if facts.decisions.changes else ""
    limit = f"={facts.profile.min_steps}" if facts.profile.min_steps else ""
    reason = (
        f"A run of {describe_count(planned, 'steps')} is too short to grow{further}: with fewer steps it loses loss, "
        f"whatever the noise scale is (the policy's min_steps{limit})."
    )
    is_resolved = facts.noise is not None and facts.noise.resolved
    has_enough = (decision.target or 0.0) >= (decision.needed or math.inf)
    lower = ("If steps count and loss does not, lower min_steps.",) if is_resolved and has_enough else ()
    if further:
        return Said(reasons=(reason,), next_steps=lower or ("A longer run may grow further.",))
    limited = (_limit(facts),) if facts.largest_batch_size <= facts.batch_size else ()
    measure = () if facts.noise is None or is_resolved else (measure_more(facts),)
    return Said(reasons=(reason, *limited), next_steps=(*lower, *_of_a_short_run(facts, record, planned), *measure))


def _first_batch(facts: RunFacts) -> int:
    return facts.numbers.first.batch_size


def _of_a_short_run(facts: RunFacts, record: DecisionRecord, planned: int) -> tuple[str, ...]:
    """Say from how many steps on a run would grow, and how else to choose a batch."""
    sweep = "To choose a batch for so short a run, compare two or three fixed ones."
    min_steps, batch, granularity = facts.profile.min_steps, facts.batch_size, facts.numbers.now.granularity
    if not min_steps:
        return ("A longer run may grow.", sweep)
    larger = (batch // granularity + 1) * granularity
    # What the policy allows with half of the budget left is min_steps in steps of that batch.
    enough = math.ceil(min_steps * max(record.decision.needed or 0.0, larger) / _first_batch(facts))
    if enough <= planned:  # it was the last half that was too uncertain
        return ("A longer run may grow.",)
    raised = f" if max_batch_size is {larger} or more" if facts.largest_batch_size <= batch else ""
    return (f"A run of about {describe_count(enough, 'steps')} may grow in its second half{raised}.", sweep)


def _bound(record: DecisionRecord) -> str:
    bound, confidence = record.decision.bound, record.decision.confidence
    if bound is None:
        return "unknown"
    share = "" if confidence is None else f" ({100 * confidence:.3g} %)"
    return f"{describe_count(bound)}{share}"


def _needed_bound(record: DecisionRecord) -> float | None:
    """Return the bound for which the target is what was needed: the target is proportional to it without prices."""
    decision = record.decision
    if decision.needed is None or decision.bound is None or not decision.target or decision.bound <= 0:
        return decision.needed if decision.bound == decision.target else None
    return decision.needed * decision.bound / decision.target


def _explain_bound(facts: RunFacts, record: DecisionRecord) -> Said:
    decision, decided_by = record.decision, record.situation.noise
    assert decision.bound is not None
    growing = "Growing further" if facts.decisions.changes else "Growing"
    if decision.target is None or decision.needed is None or decided_by is None:
        reason = f"The last decision: {decision.reason}."
        return Said(reasons=(reason,))
    if not decided_by.resolved:
        return _explain_unresolved(facts, record, growing)
    if decision.target >= decision.needed:
        return _explain_gate(facts, record, growing)
    needed = _needed_bound(record)
    if needed is None:
        had, least = describe_count(decision.target), describe_count(decision.needed)
        return Said(reasons=(f"{growing} needed a target of {least} and had {had}.",))
    reason = f"{growing} needed a lower bound of {describe_count(needed)} and had {_bound(record)}{_ratio(record)}."
    return Said(reasons=(reason,), next_steps=_next_of_bound(facts, needed, decision.confidence or 0.5))


def _ratio(record: DecisionRecord) -> str:
    target, bound = record.decision.target, record.decision.bound
    ratio = target / bound if target and bound else 1.0
    return "" if math.isclose(ratio, 1.0) else f", as the target is {describe_number(ratio)} times the bound"


def _explain_unresolved(facts: RunFacts, record: DecisionRecord, growing: str) -> Said:
    """Explain a hold by an unresolved noise scale, whose lower bound decides nothing however large it is."""
    noise, decided_by = facts.noise, record.situation.noise
    assert noise is not None
    assert decided_by is not None
    if noise.resolved:
        reason = "At the last decision the noise scale was not resolved yet, so nothing was decided."
        return Said(reasons=(reason,), next_steps=("A longer run would use it.",))
    why = "has no upper end yet" if math.isinf(decided_by.high) else "still reaches zero"
    needed = _needed_bound(record)
    least = "" if needed is None else f"; growing will need one of {describe_count(needed)}{_ratio(record)}"
    reason = (
        f"{growing} waits until the noise scale is resolved: its interval {why}. Until then its lower bound, "
        f"{_bound(record)} so far, does not count{least}."
    )
    return Said(reasons=(reason,), next_steps=_next_of_bound(facts, needed or 0.0, record.decision.confidence or 0.5))


def _next_of_bound(facts: RunFacts, needed: float, confidence: float) -> tuple[str, ...]:
    """Say what would let the batch grow: a resolved noise scale, or a narrower interval."""
    noise = facts.noise
    assert noise is not None
    if noise.resolved and noise.upper_bound(confidence) < needed:
        return ("Nothing to change: the batch is about as large as the noise scale justifies.",)
    times = windows_needed(noise, needed, confidence)
    if noise.resolved:
        if times is None:
            return ("Nothing to change: the noise scale is not far enough above the batch for another growth.",)
        return (more_windows(facts, times, f"narrow the interval to a lower bound of {describe_count(needed)}"),)
    if times is not None and needed > 0:
        return (more_windows(facts, times, f"resolve it, with a lower bound of at least {describe_count(needed)}"),)
    return _resolve(facts, confidence)


def _resolve(facts: RunFacts, confidence: float) -> tuple[str, ...]:
    noise = facts.noise
    assert noise is not None
    times = windows_needed(noise, 0.0, confidence)
    if times is None:
        return (f"{measure_more(facts)} How many it takes cannot be forecast yet.",)
    return (more_windows(facts, times, "resolve it"),)


_GATES = {
    Reason.COOLING_DOWN.code: ("it was cooling down after the last change", "Lower the policy's cooldown."),
    Reason.NEAR_END.code: ("the end of the budget was too near", "A longer run would have time for that batch."),
    Reason.NO_PRICES.code: ("the seconds of a step were not measured yet", "Give the policy's prices as numbers."),
    Reason.IN_WARMUP.code: ("the warmup was not over", "Lower warmup."),
}


def _explain_gate(facts: RunFacts, record: DecisionRecord, growing: str) -> Said:
    """Explain a hold although the bound would have been enough."""
    decision = record.decision
    had = (
        f"{growing} needed a target of {describe_count(decision.needed or 0)}, and the lower bound of {_bound(record)}"
    )
    target = f"{had} gave {describe_count(decision.target or 0)}"
    if record.is_change:
        return Said(reasons=(f"{target}: the last decision changed the batch.",))
    why = _GATES.get(decision.code or "")
    if why is None:
        return Said(reasons=(f"{target}, but: {decision.reason}.",))
    return Said(reasons=(f"{target}, but {why[0]}.",), next_steps=(why[1],))


def explain_monitor(facts: RunFacts) -> Said:
    """Say how the batch of a run without decisions compares with the noise scale."""
    noise, batch = facts.noise, facts.batch_size
    if noise is None:
        return Said()
    if not noise.resolved:
        return Said(next_steps=_resolve(facts, (1 + noise.confidence) / 2))
    worth = f"{describe_number(100 * sample_efficiency(batch, noise.noise_scale), 2)} %"
    one, size = one_of(facts.profile.unit), describe_count(batch)
    reason = f"By it, {one} in a batch of {size} is worth {worth} of one in a very small batch."
    if noise.low >= WORTH_MORE * batch:
        larger = describe_count(noise.low)
        return Said(reasons=(reason,), next_steps=(f"BatchSizeScaler would let the batch grow, to about {larger}.",))
    if noise.high < batch:
        smaller = describe_count(noise.noise_scale)
        return Said(
            reasons=(reason,), next_steps=(f"A batch of about {smaller} would use its {facts.profile.unit} better.",)
        )
    if noise.low < batch:
        fits = "The batch lies within the interval, so neither a smaller nor a larger one is clearly better."
        return Said(reasons=(reason, fits))
    return Said(reasons=(reason, "The batch lies just below the interval, so a larger one would gain little."))
