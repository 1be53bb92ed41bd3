"""The callbacks' options, and checks of them where `theory.checks` has none."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer

from lightning_bsscale.theory.checks import check_integer, check_number, found
from lightning_bsscale.theory.rules import Constant, LearningRateRule, resolve_rule
from lightning_bsscale.theory.schedules import SCHEDULES, Checked, Schedule, resolve_schedule

BatchSizeFn = Callable[[Any], float]


def _constant(optimizer: Optimizer) -> LearningRateRule:
    return Constant()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """A callback's options, checked; `BatchSizeScaler` documents them. The defaults are those of a monitor.

    Attributes:
        callback: name of the callback, for messages
        decides: whether the batch size and the learning-rate factor are decided, or only measurements are taken
        rule_for: makes the rule that fits an optimizer
    """

    callback: str
    decides: bool = False
    rule_for: Callable[[Optimizer], LearningRateRule] = _constant
    policy: Any = None
    schedule: Schedule | None = None
    warmup: int | float = 0
    total_examples: float | None = None
    max_batch_size: int | None = None
    measure_every: int
    probe_every: int = 0
    memory: float
    batch_size_fn: BatchSizeFn | None
    dry_run: bool = True
    log_prefix: str
    record: Any
    progress_bar: bool = False
    verbose: bool = False

    def shares(self) -> list[str]:
        """The options that are shares of the budget, and so need one.

        Returns:
            ``name=value`` of each
        """
        shares = [f"warmup={self.warmup}"] if isinstance(self.warmup, float) and self.warmup > 0 else []
        shares += [f"memory={self.memory}"] if self.memory < 1 else []
        shares += [f"schedule={self.schedule.name}"] if self.schedule is not None else []
        # A policy of the user's own may not say; it sees total_examples=None and can decide for itself.
        shares += [f"policy={type(self.policy).__name__}"] if getattr(self.policy, "needs_budget", False) else []
        return shares


def check_total(value: object, warmup: int | float) -> int | None:
    """Checks the budget.

    Args:
        value: a number of examples, or None
        warmup: the checked warmup

    Returns:
        the budget

    Raises:
        MisconfigurationException: the warmup takes all of it
    """
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
    """Checks how the rate follows the batch; which rule ``"auto"`` is, the optimizer will say.

    Args:
        lr_rule: a name, ``"auto"``, or a rule
        lr_cap: the largest factor, or None

    Returns:
        both

    Raises:
        MisconfigurationException: a ceiling for a rate that never changes
    """
    cap = None if lr_cap is None else check_number("lr_cap", lr_cap, at_least=1)
    if isinstance(lr_rule, str) and lr_rule == "auto":
        return lr_rule, cap
    rule = resolve_rule(lr_rule, auto=", 'auto'")
    if cap is not None and isinstance(rule, Constant):
        raise MisconfigurationException(
            f"lr_cap={cap:g} is a ceiling on the factor on the rate, and lr_rule='none' leaves the rate as it is. "
            "Remove lr_cap, or choose a rule."
        )
    return lr_rule, cap


def check_schedule(value: object) -> Schedule | None:
    """Checks who owns the rate.

    Args:
        value: a name, a schedule, or None for the user's own scheduler

    Returns:
        the schedule; one of the user's own with a check of its answers
    """
    if value is None:
        return None
    schedule = resolve_schedule(value)
    return schedule if type(schedule) in SCHEDULES.values() else Checked(schedule)


def check_warmup(value: object) -> int | float:
    """Checks a warmup.

    Args:
        value: a share of the budget (float) or a number of examples (int)

    Returns:
        the value; its type says which of the two it is
    """
    if not isinstance(value, bool) and isinstance(value, Integral):
        return check_integer("warmup (as a number of examples)", value, at_least=0)
    return check_number(
        "warmup (a float is a share of the budget, an int a number of examples)", value, at_least=0, below=1
    )


def check_memory(value: object) -> float:
    """Checks the memory of the averages.

    Args:
        value: a share of the budget

    Returns:
        the value
    """
    return check_number("memory (a share of the budget; 1.0 averages over everything)", value, above=0, at_most=1)


def check_batch_size_fn(value: Any) -> Any:
    """Checks a function that counts examples.

    Args:
        value: a callable, or None

    Returns:
        the value

    Raises:
        TypeError: it is neither
    """
    if value is not None and not callable(value):
        raise TypeError(
            f"batch_size_fn must be a function from a batch to a number of examples, or None, got {found(value)}"
        )
    return value


def check_record(value: object) -> bool | str | Path:
    """Checks where to write the journal.

    Args:
        value: True, False, or a path

    Returns:
        the value

    Raises:
        TypeError: it is none of these
        ValueError: the path is empty, remote, or that of a folder or a device
    """
    if not isinstance(value, (bool, str, Path)):
        raise TypeError(f"record must be True, False or a path, got {found(value)} ({type(value).__name__})")
    if isinstance(value, bool):
        return value
    if not str(value).strip() or (os.path.exists(value) and not os.path.isfile(value)):
        raise ValueError(f"record must be True, False or the path of a file, got {str(value)!r}, which is no file's")
    if is_remote(str(value)):
        raise ValueError(
            f"record must be True, False or a path on this machine, got {str(value)!r}: a journal is appended to and "
            "locked, which a remote store cannot do. Record to a local path, and copy the file after training."
        )
    return value


def is_remote(path: str) -> bool:
    """Whether a path is a URL, as fsspec and Lightning take them: ``s3://bucket/run``, ``memory://run``.

    Args:
        path: a path; also one whose slashes `Path` has made one of

    Returns:
        False for what the operating system opens, such as ``C:/runs``
    """
    return re.match(r"[A-Za-z][A-Za-z0-9+.:-]+:/", path) is not None


def check_flag(name: str, value: object) -> bool:
    """Checks a switch.

    Args:
        name: the option
        value: what was given

    Returns:
        the value

    Raises:
        TypeError: it is no bool
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {found(value)} ({type(value).__name__})")
    return value


def check_prefix(value: object) -> str:
    """Checks the prefix of the logged keys.

    Args:
        value: a string

    Returns:
        the value

    Raises:
        TypeError: it is no string
    """
    if not isinstance(value, str):
        raise TypeError(f"log_prefix must be a string, got {found(value)} ({type(value).__name__})")
    return value
