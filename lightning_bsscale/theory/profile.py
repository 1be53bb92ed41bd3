"""What a reader of a run is told beside its state: its unit, the options behind its limits, its last decision."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_bsscale.theory.pace import Pace
from lightning_bsscale.theory.records import DecisionRecord
from lightning_bsscale.theory.state import RunNumbers

__all__ = ["RunContext", "RunProfile"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProfile:
    """What a journal's header holds for its readers; nothing that a run computes depends on it.

    Attributes:
        unit: What `batch_size_fn` counts, as a plural word.
        policy: Class of the policy; None for a monitor.
        optimizer: Class of the optimizer.
        beta2: The second of its betas; None without any.
        also_scale: Classes of the rules of other hyperparameters.
        max_batch_size: The user's option; None for the default.
        split: The user's option; None for ``"auto"``.
        min_steps: The `min_steps` of the policy, which limits the batch; 0 where it has none.
        is_resumed: Whether the run was resumed from a checkpoint.
    """

    unit: str = "examples"
    policy: str | None = None
    optimizer: str = ""
    beta2: float | None = None
    also_scale: tuple[str, ...] = ()
    max_batch_size: int | None = None
    split: bool | None = None
    min_steps: int = 0
    is_resumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What is known of a run in the process that trains it, and is not in its state.

    Attributes:
        numbers: Its settings.
        profile: What else a reader is told.
        latest: The policy's last decision, a hold that continues a run of holds included; None before the first.
        pace: The seconds of its windows.
        seconds: Of a loader batch, and of a step beyond its loader batches; None while unknown.
    """

    numbers: RunNumbers
    profile: RunProfile = field(default_factory=RunProfile)
    latest: DecisionRecord | None = None
    pace: Pace = field(default_factory=Pace)
    seconds: tuple[float | None, float | None] = (None, None)
