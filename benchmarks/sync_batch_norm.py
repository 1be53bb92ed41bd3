"""Show what SyncBatchNorm does to the measurement: each rank's gradient depends on the other ranks' examples.

torch runs SyncBatchNorm on GPUs only, so this script emulates it in one process, in float64. Every rank has a copy of
the parameters, and the normalisation uses statistics of all ranks' examples. A rank's own gradient is that of the sum
of all losses with respect to its copy, which is what the hooks see before DDP averages. For comparison, the statistics
are also those of each rank's own micro-batch (plain BatchNorm), or fixed. "True" values are the trace and ||G||^2 of
the gradient used for the step, over many windows of one micro-batch per rank.

    python benchmarks/sync_batch_norm.py            # about 4 minutes
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from machine import describe
from torch import Tensor
from torch.nn import functional as F

from lightning_bsscale import functional

RESULTS = Path(__file__).parent / "results"
SHAPES = ((2, 4), (2, 16), (4, 4), (8, 4))  # ranks, examples per micro-batch
INPUTS, HIDDEN, CLASSES = 8, 16, 3
EPSILON = 1e-5
STEPS = 20  # later, ‖G‖² and its bias are too small to distinguish from zero in this many windows
Statistics = tuple[Tensor, Tensor]


def sample(count: int, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Draw examples.

    Args:
        count: Number of examples.
        truth: Weights that define the classes.

    Returns:
        Inputs and classes.
    """
    x = torch.randn(count, INPUTS) * torch.linspace(0.5, 2, INPUTS) + 0.5
    return x, (x @ truth + 2 * torch.randn(count, CLASSES)).argmax(1)


def statistics(hidden: Tensor) -> Statistics:
    """Compute the statistics of a normalisation.

    Args:
        hidden: (examples, HIDDEN)

    Returns:
        Mean and variance.
    """
    return hidden.mean(0), hidden.var(0, unbiased=False)


def rank_gradients(parameters: list[Tensor], x: Tensor, y: Tensor, ranks: int, kind: str, fixed: Statistics) -> Tensor:
    """Compute each rank's own gradient.

    Args:
        parameters: The parameters of the network.
        x: Inputs of all ranks.
        y: Classes.
        ranks: Number of ranks.
        kind: "synchronised", "own" or "fixed": the source of the statistics.
        fixed: The fixed statistics.

    Returns:
        (ranks, number of parameters)
    """
    copies = [[p.detach().clone().requires_grad_() for p in parameters] for _ in range(ranks)]
    parts, labels = x.chunk(ranks), y.chunk(ranks)
    hidden = [part @ copied[0].T + copied[1] for part, copied in zip(parts, copies, strict=True)]
    of_all = statistics(torch.cat(hidden))
    loss = torch.zeros(())
    for before, label, (_, _, scale, shift, out, bias) in zip(hidden, labels, copies, strict=True):
        mean, variance = {"synchronised": of_all, "own": statistics(before), "fixed": fixed}[kind]
        after = torch.tanh((before - mean) / (variance + EPSILON).sqrt() * scale + shift)
        loss = loss + F.cross_entropy(after @ out.T + bias, label)
    gradients = torch.autograd.grad(loss, [p for copied in copies for p in copied])
    each = len(parameters)
    return torch.stack([torch.cat([g.flatten() for g in gradients[k * each :][:each]]) for k in range(ranks)])


def study(parameters: list[Tensor], truth: Tensor, ranks: int, size: int, kind: str, windows: int) -> dict[str, Any]:
    """Compare the measurement with the truth.

    Args:
        parameters: The parameters of the network.
        truth: Weights that define the classes.
        ranks: Number of ranks.
        size: Examples per micro-batch.
        kind: The source of the statistics.
        windows: Number of windows.

    Returns:
        Measured and true noise scale, with their parts.
    """
    many, _ = sample(100_000, truth)
    fixed = statistics(many @ parameters[0].T + parameters[1])
    own, means = [], []
    for _ in range(windows):
        gradients = rank_gradients(parameters, *sample(ranks * size, truth), ranks, kind, fixed)
        own.append(gradients.square().sum(1).tolist())
        means.append(gradients.mean(0))
    mean = torch.stack(means)
    sizes = [[size] * ranks] * windows
    found = functional.noise_scale(own, mean.square().sum(1).tolist(), sizes)
    centre = mean.mean(0)
    trace = ranks * size * (mean - centre).square().sum().item() / (windows - 1)
    grad_sq = centre.square().sum().item() - trace / (ranks * size * windows)
    return {
        "ranks": ranks,
        "size": size,
        "statistics": kind,
        "measured": {"trace": found.trace, "grad_sq": found.grad_sq},
        "true": {"trace": trace, "grad_sq": grad_sq},
    }


def descend(parameters: list[Tensor], truth: Tensor, steps: int) -> list[Tensor]:
    """Train on one device.

    Args:
        parameters: The parameters of the network.
        truth: Weights that define the classes.
        steps: Number of steps, of 64 examples each.

    Returns:
        The trained parameters.
    """
    for _ in range(steps):
        x, y = sample(64, truth)
        (gradient,) = rank_gradients(parameters, x, y, 1, "own", (torch.zeros(()), torch.ones(())))
        parts = gradient.split([p.numel() for p in parameters])
        parameters = [p - 0.3 * part.view_as(p) for p, part in zip(parameters, parts, strict=True)]
    return parameters


def markdown(summary: dict[str, Any]) -> str:
    """Write the table.

    Args:
        summary: The results that `main` collects.

    Returns:
        A Markdown table.
    """
    lines = [
        "# What SyncBatchNorm does to the measurement",
        "",
        f"{summary['windows']} windows each of one micro-batch a rank; torch {summary['machine']['torch']}, float64.",
        "",
        "Each pair is measured / true.",
        "",
        "| when | statistics | ranks × examples | trace | ‖G‖² | noise scale |",
        "|---|---|---|---|---|---|",
    ]
    for row in summary["rows"]:
        found, true = row["measured"], row["true"]
        scales = [part["trace"] / part["grad_sq"] if part["grad_sq"] > 0 else float("inf") for part in (found, true)]
        parts = [
            f"{found[name]:.{digits}f} / {true[name]:.{digits}f}" for name, digits in (("trace", 2), ("grad_sq", 3))
        ]
        cells = [row["when"], row["statistics"], f"{row['ranks']} × {row['size']}", *parts]
        lines.append(f"| {' | '.join(cells)} | {scales[0]:.1f} / {scales[1]:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run all cases, and write the table.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=6000, help="number of windows per case (default: 6000)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    truth = torch.randn(INPUTS, CLASSES)
    start = [torch.randn(HIDDEN, INPUTS) / INPUTS**0.5, torch.zeros(HIDDEN), torch.ones(HIDDEN), torch.zeros(HIDDEN)]
    start += [torch.randn(CLASSES, HIDDEN) / 4, torch.zeros(CLASSES)]
    rows = []
    for when, parameters in (("at the start", start), (f"after {STEPS} steps", descend(start, truth, STEPS))):
        for kind in ("synchronised", "own", "fixed"):
            for ranks, size in SHAPES:
                rows.append({"when": when, **study(parameters, truth, ranks, size, kind, options.windows)})
    summary = {"machine": describe(), "windows": options.windows, "rows": rows}
    (RESULTS / "sync_batch_norm.json").write_text(json.dumps(summary, indent=1) + "\n")
    table = markdown(summary)
    (RESULTS / "sync_batch_norm.md").write_text(table)
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
