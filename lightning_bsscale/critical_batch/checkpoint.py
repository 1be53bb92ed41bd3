"""What a checkpoint says of the training that wrote it: its state, and the batch that it had grown to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_bsscale.callbacks.state.checkpoint import read_run
from lightning_bsscale.critical_batch.probe import ProbeError
from lightning_bsscale.theory.rules import FactorPath
from lightning_bsscale.theory.state import RunState

__all__ = ["BranchingPoint", "branching_point", "load_checkpoint"]

_CALLBACKS = ("BatchSizeScaler", "GradientNoiseScaleMonitor")


@dataclass(frozen=True, slots=True)
class BranchingPoint:
    """The step that the training made at the checkpoint.

    Attributes:
        accumulate: Loader batches of it.
        path: The rule's ratios from the training's first batch to this one.
        schedule: What the scaler's own schedule multiplied the learning rate by.
        notes: What the reader must know, as sentences.
    """

    accumulate: int
    path: FactorPath = field(default_factory=FactorPath)
    schedule: float = 1.0
    notes: tuple[str, ...] = ()


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint of Lightning's Trainer.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        ProbeError: If it cannot be read, or holds no optimizer's state.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # unpickling another file may raise anything
        reason = getattr(error, "strerror", None) or error
        raise ProbeError(f"the checkpoint {path} cannot be read: {reason}") from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "optimizer_states"} <= checkpoint.keys():
        raise ProbeError(
            f"{path} is no checkpoint of Lightning's Trainer with an optimizer's state: pass one "
            "that ModelCheckpoint or trainer.save_checkpoint wrote, with more than the weights"
        )
    return checkpoint


def branching_point(checkpoint: dict[str, Any] | None, rows: int, accumulate: int | None) -> BranchingPoint:
    """Find out what a step was made of at the checkpoint.

    The state of a scaler or a monitor in it knows, and is believed. Without one it is what the caller says.

    Args:
        checkpoint: The checkpoint; None at the start of training.
        rows: Examples of a loader batch.
        accumulate: The training's `accumulate_grad_batches`, or None if it was not given.

    Returns:
        The step.

    Raises:
        ProbeError: If the callback's state is of another version, or damaged.
    """
    states = {} if checkpoint is None else checkpoint.get("callbacks", {})
    name = next((name for name in _CALLBACKS if states.get(name)), None)
    if checkpoint is None or name is None:
        return BranchingPoint(accumulate or 1, notes=_doubts(checkpoint, accumulate))
    try:
        run = read_run(states[name], name)
    except MisconfigurationException as error:
        raise ProbeError(f"the checkpoint does not say what its batch was: {error}") from error
    batch, path = run.batch.batch_size, run.batch.path
    if run.loader_batches <= run.windows * run.now.accumulate and batch > run.now.batch_size:
        # No step was ever longer than the user's own, so the batch is one that a dry run would have had.
        batch, path = run.now.batch_size, FactorPath()
    found = BranchingPoint(max(1, round(batch / rows)), path, _own_schedule(checkpoint, run))
    has_grown = batch != run.first.batch_size
    change = f", grown from {run.first.batch_size:,}" if has_grown else ""
    notes = [f"The checkpoint's {name} had a batch of {batch:,} examples{change}: the branches are multiples of it."]
    if found.accumulate * rows != batch:
        notes.append(
            f"Loader batches of {rows:,} do not make {batch:,}: the branches are multiples of "
            f"{found.accumulate * rows:,}, at the learning rate of {batch:,}."
        )
    return BranchingPoint(found.accumulate, found.path, found.schedule, tuple(notes))


def _own_schedule(checkpoint: dict[str, Any], run: RunState) -> float:
    # Without schedulers of the user, the learning rate that was measured differs from the optimizer's by this alone.
    measured = run.measured.history[-1:]
    if checkpoint.get("lr_schedulers") or not measured or not checkpoint["optimizer_states"]:
        return 1.0
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    stored = float(groups[0]["lr"])
    return measured[0].lr / measured[0].lr_scale / stored if stored > 0 and measured[0].lr_scale > 0 else 1.0


def _doubts(checkpoint: dict[str, Any] | None, accumulate: int | None) -> tuple[str, ...]:
    """Compare what the caller says, or does not say, with Lightning's own counts of loader batches and steps."""
    if checkpoint is None:
        return ()
    try:
        loop = checkpoint["loops"]["fit_loop"]
        batches = loop["epoch_loop.batch_progress"]["total"]["completed"]
        steps = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"]
    except (KeyError, TypeError):
        return ()
    each = batches / steps if steps else 1.0
    if round(each) == (accumulate or 1):
        return ()
    return (
        f"A step of the checkpoint's training had {each:.3g} loader batches on average, but the branches take "
        f"{accumulate or 1} for one: say --accumulate {round(each)} if that was its accumulate_grad_batches.",
    )
