"""Measure how exact the squared norm of one large tensor is on a CPU, and what that costs.

Previously the whole tensor was passed to `torch._foreach_norm`, which adds float32 squares one by one on a CPU. Now
large tensors are split into rows, whose norms are added in float64. The truth is a sum in float64. Times are medians of
interleaved repetitions in one thread, relative to the previous method.

    python benchmarks/norm_accuracy.py            # about a minute
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import describe
from torch import Tensor

from lightning_bsscale.gradients.norms import squared_norm

RESULTS = Path(__file__).parent / "results"
# Number of tensors, and elements of each.
SHAPES = ((100, 1_000), (100, 10_000), (1, 100_000), (1, 1_000_000), (1, 10_000_000), (1, 40_000_000))
CPU = torch.device("cpu")


def before(tensors: list[Tensor]) -> Tensor:
    """Compute the squared norm with the previous method.

    Args:
        tensors: tensors of any size

    Returns:
        A 0-d tensor.
    """
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    norms = []
    for (_, dtype), group in groups.items():
        of_group = torch.stack(torch._foreach_norm(group, 2, dtype=torch.promote_types(dtype, torch.float32)))
        norms.append(of_group.double().square().sum())
    return norms[0]


WAYS: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "before": before,
    "now": lambda tensors: squared_norm(tensors, CPU),
    "pieces of 65,536": lambda tensors: before([piece for tensor in tensors for piece in tensor.split(65_536)]),
    "float64 throughout": lambda tensors: (
        torch.stack(torch._foreach_norm(tensors, 2, dtype=torch.float64)).square().sum()
    ),
}


def measure(count: int, size: int) -> dict[str, Any]:
    """Measure all methods at one size.

    Args:
        count: number of tensors
        size: elements per tensor

    Returns:
        The truth, and the value and median time of each method
    """
    generator = torch.Generator().manual_seed(size)
    tensors = [torch.randn(size, generator=generator) * 1e-3 for _ in range(count)]
    truth = sum(float(part.double().square().sum()) for tensor in tensors for part in tensor.split(1_000_000))
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(max(7, min(200, 40_000_000 // size // count))):
        for name, way in WAYS.items():
            started = time.perf_counter()
            way(tensors)
            times[name].append(time.perf_counter() - started)
    found = {
        name: {"value": float(way(tensors)), "seconds": statistics.median(times[name])} for name, way in WAYS.items()
    }
    return {"tensors": count, "size": size, "truth": truth, "found": found}


def main() -> None:
    """Measure, and write the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    measured = [measure(count, size) for count, size in SHAPES]
    (RESULTS / "norm_accuracy.json").write_text(
        json.dumps({"machine": describe(), "measured": measured}, indent=1) + "\n", encoding="utf-8"
    )
    lines = [
        "Relative error of the squared norm of float32 tensors on a CPU, and the time as a ratio to that before.",
        "",
        "| tensors | elements of each | truth | " + " | ".join(f"{name}: error, time" for name in WAYS) + " |",
        "|---" * (3 + len(WAYS)) + "|",
    ]
    for row in measured:
        cells = []
        for found in row["found"].values():
            ratio = found["seconds"] / row["found"]["before"]["seconds"]
            cells.append(f"{abs(found['value'] / row['truth'] - 1):.0e}, {ratio:.2f}")
        lines.append(f"| {row['tensors']} | {row['size']:,} | {row['truth']:.9g} | " + " | ".join(cells) + " |")
    (RESULTS / "norm_accuracy.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
