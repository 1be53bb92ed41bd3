"""What a run shows: to the policy, to the log, to the user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_bsscale.callbacks.state.resume import Outcome
from lightning_bsscale.theory.policies import Situation

if TYPE_CHECKING:
    from lightning_bsscale.callbacks.scaled_run import ScaledRun


def situation(run: ScaledRun) -> Situation:
    """What the policy is asked with, at a window's end.

    Args:
        run: the run

    Returns:
        the same on all ranks
    """
    per_micro_batch, per_step = run.times.to_decide_by(run.now.world_size)
    return Situation(
        batch_size=run.control.batch_size,
        start_batch_size=run.control.start_batch_size,
        examples_seen=run.examples_seen,
        total_examples=run.plan.total_examples,
        warmup_examples=run.plan.warmup_examples,
        optimizer_steps=run.optimizer_steps,
        schedule_factor=run.rate.schedule_factor(run.examples_seen),
        examples_at_last_change=run.control.examples_at_last_change,
        noise=run.measurement.noise,
        seconds_per_micro_batch=per_micro_batch,
        seconds_per_step=per_step,
    )


def log_values(run: ScaledRun, num_micro_batches: int) -> dict[str, float]:
    """The logged numbers beside the measurement's.

    Args:
        run: the run
        num_micro_batches: of the window that ended, on one device

    Returns:
        key without prefix → value
    """
    return {
        "batch_size": run.control.batch_size,
        "accumulate_grad_batches": num_micro_batches,
        "lr_scale": run.rate.shown_factor,
        "lr": run.rate.rate,
        "examples_seen": run.examples_seen,
    }


def outcome(run: ScaledRun) -> Outcome:
    """What it has to show so far.

    Args:
        run: the run

    Returns:
        the record
    """
    return Outcome(
        batch_size=run.control.batch_size,
        noise=run.measurement.noise,
        lr_scale=run.control.lr_scale,
        examples_seen=run.examples_seen,
        decisions=run.control.log.records,
        num_changes=run.control.log.changes,
        num_holds=run.control.log.holds,
        history=run.measurement.history,
        journal_path=run.journal_path,
        planned_steps=run.planned_steps,
    )
