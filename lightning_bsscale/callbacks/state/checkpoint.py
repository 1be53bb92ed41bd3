"""A callback's state in a checkpoint: the plain `RunState`, the policy's own state, and the journal's position."""

from __future__ import annotations

from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_bsscale.theory.checks import show
from lightning_bsscale.theory.losses import Losses
from lightning_bsscale.theory.pace import Pace
from lightning_bsscale.theory.state import RunState
from lightning_bsscale.theory.stored import FRACTIONS, as_plain, check_stored, from_plain

STATE_SCHEMA = 2


def to_checkpoint(
    state: RunState, policy: Any, journal: dict[str, Any] | None, pace: Pace, losses: Losses
) -> dict[str, Any]:
    """Return the state for a checkpoint.

    Args:
        state: the run
        policy: the policy, whose own `state_dict` is included if it has one
        journal: the journal's id, path and number of records, or None
        pace: the seconds of the run's windows so far, by this process's clock
        losses: what the run logged, for its picture

    Returns:
        Numbers, strings, lists and dicts, and whatever the policy's `state_dict` returns.
    """
    own = getattr(policy, "state_dict", None)
    return {
        "schema": STATE_SCHEMA,
        "run": as_plain(state),
        "policy": {"class": type(policy).__qualname__, "state": own() if callable(own) else None},
        "journal": journal,
        "pace": as_plain(pace),
        "losses": as_plain(losses),
    }


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


def restore_policy(policy: Any, checkpoint: dict[str, Any]) -> None:
    """Give the policy the state that one of its class stored."""
    stored, load = checkpoint["policy"], getattr(policy, "load_state_dict", None)
    if stored["class"] == type(policy).__qualname__ and stored["state"] is not None and callable(load):
        load(stored["state"])
