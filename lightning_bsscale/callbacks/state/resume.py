"""What a run was started with, and how it goes on from another start (micro-batch, number of devices)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_bsscale.callbacks.trainer.loaders import Loaders
from lightning_bsscale.theory.checks import found
from lightning_bsscale.theory.decision_log import DecisionLog
from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.records import DecisionRecord, Measurement
from lightning_bsscale.theory.robust import RobustAverages
from lightning_bsscale.theory.stored import as_plain, from_plain

STATE_SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What batches and the user's plan are counted in.

    Attributes:
        granularity: examples of one micro-batch on all devices
        loader_batch_size: the loaders' own `batch_size` on all devices, which tells a changed micro-batch from a short
            one; None where one has none
        world_size: devices
        accumulate: micro-batches of one step
    """

    granularity: int
    loader_batch_size: int | None
    world_size: int
    accumulate: int

    @property
    def micro_batch_size(self) -> float:
        """Examples of one micro-batch on one device, on average over the devices."""
        whole, rest = divmod(self.granularity, self.world_size)
        return self.granularity / self.world_size if rest else whole

    @property
    def own_micro_batch_size(self) -> int | None:
        """Examples of one micro-batch on this device; None with several, as each may have another."""
        return self.granularity if self.world_size == 1 else None

    @property
    def batch_size(self) -> int:
        """Examples of one step."""
        return self.accumulate * self.granularity


def read_start(trainer: pl.Trainer, found: Loaders, accumulate: int, first: Start | None) -> Start:
    """What this start is counted in.

    Args:
        trainer: the Trainer, before its first micro-batch
        found: what the ranks' loaders say
        accumulate: the user's `accumulate_grad_batches`
        first: the start of the run that goes on, or None. The micro-batch that a resumed run happens to begin with may
            be a short one, so its unit is kept, unless the loaders say that it was changed

    Returns:
        the record
    """
    granularity, ranks, told = found.first_size, trainer.world_size, found.batch_size
    if first is not None:
        size = first.micro_batch_size
        if told is not None and first.loader_batch_size is not None:
            size *= (told / ranks) / (first.loader_batch_size / first.world_size)
        granularity = max(ranks, round(size * ranks))
    return Start(granularity=granularity, loader_batch_size=told, world_size=ranks, accumulate=accumulate)


def describe_change(before: Start, now: Start) -> str:
    """What differs between two starts.

    Args:
        before: the first one
        now: this one

    Returns:
        a part of a sentence, empty where all is the same
    """
    names = {
        "micro_batch_size": "micro-batches of {} instead of {} examples",
        "world_size": "{} instead of {} devices",
        "accumulate": "accumulate_grad_batches={} instead of {}",
    }
    changes = [
        text.format(round(getattr(now, name), 1), round(getattr(before, name), 1))
        for name, text in names.items()
        if getattr(now, name) != getattr(before, name)
    ]
    return ", ".join(changes)


def window_at_restart(state: dict[str, Any]) -> tuple[int, int]:
    """The window by which Lightning, at its restart, must judge the position it restored.

    It asks whether the last micro-batch before the checkpoint ended a window, to count the loggers' steps. After an
    exception within a micro-batch the answer must be no: the step before was counted.

    Args:
        state: of the run that goes on

    Returns:
        start and length of the window that the checkpoint's position lies in, or that ended there
    """
    window = state["window"]
    if window is None:
        length = state["control"]["batch_size"] // Start(**state["now"]).granularity
        return state["budget"]["micro_batches"], max(1, length)
    return window["start"], window["planned"] + window["in_progress"]


def is_over(state: dict[str, Any], max_steps: int, total_examples: float | None) -> bool:
    """Whether the budget was used up when the state was saved.

    Args:
        state: of the run that goes on
        max_steps: the Trainer's; -1 for none
        total_examples: the option

    Returns:
        True where not one micro-batch is left
    """
    if total_examples is not None:
        return bool(used_examples(state) >= total_examples)
    return bool(0 <= max_steps <= state["budget"]["planned"])


def used_examples(state: dict[str, Any]) -> int:
    """Examples of the budget that are gone: seen, or lost.

    Args:
        state: of the run that goes on

    Returns:
        the number
    """
    return int(sum(state["examples"].values()) + state["lost_examples"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run has to show; the defaults are those of one that has not begun.

    Attributes:
        batch_size: the batch in force, in examples, or None
        noise: the averaged noise scale, or None
        lr_scale: the factor on the rate
        examples_seen: examples of all windows
        decisions: changes, and the first of each run of holds; of very many, the older ones thinned
        num_changes: changes in all
        num_holds: runs of holds in all
        history: the measured windows
        journal_path: the file that was recorded to, or None
        planned_steps: steps of the user's own plan
    """

    batch_size: int | None = None
    noise: NoiseScale | None = None
    lr_scale: float = 1.0
    examples_seen: int = 0
    decisions: list[DecisionRecord] = field(default_factory=list)
    num_changes: int = 0
    num_holds: int = 0
    history: list[Measurement] = field(default_factory=list)
    journal_path: str | None = None
    planned_steps: int = 0

    def to_plain(self) -> dict[str, Any]:
        """Return the record as JSON can hold it.

        Returns:
            its fields as numbers, strings, lists and dicts
        """
        return as_plain(replace(self, decisions=[], history=[])) | {
            "decisions": [as_plain(record) for record in self.decisions],
            "history": [as_plain(made) for made in self.history],
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Outcome:
        """Make the record from what `to_plain` gave.

        Args:
            plain: its fields

        Returns:
            an equal record
        """
        decisions = [from_plain(DecisionRecord, record) for record in plain["decisions"]]
        history = [from_plain(Measurement, made) for made in plain["history"]]
        shown: Outcome = from_plain(cls, plain | {"decisions": decisions, "history": history})
        return shown


def outcome_of(state: dict[str, Any] | None) -> Outcome:
    """What a checkpoint has to show: of a run that was over when it was loaded, nothing else is left.

    Args:
        state: the scaler's or the monitor's, or None

    Returns:
        the record
    """
    if not state:
        return Outcome()
    measured, control = state["measurement"], state.get("control")
    shown = Outcome(
        examples_seen=sum(state["examples"].values()),
        noise=RobustAverages.from_state(measured["averages"]).noise_scale(),
        history=[from_plain(Measurement, made) for made in measured["history"]],
    )
    if control is None:
        return shown
    log = DecisionLog.from_state(control["decisions"])
    return replace(
        shown,
        batch_size=control["batch_size"],
        lr_scale=control["lr_scale"],
        decisions=log.records,
        num_changes=log.changes,
        num_holds=log.holds,
        planned_steps=state["budget"]["planned"],
    )


def check_schema(state: dict[str, Any], callback: str) -> None:
    """Refuses a state that this version cannot read.

    Args:
        state: from a checkpoint
        callback: whose it is

    Raises:
        MisconfigurationException: the state is of another schema
    """
    if state.get("schema") != STATE_SCHEMA:
        raise MisconfigurationException(
            f"The checkpoint holds a {callback} state of schema {found(state.get('schema'))}; this version reads "
            f"{STATE_SCHEMA}. Continue with the version of lightning-bsscale that wrote it, or start without ckpt_path."
        )
