"""Two options that are shares of the budget: the warmup, and the averaging memory."""

from __future__ import annotations

import math
from numbers import Integral

from lightning_bsscale.theory.checks import check_integer, check_number

__all__ = ["check_memory", "check_warmup", "memory_in_examples", "warmup_in_examples"]


def check_warmup(value: object) -> int | float:
    """Return the warmup, whose type says what it is: a share of the budget (float) or examples (int)."""
    if not isinstance(value, bool) and isinstance(value, Integral):
        return check_integer("warmup (as a number of examples)", value, at_least=0)
    return check_number(
        "warmup (a float is a share of the budget, an int a number of examples)", value, at_least=0, below=1
    )


def warmup_in_examples(warmup: int | float, total_examples: float | None) -> float:
    """Return the examples before the batch may grow; none where the budget of a share is unknown."""
    return warmup if isinstance(warmup, int) else warmup * (total_examples or 0.0)


def check_memory(value: object) -> float:
    """Return the averaging memory, a share of the budget."""
    return check_number("memory (a share of the budget; 1.0 averages over everything)", value, above=0, at_most=1)


def memory_in_examples(memory: float, total_examples: float | None) -> float:
    """Return the examples over which a measured window's weight falls to 1/e; infinite where all count alike."""
    return math.inf if total_examples is None or memory == 1 else memory * total_examples
