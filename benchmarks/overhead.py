"""Measure what watching costs: training with `GradientNoiseScaleMonitor()` at its defaults against training without.

A transformer (width 128, 8 layers, 99 parameter tensors) trains on loader batches of 8 x 64 random tokens, four per
step, through the real Trainer with AdamW and without a logger. With `--accumulate 1` a step has a single loader batch,
and a measured one is computed in two halves. Runs are made in pairs in one process, one right after the other: one with
the monitor and one without, in alternating order. Between these pairs are pairs of two runs without it, which show how
far two equal runs differ on this machine. A run's time is counted from its first loader batch to the end of training.
Loader batches of 4 x 32 tokens (`--examples 4 --tokens 32`) are a hard case: watching costs mostly one call per
parameter tensor, and there is little work to hide it.

The result is the median of the pairs' ratios. Its interval is that of the sign test for a median: from the k-th
smallest to the k-th largest ratio, with the largest k that leaves at least 95 % (for 15 pairs, the 4th). The
half-width is half the interval's length.

    python benchmarks/overhead.py                # 15 pairs of each kind, at least 12 s per run: about 15 minutes
    python benchmarks/overhead.py --ranks 2      # the same under DDP, with each pair in the same processes
    python benchmarks/overhead.py --accumulate 1 # a single loader batch a step, into results/overhead_split.json
    python benchmarks/overhead.py --append       # add pairs to the existing ones
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from machine import describe
from ranks import run_ranks, slowest
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_bsscale import GradientNoiseScaleMonitor

RESULTS = Path(__file__).parent / "results"
WIDTH, LAYERS, VOCABULARY = 128, 8, 256
ALLOWED_ON_RANKS = 1.02  # plus the half-width of bare/bare
RESTLESS = 0.03  # beyond this half-width of bare/bare, a kept limit proves nothing


class Model(pl.LightningModule):
    """A transformer of ordinary layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        logits = self.head(self.layers(self.embed(batch[:, :-1])))
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


class Clock(pl.Callback):
    """Measure the seconds from the first micro-batch to the end of training."""

    def __init__(self) -> None:
        self.started: float | None = None
        self.seconds = math.nan

    def on_train_batch_start(self, *args: Any) -> None:
        if self.started is None:
            self.started = time.perf_counter()

    def on_train_end(self, *args: Any) -> None:
        if self.started is not None:
            self.seconds = time.perf_counter() - self.started


def seconds_of(steps: int, measure_every: int | None, shape: tuple[int, int, int], ranks: int = 1) -> float:
    """Train once.

    Args:
        steps: Optimizer steps.
        measure_every: The monitor's option, or None to train without it.
        shape: Examples per loader batch, tokens per example, and loader batches per step.
        ranks: Number of processes in the group, all of which call this function.

    Returns:
        The time of the training loop; on several ranks, that of the slowest.
    """
    torch.manual_seed(0)
    clock = Clock()
    callbacks: list[pl.Callback] = [clock]
    if measure_every is not None:
        callbacks.append(GradientNoiseScaleMonitor(measure_every=measure_every))
    rows = torch.randint(VOCABULARY, (shape[0] * 512 * ranks, shape[1] + 1))
    several = {"devices": ranks, "strategy": DDPStrategy(process_group_backend="gloo")} if ranks > 1 else {}
    trainer = pl.Trainer(
        **several,
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=shape[2],
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model, loader = Model(), DataLoader(rows, batch_size=shape[0])
    gc.collect()
    trainer.fit(model, loader)
    return slowest(clock.seconds)


def median_interval(values: list[float]) -> dict[str, float]:
    """Compute a median with the sign test's 95 % interval.

    Args:
        values: At least six values.

    Returns:
        The median, both ends of the interval, and half its length.
    """
    values, count = sorted(values), len(values)
    rank, tail = 0, 0.0
    while tail + math.comb(count, rank) / 2**count <= 0.025:
        tail += math.comb(count, rank) / 2**count
        rank += 1
    low, high = values[max(rank, 1) - 1], values[count - max(rank, 1)]
    return {"median": statistics.median(values), "low": low, "high": high, "half_width": (high - low) / 2}


def run_pairs(
    pairs: int, steps: int, measure_every: int, shape: tuple[int, int, int], ranks: int = 1, rank: int = 0
) -> list[dict[str, Any]]:
    """Run all pairs, alternating between the two kinds.

    Args:
        pairs: Number of pairs of each kind.
        steps: Optimizer steps per run.
        measure_every: The monitor's option.
        shape: Examples per loader batch, tokens per example, and loader batches per step.
        ranks: Number of processes in the group, all of which call this function.
        rank: The rank of this process; the first one reports.

    Returns:
        One record per pair, with the time of its first run relative to the bare one.
    """
    records = []
    for index in range(pairs):
        for kind, first in (("monitor/bare", measure_every), ("bare/bare", None)):
            arms = [first, None]
            order = [0, 1] if index % 2 == 0 else [1, 0]
            seconds = [math.nan, math.nan]
            for arm in order:
                seconds[arm] = seconds_of(steps, arms[arm], shape, ranks)
            ratio = seconds[0] / seconds[1]
            found = {"kind": kind, "pair": index, "order": order, "steps": steps, "seconds": seconds, "ratio": ratio}
            records.append(found)
            if rank == 0:
                said = f"{seconds[0]:.2f} s / {seconds[1]:.2f} s = {ratio:.4f}"
                print(f"pair {index + 1}/{pairs} {kind}: {said}", flush=True)
    return records


def measure(
    rank: int, pairs: int, seconds: float, measure_every: int, shape: tuple[int, int, int], ranks: int
) -> list[dict[str, Any]]:
    """Calibrate and run the pairs, in this process or as one of several ranks.

    Args:
        rank: The rank of this process.
        pairs: Number of pairs of each kind.
        seconds: Minimum duration of a run.
        measure_every: The monitor's option.
        shape: Examples per loader batch, tokens per example, and loader batches per step.
        ranks: Number of processes in the group.

    Returns:
        The records.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    seconds_of(5, measure_every, shape, ranks)  # warm up
    each = seconds_of(20, None, shape, ranks) / 20
    # Use whole cycles of measured windows and the others.
    steps = math.ceil(1.1 * seconds / each / measure_every) * measure_every
    if rank == 0:
        print(f"{1000 * each / shape[2]:.1f} ms per loader batch; {steps} steps per run", flush=True)
    return run_pairs(pairs, steps, measure_every, shape, ranks, rank)


def markdown(summary: dict[str, Any]) -> str:
    """Write the table.

    Args:
        summary: The results that `main` collects.

    Returns:
        A Markdown table.
    """
    machine, ranks = summary["machine"], summary.get("ranks", 1)
    steps = " or ".join(map(str, summary["steps"]))
    several = f"DDP on {ranks} ranks (gloo, this machine; a run's time is that of the slowest). " if ranks > 1 else ""
    lines = [
        "# What watching costs" + (" under DDP" if several else ""),
        "",
        f"{several}{summary['parameter_tensors']} parameter tensors, loader batches"
        f" of {' × '.join(map(str, summary['loader_batch']))} tokens"
        f" ({summary['milliseconds_per_loader_batch']:.1f} ms each), {summary['accumulate']} a step, {steps} steps a"
        f" run, `measure_every={summary['measure_every']}`. Python {machine['python']}, torch"
        f" {machine['torch']}, lightning {machine['lightning']}, {machine['processor']}, {machine['threads']}"
        " thread(s). The interval is the sign test's for the median, at least 95 %.",
        "",
        "| pairs | number | median ratio | interval | half-width |",
        "|---|---|---|---|---|",
    ]
    for kind, row in summary["ratios"].items():
        interval = f"{row['low']:.4f} – {row['high']:.4f}"
        lines.append(f"| {kind} | {summary['pairs']} | {row['median']:.4f} | {interval} | {row['half_width']:.4f} |")
    if several:
        found, limit = summary["ratios"]["monitor/bare"]["median"], summary["allowed"]
        verdict = "kept" if found <= limit else "NOT kept"
        if found <= limit and summary["ratios"]["bare/bare"]["half_width"] > RESTLESS:
            verdict = "no verdict, because two equal runs differ by more than what is asked"
        lines += ["", f"At most {ALLOWED_ON_RANKS} and bare/bare's half-width, {limit:.4f}, is allowed: {verdict}."]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Calibrate, run the pairs, and write the table.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15, help="pairs of each kind, at least 6 (default: 15)")
    parser.add_argument("--seconds", type=float, default=12.0, help="minimum duration of a run (default: 12)")
    parser.add_argument("--examples", type=int, default=8, help="examples per loader batch (default: 8)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens per example (default: 64)")
    parser.add_argument("--accumulate", type=int, default=4, help="loader batches per step (default: 4)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--measure-every", type=int, default=16, help="the monitor's option (default: 16, its default)")
    parser.add_argument("--ranks", type=int, default=1, help="processes under DDP; 1 means no DDP (default: 1)")
    parser.add_argument("--append", action="store_true", help="keep the pairs of the existing results")
    parser.add_argument("--out", type=Path, help="results; the table is beside it (default: in benchmarks/results)")
    options = parser.parse_args()
    if options.pairs < 6:
        parser.error(f"--pairs must be at least 6 for an interval of 95 %, received {options.pairs}")
    if options.ranks < 1:
        parser.error(f"--ranks must be at least 1, received {options.ranks}")
    name = "overhead_ddp" if options.ranks > 1 else "overhead_split" if options.accumulate == 1 else "overhead"
    out = options.out or RESULTS / f"{name}.json"
    torch.set_num_threads(options.threads)
    kept = json.loads(out.read_text()) if options.append and out.exists() else None
    asked = {
        "measure_every": options.measure_every,
        "loader_batch": [options.examples, options.tokens],
        "accumulate": options.accumulate,
    }
    if kept is not None and any(kept[name] != value for name, value in asked.items()):
        parser.error(f"--append: {out} was made with other settings than {asked}")
    shape = (options.examples, options.tokens, options.accumulate)
    given = (options.pairs, options.seconds, options.measure_every, shape, options.ranks)
    if options.ranks > 1:
        records = run_ranks(measure, options.ranks, *given, threads=options.threads)[0]
    else:
        records = measure(0, *given)
    if kept is not None:
        records = kept["runs"] + records
    kinds = {record["kind"]: None for record in records}
    bare = [record["seconds"][1] / (record["steps"] * options.accumulate) for record in records]
    summary = {
        "machine": describe(),
        "pairs": len(records) // len(kinds),
        "steps": sorted({record["steps"] for record in records}),
        **asked,
        "parameter_tensors": len(list(Model().parameters())),
        "milliseconds_per_loader_batch": 1000 * statistics.median(bare),
        "shortest_run_seconds": min(min(record["seconds"]) for record in records),
        "ratios": {kind: median_interval([r["ratio"] for r in records if r["kind"] == kind]) for kind in kinds},
        "runs": records,
    }
    if options.ranks > 1:
        summary["ranks"] = options.ranks
        summary["allowed"] = ALLOWED_ON_RANKS + summary["ratios"]["bare/bare"]["half_width"]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(summary, indent=1) + "\n")
    table = markdown(summary)
    out.with_suffix(".md").write_text(table)
    print(f"\n{table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
