"""Compare plain and limited averages: are they correct, and what does one gradient spike do to them?

*Simulated windows* of two micro-batches with a known noise scale go through the package's own averages. Measured are
the bias of the trace, and how often the 90 % interval covers the truth, weighted as in the memory. Examples are
Gaussian; Student t with 3 degrees of freedom in each coordinate; the same for whole examples (a squared norm without a
variance); or log-normal in the size of whole examples (sigma 1, which is extreme). The noise scale stays at 80
examples, or drifts from 80 to 800. "Plain" averages limit no window and use Fieller's interval alone; both kinds see
the same windows. Standard errors: about 0.5 % of the trace (Student t per example: 2 % in the plain column), about
0.01 of the coverage.

*A lasting change of level* is not a spike: the trace jumps by a factor and stays there. The table shows the limited
average's change as a share of the plain one's.

*A spike in training*, through the real Trainer: exact noise scale 2,000, `BatchSizeScaler()` at its defaults from
batch 8, clipping at norm 1. The gradient of one micro-batch, in a measured window during warmup, is multiplied by a
factor. The plain columns are the same training with plain averages patched into the package.

    python benchmarks/averages.py            # about 8 minutes, one thread
    python benchmarks/averages.py --table    # only write the table
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import numpy as np
import torch
from machine import describe
from torch.utils.data import DataLoader, Dataset

from lightning_bsscale import BatchSizeScaler, NoiseScale
from lightning_bsscale.callbacks import measurement
from lightning_bsscale.theory.estimate import Averages
from lightning_bsscale.theory.moments import WindowMoments
from lightning_bsscale.theory.robust import RobustAverages

RESULTS = Path(__file__).parent / "results"
FAMILIES = ("Gaussian", "Student t", "Student t per example", "log-normal per example")
# Examples per micro-batch, windows per memory, windows per run, and the final noise scale.
SETTINGS = ((8, 12, 120, 80.0), (8, 50, 400, 80.0), (32, 50, 400, 80.0), (8, 50, 400, 800.0), (32, 50, 400, 800.0))
NOISE_SCALE = 80.0
DIMENSION = 256


class Plain(RobustAverages):
    """Averages that limit nothing, with Fieller's interval alone."""

    def updated(self, moments: WindowMoments, *, examples_since_last: float, memory: float) -> Plain:
        """Add one window without limiting it.

        Args:
            moments: The window's moments.
            examples_since_last: Examples since the previous window.
            memory: Examples over which a weight falls to 1/e.

        Returns:
            A new record.
        """
        sums = self.sums.updated(moments, examples_since_last=examples_since_last, memory=memory)
        return Plain(sums=sums)

    def noise_scale(self, confidence: float = 0.9) -> NoiseScale | None:
        """Compute the noise scale without extending its upper end.

        Args:
            confidence: Two-sided confidence.

        Returns:
            The noise scale.
        """
        noise = self.sums.noise_scale(confidence)
        if noise is None:
            return None
        bare = replace(noise, third_moment=0.0)
        return replace(bare, high=bare.upper_bound((1 + confidence) / 2))


def windows(
    rng: np.random.Generator, family: str, size: int, traces: np.ndarray, squares: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the moments of one run's windows.

    Args:
        rng: The random generator.
        family: The distribution of the examples.
        size: Examples per micro-batch.
        traces: The true trace of each window.
        squares: The true squared norm of each window.

    Returns:
        Each window's unbiased trace and squared norm.
    """
    count = len(traces)
    if family == "Student t":
        noise = rng.standard_t(3, (count, 2, size, DIMENSION)).mean(2) / math.sqrt(3)
    else:
        shape = (count, 2, size)
        if family == "Gaussian":
            factors = np.ones(shape)
        elif family == "Student t per example":
            factors = 1 / rng.chisquare(3, shape)
        else:
            factors = np.exp(2 * rng.standard_normal(shape) - 2)
        # Conditional on its examples' factors, a micro-batch's mean is Gaussian.
        noise = rng.standard_normal((count, 2, DIMENSION)) * np.sqrt(factors.sum(2) / size**2)[..., None]
    gradients = noise * np.sqrt(traces / DIMENSION)[:, None, None]
    gradients[..., 0] += np.sqrt(squares)[:, None]
    mean_of_squares, square_of_mean = (gradients**2).sum(-1).mean(1), (gradients.mean(1) ** 2).sum(-1)
    return 2 * size * (mean_of_squares - square_of_mean), 2 * square_of_mean - mean_of_squares


def window_of(trace: float, grad_sq: float, size: int) -> WindowMoments:
    """Make the record of one window.

    Args:
        trace: The trace.
        grad_sq: The squared norm.
        size: Examples in each of the two micro-batches.

    Returns:
        The record.
    """
    return WindowMoments(
        trace=float(trace), grad_sq=float(grad_sq), num_samples=2, examples=2 * size, harmonic_size=size
    )


def simulated(family: str, size: int, memory: int, count: int, final: float, runs: int) -> dict[str, Any]:
    """Average many runs in both ways, and compare with the truth once per memory.

    Args:
        family: The distribution of the examples.
        size: Examples per micro-batch.
        memory: Windows per memory.
        count: Windows per run.
        final: The noise scale at the end.
        runs: Number of runs.

    Returns:
        One row of the table.
    """
    rng = np.random.default_rng(0)
    squares = (NOISE_SCALE / final) ** (np.arange(count) / count)
    traces = np.full(count, NOISE_SCALE)
    found: dict[str, list[tuple[float, bool, bool, bool]]] = {"plain": [], "limited": []}
    limited = 0
    for _ in range(runs):
        drawn = windows(rng, family, size, traces, squares)
        kinds = {"plain": Plain(), "limited": RobustAverages()}
        truth = Averages()
        for index, moments in enumerate(zip(*drawn, strict=True)):
            since = {"examples_since_last": 2 * size, "memory": 2.0 * size * memory}
            truth = truth.updated(window_of(traces[index], squares[index], size), **since)
            kinds = {name: kind.updated(window_of(*moments, size), **since) for name, kind in kinds.items()}
            if index >= 2 * memory and index % memory == 0:
                exact = truth.trace / truth.grad_sq
                for name, kind in kinds.items():
                    noise = kind.noise_scale()
                    assert noise is not None
                    covers = noise.low <= exact <= noise.high
                    found[name].append((noise.trace / NOISE_SCALE, covers, noise.low <= exact, noise.resolved))
        limited += kinds["limited"].limited
    row: dict[str, Any] = {"family": family, "size": size, "memory": memory, "final": final, "runs": runs}
    for name, looks in found.items():
        for key, values in zip(("trace", "covers", "low_covers", "resolved"), zip(*looks, strict=True), strict=True):
            row[f"{name}_{key}"] = float(np.mean(values))
    return row | {"limited_share": limited / (runs * count)}


def jumped(memory: int, factor: float) -> dict[str, Any]:
    """Change the level for good.

    Args:
        memory: Windows per memory.
        factor: The factor on the trace.

    Returns:
        One row of the table.
    """
    rng = np.random.default_rng(0)
    levels = np.concatenate([np.full(3 * memory, NOISE_SCALE), np.full(2 * memory, NOISE_SCALE * factor)])
    drawn = windows(rng, "Gaussian", 8, levels, np.ones(len(levels)))
    kinds = {"plain": Plain(), "limited": RobustAverages()}
    row: dict[str, Any] = {"memory": memory, "factor": factor}
    for index, moments in enumerate(zip(*drawn, strict=True)):
        since = {"examples_since_last": 16, "memory": 16.0 * memory}
        kinds = {name: kind.updated(window_of(*moments, 8), **since) for name, kind in kinds.items()}
        gone = (index + 1 - 3 * memory) / memory
        if gone in (0.25, 0.5, 1.0, 2.0):
            means = {name: kind.sums.trace / kind.sums.weight for name, kind in kinds.items()}
            way = {name: mean - NOISE_SCALE for name, mean in means.items()}
            row[f"after {gone:g}"] = way["limited"] / way["plain"]
    return row


class Known(pl.LightningModule):
    """A model in which the gradient of a micro-batch is the mean of its examples, at any weights."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(dimension))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return (batch @ self.weight).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Gradients(Dataset[torch.Tensor]):
    """Micro-batches of Gaussian gradients, one of which is multiplied."""

    def __init__(self, count: int, dimension: int, spike_at: int, factor: float) -> None:
        self.count, self.dimension, self.spike_at, self.factor = count, dimension, spike_at, factor

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(index)
        noise = torch.randn(8, self.dimension, generator=generator) * (2000 / self.dimension) ** 0.5
        noise[:, 0] += 1
        return noise * self.factor if index == self.spike_at else noise


def spiked(factor: float) -> dict[str, Any]:
    """Train with a spike, with both kinds of averages.

    Args:
        factor: The factor on one micro-batch's gradient; 1 for no spike.

    Returns:
        One row of the table.
    """
    row: dict[str, Any] = {"factor": factor}
    count = 8000
    for name, kind in (("plain", Plain), ("limited", RobustAverages)):
        scaler = BatchSizeScaler()
        trainer = pl.Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            max_epochs=1,
            gradient_clip_val=1.0,
            callbacks=[scaler],
        )
        with mock.patch.object(measurement, "RobustAverages", kind), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(Known(1024), DataLoader(Gradients(count, 1024, 303, factor), batch_size=None))
        growths = [record.situation.examples_seen for record in scaler.decisions if record.is_change]
        row |= {f"{name}_first": growths[0] / (8 * count) if growths else None, f"{name}_steps": trainer.global_step}
    return row


def table(results: dict[str, Any]) -> str:
    """Write the results as Markdown.

    Args:
        results: The contents of the JSON file.

    Returns:
        Markdown tables.
    """
    lines = [
        "| examples | micro-batch | memory, windows | noise scale | trace / truth, plain | limited | "
        "90 % interval covers, plain | limited | resolved, plain | limited | windows limited |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["simulated"]:
        drift = "80" if row["final"] == NOISE_SCALE else f"80 to {row['final']:g}"
        lines.append(
            f"| {row['family']} | {row['size']} | {row['memory']} | {drift} | {row['plain_trace']:.3f} | "
            f"{row['limited_trace']:.3f} | {row['plain_covers']:.2f} | {row['limited_covers']:.2f} | "
            f"{row['plain_resolved']:.2f} | {row['limited_resolved']:.2f} | {row['limited_share']:.2%} |"
        )
    lines += [
        "",
        "| the trace is multiplied for good by | memory, windows | share made after ¼ memory | ½ | 1 | 2 |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['factor']:g} | {row['memory']} | "
        + " | ".join(f"{row[f'after {gone:g}']:.2f}" for gone in (0.25, 0.5, 1.0, 2.0))
        + " |"
        for row in results["jumped"]
    ]
    lines += [
        "",
        "| one micro-batch's gradient times | first growth at, plain | limited | optimizer steps, plain | limited |",
        "|---|---|---|---|---|",
    ]
    for row in results["spiked"]:
        first = [
            "never" if row[f"{kind}_first"] is None else f"{row[f'{kind}_first']:.1%}" for kind in ("plain", "limited")
        ]
        name = "1 (no spike)" if row["factor"] == 1 else f"{row['factor']:g}"
        lines.append(f"| {name} | {first[0]} | {first[1]} | {row['plain_steps']:,} | {row['limited_steps']:,} |")
    machine = results["machine"]
    lines += ["", f"Python {machine['python']}, torch {machine['torch']}, {machine['processor']}, one thread.", ""]
    return "\n".join(lines)


def main() -> int:
    """Run the benchmark, unless only the table is requested, and write the results.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="simulated runs per row (default: 200)")
    parser.add_argument("--out", type=Path, default=RESULTS / "averages.json", help="results; the table is beside it")
    parser.add_argument("--table", action="store_true", help="only write and print the table of the existing results")
    options = parser.parse_args()
    if not options.table:
        torch.set_num_threads(1)
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        results: dict[str, Any] = {"machine": describe(), "simulated": [], "jumped": [], "spiked": []}
        results["spiked"] = [spiked(factor) for factor in (1, 10, 30, 100, 1000)]
        print("spikes done", flush=True)
        results["jumped"] = [jumped(memory, factor) for factor in (100.0, 0.01) for memory in (12, 100)]
        for setting in SETTINGS:
            for family in FAMILIES:
                size, memory, count, final = setting
                # Student's t in each coordinate needs a thousand times as many random numbers.
                runs = options.runs // 4 if family == "Student t" else options.runs
                results["simulated"].append(simulated(family, size, memory, count, final, runs))
                print(results["simulated"][-1], flush=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = table(json.loads(options.out.read_text(encoding="utf-8")))
    options.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
