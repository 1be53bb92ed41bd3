"""A callback's state in a checkpoint: the plain `RunState`, the policy's own state, and the journal's position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_bsscale.theory.checks import show
from lightning_bsscale.theory.losses import Losses
from lightning_bsscale.theory.pace import Pace
from lightning_bsscale.theory.state import RunState
from lightning_bsscale.theory.stored import FRACTIONS, as_plain, check_stored, from_plain

STATE_SCHEMA = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRun:
    """What a checkpoint holds of a callback, in the form that takes least memory.

    Attributes:
        run: the run
        policy: the class of the policy, and what its own `state_dict` returned
        journal: the journal's id, path and number of records, or None
        pace: the seconds of the run's windows so far, by this process's clock
        losses: what the run logged, for its picture
    """

    run: RunState
    policy: dict[str, Any]
    journal: dict[str, Any] | None
    pace: Pace
    losses: Losses


def state_of_policy(policy: Any) -> dict[str, Any]:
    """Return a policy's class, and what its own `state_dict` returns; None if it has none."""
    own = getattr(policy, "state_dict", None)
    return {"class": type(policy).__qualname__, "state": own() if callable(own) else None}


def to_checkpoint(saved: SavedRun) -> dict[str, Any]:
    """Return the state for a checkpoint.

    Args:
        saved: the run, and what is saved with it

    Returns:
        Numbers, strings, lists and dicts, and whatever the policy's `state_dict` returns.
    """
    return {
        "schema": STATE_SCHEMA,
        "run": as_plain(saved.run),
        "policy": saved.policy,
        "journal": saved.journal,
        "pace": as_plain(saved.pace),
        "losses": as_plain(saved.losses),
    }


def read_checkpoint(checkpoint: dict[str, Any], callback: str) -> SavedRun:
    """Read what `to_checkpoint` returned; arguments and errors are those of `read_run`."""
    return SavedRun(
        run=read_run(checkpoint, callback),
        policy=checkpoint["policy"],
        journal=checkpoint["journal"],
        pace=read_pace(checkpoint),
        losses=read_losses(checkpoint),
    )


def read_run(checkpoint: dict[str, Any], callback: str) -> RunState:
    """Read the run from a checkpoint.

    Args:
        checkpoint: the callback's state in it
        callback: the callback's name, for the message

    Returns:
        The run at the end of its last window.

    Raises:
        MisconfigurationException: If the state is of another schema, or damaged.
    """
    if checkpoint.get("schema") != STATE_SCHEMA:
        raise MisconfigurationException(
            f"The checkpoint holds a {callback} state of schema {show(checkpoint.get('schema'))}; this version reads "
            f"{STATE_SCHEMA}. Continue with the version of lightning-bsscale that wrote it, or start without ckpt_path."
        )
    try:
        check_stored(RunState, checkpoint.get("run"), fractions=FRACTIONS)
    except ValueError as error:
        raise MisconfigurationException(
            f"The checkpoint holds a damaged {callback} state: {error}. Resume from another checkpoint, or start "
            "without ckpt_path."
        ) from error
    run: RunState = from_plain(RunState, checkpoint["run"])
    return run


def read_pace(checkpoint: dict[str, Any]) -> Pace:
    """Return the seconds of the run's windows up to the checkpoint; none if it does not hold any."""
    try:
        check_stored(Pace, checkpoint.get("pace"))
    except ValueError:
        return Pace()  # nothing that the run computes depends on it
    pace: Pace = from_plain(Pace, checkpoint["pace"])
    return pace


def read_losses(checkpoint: dict[str, Any]) -> Losses:
    """Return the losses of the run up to the checkpoint; none if it does not hold any."""
    try:
        check_stored(Losses, checkpoint.get("losses"))
    except ValueError:
        return Losses()  # only a picture depends on it
    losses: Losses = from_plain(Losses, checkpoint["losses"])
    return losses


def restore_policy(policy: Any, stored: dict[str, Any]) -> None:
    """Give the policy the state that one of its class stored."""
    load = getattr(policy, "load_state_dict", None)
    if stored["class"] == type(policy).__qualname__ and stored["state"] is not None and callable(load):
        load(stored["state"])
