"""What the growth saved: optimizer steps, measured seconds, a forecast for many ranks, and what it may have cost."""

from __future__ import annotations

import itertools

from lightning_bsscale.theory.numbers import describe_count, describe_time
from lightning_bsscale.verdict.facts import RunFacts
from lightning_bsscale.verdict.measured import Said

__all__ = ["describe_savings", "explain_adam_memory"]

NO_DIFFERENCE = 0.03
"""Share of the seconds below which a difference is not told from none, however many windows were timed."""
ERRORS = 2.0
"""Standard errors of the plan's seconds below which it is not either."""
SHORTEST = 5.0
"""Seconds of training below which the seconds of a machine say nothing."""


def describe_savings(facts: RunFacts) -> tuple[str, ...]:
    """Say what a change of the batch saved against the user's plan."""
    if not facts.decisions.changes:
        return ()
    if not facts.numbers.acts:
        return _would_save(facts)
    planned, made = facts.planned_steps, facts.optimizer_steps
    saved = planned - made
    if saved == 0:
        return ("It made as many optimizer steps as your plan.",)
    about = "" if facts.is_planned_exactly else "about "
    if saved < 0:
        return (f"It made {about}{describe_count(-saved)} more optimizer steps than your plan.",)
    steps = (
        f"It made {describe_count(made)} optimizer steps instead of {about}{describe_count(planned)} of your plan: "
        f"{describe_count(saved)} saved."
    )
    return (steps, _seconds(facts, saved), *_forecast(facts, saved))


def _would_save(facts: RunFacts) -> tuple[str, ...]:
    """Return the steps that a dry run would have saved, from its own changes."""
    changes = facts.changes
    if len(changes) < facts.decisions.changes:
        return ()  # some were thinned
    ends = [*(record.situation.examples_seen for record in changes), float(facts.examples_seen)]
    stretches = zip(changes, itertools.pairwise(ends), strict=True)
    saved = sum(
        (end - begin) * (1 / facts.start_batch_size - 1 / record.batch_size) for record, (begin, end) in stretches
    )
    if saved < 1:
        return ()
    planned = describe_count(facts.planned_steps)
    return (f"That would have saved about {describe_count(round(saved))} of {planned} optimizer steps (a forecast).",)


def _seconds(facts: RunFacts, saved: int) -> str:
    pace, plan = facts.pace, facts.pace.seconds_of_plan
    if plan is None:
        per_step = facts.seconds_per_step
        if not per_step:
            return "The seconds saved are not known: too few steps of the first batch were timed."
        return (
            f"That is about {describe_time(saved * per_step)}, by the measured {describe_time(per_step)} of a step "
            "beyond its loader batches."
        )
    took = f"Training took {describe_time(pace.seconds)}"
    if pace.seconds < SHORTEST:
        return f"{took}, which is too short to compare times."
    # Those windows contain the callback's own work, without which a training of small steps would have been faster.
    would = f"at the measured pace of the first batch it would have taken at most {describe_time(plan)}"
    if abs(pace.seconds - plan) <= max(NO_DIFFERENCE, ERRORS * pace.relative_error) * plan:
        return f"{took}, {would}: steps were saved, but no time that could be told from chance."
    if pace.seconds > plan:
        return f"{took}, {would}: at least {describe_time(pace.seconds - plan)} more, in spite of fewer steps."
    return f"{took}, {would}: at most {describe_time(plan - pace.seconds)} saved."


def _forecast(facts: RunFacts, saved: int) -> tuple[str, ...]:
    if facts.numbers.now.world_size > 1:
        return ()
    return (
        f"Forecast: on many ranks the same growth would also save {describe_count(saved)} all-reduces of the gradient, "
        "whose seconds one rank cannot measure.",
    )


def explain_adam_memory(facts: RunFacts) -> Said:
    """Say so where Adam's second moment remembers smaller batches than the one in use: its steps are then too short."""
    beta2, noise = facts.profile.beta2, facts.noise
    if beta2 is None or not 0 < beta2 < 1 or "Beta2" in facts.profile.also_scale or not facts.numbers.acts:
        return Said()
    if noise is None or noise.noise_scale < facts.batch_size:
        return Said()  # the gradient itself, which does not depend on the batch, makes up most of the moment
    # The moment is off by a factor of two or more while it remembers steps of at most half the batch.
    small = [one for one in facts.changes if 2 * one.situation.batch_size <= facts.batch_size]
    if not small:
        return Said()
    memory, since = 1 / (1 - beta2), facts.optimizer_steps - small[-1].situation.optimizer_steps
    if since >= memory:
        return Said()
    remembered = describe_count(round(memory))
    reason = (
        f"{facts.profile.optimizer}'s second moment remembers about {remembered} steps (beta2={beta2:g}), more than "
        f"the {describe_count(since)} since the batch was half as large: it still holds the noise of smaller batches."
    )
    return Said(reasons=(reason,), next_steps=('Set also_scale="beta2".',))
