"""The start of a run, at its first loader batch: read and check the plan, and create the loop."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch.optim import Optimizer

from lightning_bsscale.callbacks.actuator import Actuator
from lightning_bsscale.callbacks.checks import cautions, preflight
from lightning_bsscale.callbacks.checks.options import RunOptions
from lightning_bsscale.callbacks.gradient_watch import GradientWatch
from lightning_bsscale.callbacks.output import messages
from lightning_bsscale.callbacks.output.journal import open_journal
from lightning_bsscale.callbacks.output.reports import Reports
from lightning_bsscale.callbacks.state.checkpoint import SavedRun, restore_policy
from lightning_bsscale.callbacks.trainer.learning_rate import relative_learning_rate
from lightning_bsscale.callbacks.trainer.loaders import Loaders, SizeCheck, read_loaders
from lightning_bsscale.callbacks.trainer.losses import LossReader
from lightning_bsscale.callbacks.trainer.optimizer_step import unwrapped
from lightning_bsscale.callbacks.trainer.traits import has_batch_norm
from lightning_bsscale.callbacks.trainer.user_plan import read_plan
from lightning_bsscale.callbacks.window_loop import WindowLoop
from lightning_bsscale.theory.described import describe, min_steps_of
from lightning_bsscale.theory.losses import Losses
from lightning_bsscale.theory.pace import Pace
from lightning_bsscale.theory.plan import PlanPosition
from lightning_bsscale.theory.profile import RunProfile
from lightning_bsscale.theory.run import begin_run, resume_run
from lightning_bsscale.theory.shares import memory_in_examples
from lightning_bsscale.theory.start import Start, read_unit
from lightning_bsscale.theory.state import RunSettings, RunState


def start_run(
    trainer: pl.Trainer,
    options: RunOptions,
    actuator: Actuator,
    saved: SavedRun | None,
    *,
    size: int,
    rows: int,
    batch_idx: int,
) -> WindowLoop:
    """Read the user's plan, begin or resume the run, and attach to the optimizer.

    Args:
        trainer: the Trainer, before its first loader batch
        options: the callback's options
        actuator: writes to the Trainer
        saved: the run to resume, or None
        size: examples in the first loader batch of this rank
        rows: examples by which it can be split
        batch_idx: its index in the epoch

    Returns:
        The loop, before its first window.

    What cannot work raises MisconfigurationException; `actuator.release` then restores everything.
    """
    stored = None if saved is None else saved.run
    optimizer = unwrapped(trainer.optimizers[0])
    rule = options.rule_for(optimizer)
    loaders = read_loaders(trainer, size, rows, options.batch_size_fn)
    first = None if stored is None else stored.first
    now = _this_start(trainer.world_size, loaders, actuator, first)
    plan = read_plan(trainer, options, loaders, first or now, now)
    gradients = GradientWatch(trainer, optimizer, actuator.micro_batches)
    total = plan.total_examples
    settings = RunSettings(
        first=first or now,
        now=now,
        plan=plan.steps,
        limits=plan.limits,
        policy=options.policy,
        rule=rule,
        rule_for=options.rule_for,
        schedule=options.schedule,
        also_scale=options.also_scale_for(optimizer),
        total_examples=total,
        warmup_examples=plan.warmup_examples,
        memory=memory_in_examples(options.memory, total),
        measure_every=options.measure_every,
        # The same on all ranks, which must compute at the same time.
        **_micro_batches(trainer, options, now.granularity_per_rank * loaders.first_rows / loaders.first_size),
        samples_per_micro_batch=gradients.samples_per_micro_batch,
        decides=options.decides,
        acts=options.decides and not options.dry_run,
    )
    position = _position(trainer, settings, stored, loaders, actuator, batch_idx)
    state = _first_state(trainer, options.unit, settings, stored, position)
    if saved is not None:
        restore_policy(options.policy, saved.policy)
        gradients.unsent_examples = state.examples.assumed / now.world_size
    if options.decides:
        messages.log_start(state.batch.batch_size, plan.limits, options, is_resumed=stored is not None)
    profile = _profile(options, optimizer, is_resumed=stored is not None)
    pace, resumes = (Pace(steps_before=state.planned_steps), None) if saved is None else (saved.pace, saved.journal)
    journal = open_journal(trainer, options.record, settings, state, profile, pace, resumes)
    with journal.closed_on_error():
        # Last, so that an error above leaves nothing attached.
        _warn_single_micro_batch(trainer, options, settings, state, loaders, rows)
        # The first loader batch of a resumed run may be a short one.
        usual_size = size if stored is None else now.own_granularity
        sizes = SizeCheck(usual_size if options.decides else None, options.unit)
        actuator.attach(optimizer, settings.plan, state.position)
        losses = LossReader(Losses() if saved is None else saved.losses, options.log_prefix)
        reports = Reports(options, settings, journal, sizes, losses)
        return WindowLoop(settings, state, actuator, gradients, loaders, reports, profile, pace)


def _this_start(world_size: int, loaders: Loaders, actuator: Actuator, first: Start | None) -> Start:
    return Start(
        granularity=read_unit(loaders.first_size, loaders.batch_size, world_size, first),
        loader_batch_size=loaders.batch_size,
        world_size=world_size,
        accumulate=actuator.accumulate,
    )


def _profile(options: RunOptions, optimizer: Optimizer, *, is_resumed: bool) -> RunProfile:
    betas = optimizer.param_groups[0].get("betas")
    beta2 = betas[1] if isinstance(betas, (tuple, list)) and len(betas) > 1 else None
    return RunProfile(
        unit=options.unit,
        policy=type(options.policy).__name__ if options.decides else None,
        optimizer=type(optimizer).__name__,
        beta2=float(beta2) if isinstance(beta2, (int, float)) else None,
        also_scale=tuple(type(rule).__name__ for rule in options.also_scale_for(optimizer)),
        max_batch_size=options.max_batch_size,
        split=options.split,
        min_steps=min_steps_of(describe(options.policy)) if options.decides else 0,
        is_resumed=is_resumed,
    )


def _micro_batches(trainer: pl.Trainer, options: RunOptions, usual_rows: float) -> dict[str, Any]:
    """Return the settings that say how windows are computed."""
    rows = max(1, round(usual_rows))
    preflight.check_micro_batches(trainer, options.max_micro_batch_size, rows)
    largest, normalizes = options.max_micro_batch_size, has_batch_norm(trainer.lightning_module)
    splits = not normalizes if options.split is None else options.split
    # The gradients of a deterministic run must not depend on a clock.
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    may_search = options.decides and not options.dry_run and not normalizes and not is_deterministic
    return {
        "rows": rows,
        "max_micro_batch_size": largest if isinstance(largest, int) else None,
        "searches_size": largest == "auto" and may_search,
        "splits": trainer.world_size == 1 and splits,
        "divides": splits,
    }


def _first_state(
    trainer: pl.Trainer, unit: str, settings: RunSettings, stored: RunState | None, position: PlanPosition
) -> RunState:
    if stored is None:
        lr = relative_learning_rate(unwrapped(trainer.optimizers[0]))
        return begin_run(settings, position, epoch=trainer.current_epoch, relative_lr=lr)
    state = resume_run(settings, stored, position, epoch=trainer.current_epoch)
    if settings.decides:
        before, now = stored.batch.batch_size, state.batch.batch_size
        messages.warn_changed_start(settings.first, stored.now, settings.now, before, now, unit)
    return state


def _position(
    trainer: pl.Trainer,
    settings: RunSettings,
    stored: RunState | None,
    loaders: Loaders,
    actuator: Actuator,
    batch_idx: int,
) -> PlanPosition:
    lengths: dict[str, Any] = {
        "epoch_batches": loaders.batches,
        "epoch_examples": loaders.epoch_examples(settings.now.granularity),
        "frequencies": actuator.frequencies,
    }
    if stored is not None:
        lost = 0 if stored.window is None else stored.loader_batches_in_epoch - stored.position.loader_batches
        lost_examples = lost * stored.now.granularity
        return settings.plan.resumed(stored.position, **lengths, lost=lost, lost_examples=lost_examples)
    position = settings.plan.begin(**lengths)
    if trainer.global_step > 0:  # training began without the callback, and followed the plan
        return settings.plan.begin_at(position, batch_idx, trainer.global_step)
    return position


def _warn_single_micro_batch(
    trainer: pl.Trainer, options: RunOptions, settings: RunSettings, state: RunState, loaders: Loaders, rows: int
) -> None:
    if settings.samples_per_micro_batch > 1 or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    # In a resumed run that acts the current batch size counts, not the user's.
    current = max(1, state.batch.batch_size // settings.now.granularity)
    cautions.warn_single_micro_batch(
        options,
        accumulate=current if settings.acts else settings.now.accumulate,
        epoch_batches=loaders.batches,
        rows=rows,
        splits=settings.splits,
        world_size=trainer.world_size,
    )
