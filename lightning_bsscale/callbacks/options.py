"""The scaler's options, and checks of them where `theory.checks` has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_bsscale.theory.checks import check_number
from lightning_bsscale.theory.schedules import Schedule

BatchSizeFn = Callable[[Any], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalerOptions:
    """The scaler's options, checked; their meaning is told at `BatchSizeScaler`."""

    policy: Any
    schedule: Schedule | None
    warmup: int | float
    total_examples: float | None
    max_batch_size: int | None
    measure_every: int
    probe_every: int
    memory: float
    batch_size_fn: BatchSizeFn | None
    dry_run: bool
    log_prefix: str
    record: Any
    progress_bar: bool
    verbose: bool

    def shares(self) -> list[str]:
        """The options that are shares of the budget, and so need one.

        Returns:
            ``name=value`` of each
        """
        found = [f"warmup={self.warmup}"] if isinstance(self.warmup, float) and self.warmup > 0 else []
        found += [f"memory={self.memory}"] if self.memory < 1 else []
        found += [f"schedule={type(self.schedule).__name__}"] if self.schedule is not None else []
        # A policy of the user's own may not say; it sees total_examples=None and can decide for itself.
        found += [f"policy={type(self.policy).__name__}"] if getattr(self.policy, "needs_budget", False) else []
        return found


def check_warmup(value: object) -> int | float:
    """Checks a warmup.

    Args:
        value: a share of the budget (float) or a number of examples (int)

    Returns:
        the value; its type says which of the two it is
    """
    if isinstance(value, int) and not isinstance(value, bool):
        check_number("warmup (as a number of examples)", value, at_least=0)
        return value
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
            f"batch_size_fn must be a function from a batch to a number of examples, or None, got {value!r}"
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
    """
    if not isinstance(value, (bool, str, Path)):
        raise TypeError(f"record must be True, False or a path, got {value!r} ({type(value).__name__})")
    return value


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
        raise TypeError(f"{name} must be True or False, got {value!r} ({type(value).__name__})")
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
        raise TypeError(f"log_prefix must be a string, got {value!r} ({type(value).__name__})")
    return value
