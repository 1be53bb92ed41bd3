"""A run as a checkpoint holds it: the `RunState` made plain, the policy's own state, and the journal's place."""

from __future__ import annotations

from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_bsscale.theory.checks import found
from lightning_bsscale.theory.state import RunState
from lightning_bsscale.theory.stored import FRACTIONS, as_plain, check_stored, from_plain

STATE_SCHEMA = 2


def to_checkpoint(state: RunState, policy: Any, journal: dict[str, Any] | None) -> dict[str, Any]:
    """Return what a checkpoint holds.

    Args:
        state: the run
        policy: whose own `state_dict` is kept, where it has one
        journal: the journal's id, path and number of records, or None

    Returns:
        numbers, strings, lists and dicts, and what the policy's `state_dict` returns
    """
    own = getattr(policy, "state_dict", None)
    return {
        "schema": STATE_SCHEMA,
        "run": as_plain(state),
        "policy": {"class": type(policy).__qualname__, "state": own() if callable(own) else None},
        "journal": journal,
    }


def read_run(checkpoint: dict[str, Any], callback: str) -> RunState:
    """Read the run that a checkpoint holds.

    Args:
        checkpoint: what it holds for the callback
        callback: whose it is

    Returns:
        the run at the last window's end

    Raises:
        MisconfigurationException: the state is of another schema, or damaged
    """
    if checkpoint.get("schema") != STATE_SCHEMA:
        raise MisconfigurationException(
            f"The checkpoint holds a {callback} state of schema {found(checkpoint.get('schema'))}; this version reads "
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


def restore_policy(policy: Any, checkpoint: dict[str, Any]) -> None:
    """Hand a policy what one of its class kept for itself."""
    stored, load = checkpoint["policy"], getattr(policy, "load_state_dict", None)
    if stored["class"] == type(policy).__qualname__ and stored["state"] is not None and callable(load):
        load(stored["state"])
