"""Describe the machine for the results of every benchmark, and compute means over seeds with their errors."""

from __future__ import annotations

import math
import os
import platform
import statistics
from importlib.metadata import version
from pathlib import Path

import torch


def processor() -> str:
    """Name the processor as the operating system does.

    Returns:
        The model name, or what `platform` reports if there is none.
    """
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe(threads: int | None = None) -> dict[str, str | int]:
    """Describe the software and the processor of this process.

    Args:
        threads: Number of torch threads in the measured process. Defaults to that of this process.

    Returns:
        A flat record for a JSON file.
    """
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": version("lightning"),
        "processor": processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads() if threads is None else threads,
    }


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Compute a mean and its standard error.

    Args:
        values: One number per seed.

    Returns:
        The mean, and the standard error (nan for one value).
    """
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error
