"""The callbacks' options, and those checks of them that `theory.checks` does not have."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer

from lightning_bsscale.theory.checks import check_integer, check_number, show
from lightning_bsscale.theory.hyperparameters import HyperparameterRule, resolve_hyperparameters
from lightning_bsscale.theory.rules import Constant, LearningRateRule, resolve_rule
from lightning_bsscale.theory.schedules import SCHEDULES, Checked, Schedule, resolve_schedule

MAX_UNIT_LENGTH = 30
LOG_STEPS = ("optimizer", "examples")

BatchSizeFn = Callable[[Any], float]
MergeFn = Callable[[list[Any]], Any]
SplitFn = Callable[[Any, int, int], Any]


def _constant(optimizer: Optimizer) -> LearningRateRule:
    return Constant()


def _nothing(optimizer: Optimizer) -> tuple[HyperparameterRule, ...]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """A callback's checked options, which `BatchSizeScaler` documents. The defaults are those of the monitor.

    Attributes:
        callback: name of the callback, for messages
        decides: whether batch size and learning-rate factor are decided, instead of only measuring
        rule_for: returns the rule for an optimizer
        also_scale_for: returns the rules of its other hyperparameters
        split: None for ``"auto"``
        weighs_counts: whether the loss is a mean over what `batch_size_fn` counts, instead of over examples
        log_step: what the loggers' step counts, one of :data:`LOG_STEPS`
        log_figure: whether the picture of the run goes to the loggers at its end
        unit: what `batch_size_fn` counts, as a plural word
    """

    callback: str
    decides: bool = False
    rule_for: Callable[[Optimizer], LearningRateRule] = _constant
    policy: Any = None
    schedule: Schedule | None = None
    also_scale_for: Callable[[Optimizer], tuple[HyperparameterRule, ...]] = _nothing
    warmup: int | float = 0
    total_examples: float | None = None
    max_batch_size: int | None = None
    measure_every: int
    split: bool | None = None
    max_micro_batch_size: int | str | None = None
    merge_fn: MergeFn | None = None
    split_fn: SplitFn | None = None
    weighs_counts: bool = False
    memory: float
    batch_size_fn: BatchSizeFn | None
    dry_run: bool = True
    log_prefix: str
    log_step: str = "optimizer"
    log_figure: bool = False
    unit: str = "examples"
    record: Any
    progress_bar: bool = False
    verbose: bool = False

    def shares(self) -> list[str]:
        """Return ``name=value`` of each option that is a share of the budget, and so needs one."""
        shares = [f"warmup={self.warmup}"] if isinstance(self.warmup, float) and self.warmup > 0 else []
        shares += [f"memory={self.memory}"] if self.memory < 1 else []
        shares += [f"schedule={self.schedule.name}"] if self.schedule is not None else []
        # A user's policy without `needs_budget` receives total_examples=None and can decide for itself.
        shares += [f"policy={type(self.policy).__name__}"] if getattr(self.policy, "needs_budget", False) else []
        return shares


def check_total(value: object, warmup: int | float) -> int | None:
    """Return the checked budget, of which a warmup in examples must leave a part."""
    if value is None:
        return None
    total = check_integer("total_examples", value, at_least=1)
    if isinstance(warmup, int) and warmup >= total:
        raise MisconfigurationException(
            f"warmup={warmup} takes all of total_examples={total}: the batch could never grow, and a schedule would "
            "end before its peak. Lower warmup, or raise total_examples."
        )
    return total


def check_rule(lr_rule: object, lr_cap: object) -> tuple[Any, float | None]:
    """Return the checked rule and ceiling; ``"auto"`` is resolved later, by the optimizer."""
    cap = None if lr_cap is None else check_number("lr_cap", lr_cap, at_least=1)
    if isinstance(lr_rule, str) and lr_rule == "auto":
        return lr_rule, cap
    rule = resolve_rule(lr_rule, auto=", 'auto'")
    if cap is not None and isinstance(rule, Constant):
        raise MisconfigurationException(
            f"lr_cap={cap:g} limits the learning-rate factor, but lr_rule='none' never changes the learning rate. "
            "Remove lr_cap, or choose a rule."
        )
    return lr_rule, cap


def check_also_scale(value: object) -> str | tuple[HyperparameterRule, ...]:
    """Return the checked rules of other hyperparameters; ``"auto"`` is resolved later, by the optimizer."""
    return value if isinstance(value, str) and value == "auto" else resolve_hyperparameters(value, auto="'auto', ")


def check_schedule(value: object) -> Schedule | None:
    """Return the schedule, a user's own with its factors checked; None leaves the user's scheduler in control."""
    if value is None:
        return None
    schedule = resolve_schedule(value)
    return schedule if type(schedule) in SCHEDULES.values() else Checked(schedule)


def check_batch_size_fn(value: Any) -> Any:
    """Return the function that counts the examples of a batch, or None."""
    if value is not None and not callable(value):
        raise TypeError(
            f"batch_size_fn must be a function from a batch to a number of examples, or None, got {show(value)}"
        )
    return value


def check_function(name: str, value: Any, arguments: str) -> Any:
    """Return a function of the user's, or None."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be a function of {arguments}, or None, got {show(value)}")
    return value


def check_max_batch_size(size: Any) -> int | None:
    """Check the largest batch in examples; None for the default."""
    return None if size is None else check_integer("max_batch_size", size, at_least=1)


def check_micro_batch_size(value: object) -> int | str | None:
    """Return the largest micro-batch: a number of examples, ``"auto"``, or None."""
    if value is None or (isinstance(value, str) and value == "auto"):
        return value
    if isinstance(value, str):
        raise TypeError(f"max_micro_batch_size must be an integer of at least 1, 'auto' or None, got {show(value)}")
    return check_integer("max_micro_batch_size", value, at_least=1)


def check_split(value: object) -> bool | None:
    """Return whether loader batches are split to be measured; None for ``"auto"``."""
    if isinstance(value, str) and value == "auto":
        return None
    if not isinstance(value, bool):
        raise TypeError(f"split must be True, False or 'auto', got {show(value)} ({type(value).__name__})")
    return value


def check_loss_mean(value: object, batch_size_fn: BatchSizeFn | None) -> bool:
    """Return whether the loss is a mean over what `batch_size_fn` counts, instead of over examples."""
    if value not in ("examples", "batch_size_fn"):
        raise ValueError(f"loss_is_mean_over must be 'examples' or 'batch_size_fn', got {show(value)}")
    if value == "batch_size_fn" and batch_size_fn is None:
        raise ValueError(
            "loss_is_mean_over='batch_size_fn' needs batch_size_fn, which was not given. Pass the function that counts "
            "what your loss is a mean over, tokens for example."
        )
    return value == "batch_size_fn"


def check_record(value: object) -> bool | str | Path:
    """Return where to write the journal: True, False, or the path of a regular local file."""
    if not isinstance(value, (bool, str, Path)):
        raise TypeError(f"record must be True, False or a path, got {show(value)} ({type(value).__name__})")
    if isinstance(value, bool):
        return value
    if not str(value).strip() or (os.path.exists(value) and not os.path.isfile(value)):
        raise ValueError(f"record must be True, False or the path of a file, got {str(value)!r}, which is not a file")
    if is_remote(str(value)):
        raise ValueError(
            f"record must be True, False or a path on this machine, got {str(value)!r}: a journal is appended to and "
            "locked, which a remote store cannot do. Record to a local path, and copy the file after training."
        )
    return value


def is_remote(path: str) -> bool:
    """Return whether a path is a URL such as ``s3://bucket/run``, also with the single slash that `Path` leaves."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.:-]+:/", path) is not None


def check_flag(name: str, value: object) -> bool:
    """Return a switch, which must be a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {show(value)} ({type(value).__name__})")
    return value


def check_unit(value: object) -> str:
    """Return the word for what is counted, which goes into sentences, titles and axes."""
    if not isinstance(value, str):
        raise TypeError(f"unit must be a word such as 'examples' or 'tokens', got {show(value)}")
    if not value.isprintable() or not 0 < len(value.strip()) <= MAX_UNIT_LENGTH:
        raise ValueError(
            f"unit must be a word of at most {MAX_UNIT_LENGTH} characters, such as 'tokens', got {show(value)}"
        )
    return value.strip()


def check_log_step(value: object) -> str:
    """Return what the loggers' step counts."""
    allowed = " or ".join(map(repr, LOG_STEPS))
    if not isinstance(value, str):
        raise TypeError(f"log_step must be {allowed}, got {show(value)} ({type(value).__name__})")
    if value not in LOG_STEPS:
        raise ValueError(f"log_step must be {allowed}, got {show(value)}")
    return value


def check_prefix(value: object) -> str:
    """Return the prefix of the logged keys."""
    if not isinstance(value, str):
        raise TypeError(f"log_prefix must be a string, got {show(value)} ({type(value).__name__})")
    return value
