"""Measure what the scaler's state costs in a checkpoint, under a policy that produces as many records as it can.

Every window is measured, and the policy gives a new answer at every step: a change of the batch, then two holds whose
reasons contain numbers. At given steps training pauses, and these are timed: building the state, saving it, loading it
with ``weights_only=True``, and reading the records back from it. Each time is the median of several, in process time.

    python benchmarks/checkpoint_state.py                    # about 1 minute
    python benchmarks/checkpoint_state.py --label before     # separate rows, for the code on PYTHONPATH
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from machine import describe
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsscale import BatchSizeScaler, Decision, Limits, Situation

RESULTS = Path(__file__).parent / "results"
HAS_CODES = "code" in {field.name for field in fields(Decision)}


class Restless:
    """A policy that never gives the same answer twice."""

    def decide(self, situation: Situation, limits: Limits) -> Decision:
        """Change the batch at every third step, and hold for a new reason at all others."""
        step, batch = situation.optimizer_steps, situation.batch_size
        wanted = {4: 8, 8: 4}[batch] if step % 3 == 0 else batch
        reason = f"at step {step} this is wanted"
        return Decision(batch_size=wanted, reason=reason, **({"code": f"{step % 3}"} if HAS_CODES else {}))


class Model(pl.LightningModule):
    """The smallest model that can be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return the mean squared error."""
        return (self.layer(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Clock(pl.Callback):
    """Measure at given steps."""

    def __init__(self, scaler: BatchSizeScaler, steps: set[int], repeats: int) -> None:
        self.scaler, self.steps, self.repeats = scaler, steps, repeats
        self.rows: list[dict[str, Any]] = []

    def _milliseconds(self, call: Callable[[], Any]) -> float:
        times = []
        for _ in range(self.repeats):
            start = time.process_time()
            call()
            times.append(time.process_time() - start)
        return 1e3 * statistics.median(times)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Measure; this callback is listed after the scaler, so the window has ended."""
        if trainer.global_step not in self.steps:
            return
        self.steps.discard(trainer.global_step)
        state, file = self.scaler.state_dict(), io.BytesIO()
        torch.save(state, file)

        def read() -> None:
            again = BatchSizeScaler()
            again.load_state_dict(state)
            _ = again.decisions, list(again.history)

        self.rows.append(
            {
                "steps": trainer.global_step,
                "measurements": len(self.scaler.history),
                "decisions": len(self.scaler.decisions),
                "bytes": len(file.getvalue()),
                "make": self._milliseconds(self.scaler.state_dict),
                "save": self._milliseconds(lambda: torch.save(state, io.BytesIO())),
                "load": self._milliseconds(lambda: (file.seek(0), torch.load(file, weights_only=True))),
                "read": self._milliseconds(read),
            }
        )


def measure(steps: list[int], repeats: int) -> list[dict[str, Any]]:
    """Train, and measure at the given steps.

    Args:
        steps: The steps to measure at.
        repeats: Repetitions of each timing.

    Returns:
        One row per step.
    """
    scaler = BatchSizeScaler(
        policy=Restless(), lr_rule="none", warmup=0, memory=1.0, max_batch_size=8, measure_every=1, split=False
    )
    clock = Clock(scaler, set(steps), repeats)
    x = torch.randn(8 * (max(steps) + 1), 4)
    trainer = pl.Trainer(
        max_epochs=1,
        accumulate_grad_batches=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[scaler, clock],
    )
    trainer.fit(Model(), DataLoader(TensorDataset(x, torch.randn(len(x), 1)), batch_size=2))
    return clock.rows


def markdown(summary: dict[str, Any]) -> str:
    """Write the table.

    Args:
        summary: The results.

    Returns:
        A Markdown table.
    """
    machine = summary["machine"]
    lines = [
        "# What the scaler's state costs in a checkpoint",
        "",
        "A policy that gives another answer at every step, every window measured. Milliseconds of the process, medians;"
        f" {machine['processor']}, {machine['threads']} thread, torch {machine['torch']}, Python {machine['python']}.",
        "",
        "| code | steps | measurements kept | decisions kept | MB | `state_dict()` | `torch.save` |"
        " `torch.load(weights_only=True)` | records read |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for label, rows in summary["rows"].items():
        for row in rows:
            times = " | ".join(f"{row[name]:.0f}" for name in ("make", "save", "load", "read"))
            kept = f"{row['measurements']:,} | {row['decisions']:,} | {row['bytes'] / 1e6:.2f}"
            lines.append(f"| {label} | {row['steps']:,} | {kept} | {times} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, and write the table.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--label", default="now", help="label of the rows (default: now)")
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 1000, 10_000, 20_000], help="when to measure")
    parser.add_argument("--repeats", type=int, default=7, help="repetitions of each timing (default: 7)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    path = RESULTS / "checkpoint_state.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else {}
    rows = {**known, options.label: measure(options.steps, options.repeats)}
    summary = {"machine": describe(), "rows": rows}
    path.write_text(json.dumps(summary, indent=1) + "\n")
    table = markdown(summary)
    path.with_suffix(".md").write_text(table)
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
