"""A run as a checkpoint holds it: the `RunState` made plain, the policy's own state, and the journal's place."""

from __future__ import annotations

from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_bsscale.theory.checks import found
from lightning_bsscale.theory.state import RunState
from lightning_bsscale.theory.stored import as_plain, from_plain

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


def read_run(checkpoint: dict[str, Any]) -> RunState:
    """Return the run that a checkpoint holds."""
    state: RunState = from_plain(RunState, checkpoint["run"])
    return state


def restore_policy(policy: Any, checkpoint: dict[str, Any]) -> None:
    """Hand a policy what one of its class kept for itself."""
    stored, load = checkpoint["policy"], getattr(policy, "load_state_dict", None)
    if stored["class"] == type(policy).__qualname__ and stored["state"] is not None and callable(load):
        load(stored["state"])


def check_schema(checkpoint: dict[str, Any], callback: str) -> None:
    """Refuse a state that this version cannot read.

    Args:
        checkpoint: what a checkpoint holds for the callback
        callback: whose it is

    Raises:
        MisconfigurationException: the state is of another schema
    """
    if checkpoint.get("schema") != STATE_SCHEMA:
        raise MisconfigurationException(
            f"The checkpoint holds a {callback} state of schema {found(checkpoint.get('schema'))}; this version reads "
            f"{STATE_SCHEMA}. Continue with the version of lightning-bsscale that wrote it, or start without ckpt_path."
        )
