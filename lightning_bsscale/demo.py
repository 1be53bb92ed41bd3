"""The demonstration: scikit-learn's digits with a fixed small batch, a fixed large one, and one that grows.

Its data and model are ordinary Lightning code, which the examples use too. It needs scikit-learn and matplotlib (the
extra ``examples``) and no network.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsscale.callbacks.output.quiet import quiet
from lightning_bsscale.callbacks.scaler import BatchSizeScaler
from lightning_bsscale.journal_file import open_new
from lightning_bsscale.summary import summary_table

__all__ = ["DigitsModel", "Result", "digits_data", "run", "train"]

SMALL, LARGE = 8, 64
RATE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One finished run.

    Attributes:
        name: name of the run
        optimizer_steps: optimizer steps made
        examples: training examples seen, counted by the model
        seconds: wall time of training
        val_loss: mean cross-entropy over the validation images, in nats
        val_accuracy: share of the validation images that were classified correctly
    """

    name: str
    optimizer_steps: int
    examples: int
    seconds: float
    val_loss: float
    val_accuracy: float


def digits_data() -> tuple[TensorDataset, TensorDataset]:
    """Return scikit-learn's digits, images of 8 × 8 points: 1,347 for training and 450 for validation."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=450, random_state=0, stratify=labels)
    train_images, val_images = (torch.tensor(part, dtype=torch.float32).view(-1, 1, 8, 8) for part in parts[:2])
    train_labels, val_labels = (torch.tensor(part, dtype=torch.long) for part in parts[2:])
    return TensorDataset(train_images, train_labels), TensorDataset(val_images, val_labels)


class DigitsModel(pl.LightningModule):
    """A small CNN with SGD, momentum, and warmup and cosine over the planned steps."""

    def __init__(self, rate: float = RATE, warmup: float = 0.03, final: float = 0.02) -> None:
        """Create the layers.

        Args:
            rate: the highest learning rate
            warmup: share of the planned steps in which the learning rate rises
            final: factor on the learning rate at the end
        """
        super().__init__()
        self.rate, self.warmup, self.final = rate, warmup, final
        self.examples_seen = 0
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits for a batch of images of shape (examples, 1, 8, 8)."""
        logits: Tensor = self.layers(images)
        return logits

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss of one micro-batch."""
        images, labels = batch
        self.examples_seen += len(labels)
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Log ``val_loss`` and ``val_accuracy``."""
        images, labels = batch
        logits = self(images)
        self.log("val_loss", F.cross_entropy(logits, labels))
        self.log("val_accuracy", (logits.argmax(1) == labels).float().mean())

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer, without its scheduler."""
        return torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.9)

    def configure_optimizers(self) -> Any:
        """Return the optimizer and an ordinary scheduler on steps, which the scaler keeps in pace."""
        optimizer = self.make_optimizer()
        total = int(self.trainer.estimated_stepping_batches)
        warmup = max(1, round(self.warmup * total))

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            progress = min(1.0, (step - warmup) / max(1, total - warmup))
            return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def train(
    name: str,
    *,
    batch_size: int,
    rate: float,
    seed: int,
    epochs: int,
    callbacks: Sequence[pl.Callback] = (),
    model: Callable[[float], DigitsModel] = DigitsModel,
) -> Result:
    """Train once. Runs with one seed share the initial weights and the order of the examples, whatever the batch.

    Args:
        name: name of the run
        batch_size: the loader's batch
        rate: the highest learning rate
        seed: seed of the weights and of the order
        epochs: passes over the data
        callbacks: the Trainer's callbacks
        model: makes the module, given the learning rate

    Returns:
        The result after the last step.
    """
    train_data, val_data = digits_data()
    threads = torch.get_num_threads()
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)  # with tiny layers a second thread costs more than it saves
        try:
            module = model(rate)
            order = torch.Generator().manual_seed(seed)
            loader = DataLoader(train_data, batch_size=batch_size, shuffle=True, generator=order)
            trainer = pl.Trainer(
                accelerator="cpu",
                max_epochs=epochs,
                callbacks=list(callbacks),
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            started = time.perf_counter()
            trainer.fit(module, loader)
            seconds = time.perf_counter() - started
            steps = trainer.global_step
            scores = trainer.validate(module, DataLoader(val_data, batch_size=len(val_data)), verbose=False)[0]
        finally:
            torch.set_num_threads(threads)
    return Result(
        name=name,
        optimizer_steps=steps,
        examples=module.examples_seen,
        seconds=seconds,
        val_loss=scores["val_loss"],
        val_accuracy=scores["val_accuracy"],
    )


def results_table(results: Sequence[Result]) -> str:
    """Return the results as an aligned table."""
    rows = [("run", "optimizer steps", "examples", "seconds", "val loss", "val accuracy")]
    rows += [
        (
            result.name,
            f"{result.optimizer_steps:,}",
            f"{result.examples:,}",
            f"{result.seconds:.1f}",
            f"{result.val_loss:.4f}",
            f"{result.val_accuracy:.4f}",
        )
        for result in results
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    )


def run(out: Path, seed: int, epochs: int, *, as_json: bool = False) -> int:
    """Train three times, print what came of it, and write the scaler's figure and journal under unused names.

    Args:
        out: folder for both, created if necessary
        seed: seed of the weights and of the order of the examples
        epochs: passes over the data in each run
        as_json: whether to print one JSON object instead of text

    Returns:
        The exit status: 0, or 1 if a library is missing. Progress goes to stderr.
    """
    missing = [
        name
        for name, module in (("scikit-learn", "sklearn"), ("matplotlib", "matplotlib"))
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        _tell(f"The demo needs {' and '.join(missing)}: pip install 'lightning-bsscale[examples]'.")
        return 1
    out.mkdir(parents=True, exist_ok=True)
    _tell(f"scikit-learn's digits, a small CNN, SGD with momentum, {epochs} epochs a run, seed {seed}")
    scaler = BatchSizeScaler(record=out / "bsscale.jsonl")
    large_rate = RATE * LARGE / SMALL
    results = []
    for name, batch_size, rate, callbacks in (
        (f"fixed {SMALL}, rate {RATE:g}", SMALL, RATE, []),
        (f"fixed {LARGE}, rate {large_rate:g}", LARGE, large_rate, []),
        (f"BatchSizeScaler from {SMALL}", SMALL, RATE, [scaler]),
    ):
        _tell(f"training: {name} ...")
        results.append(train(name, batch_size=batch_size, rate=rate, seed=seed, epochs=epochs, callbacks=callbacks))
    picture = _draw(scaler, out / "bsscale.png")
    if as_json:
        print(json.dumps(_as_json(results, scaler, picture), indent=2, allow_nan=False))
    else:
        print(_as_text(results, scaler, picture))
    return 0


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _draw(scaler: BatchSizeScaler, path: Path) -> Path:
    """Write the picture under an unused name, since an existing file may belong to another run; return the name."""
    drawn = io.BytesIO()
    with quiet():
        figure, _ = scaler.plot()
        figure.savefig(drawn, dpi=120, format="png")
    file, picture = open_new(path)
    try:
        with file:
            file.write(drawn.getbuffer())
    except BaseException:
        picture.unlink(missing_ok=True)
        raise
    return picture


def _as_text(results: Sequence[Result], scaler: BatchSizeScaler, picture: Path) -> str:
    changes = [decision for decision in scaler.decisions if decision.is_change]
    return (
        f"\n{results_table(results)}\n\nChanges of the batch:\n{summary_table(changes)}\n\n{scaler.verdict()}\n\n"
        f"picture: {picture}\njournal: {scaler.journal_path} (python -m lightning_bsscale report {scaler.journal_path})"
    )


def _as_json(results: Sequence[Result], scaler: BatchSizeScaler, picture: Path) -> dict[str, Any]:
    runs = [dataclasses.asdict(result) for result in results]
    return {
        "runs": [
            {name: one if not isinstance(one, float) or math.isfinite(one) else None for name, one in run.items()}
            for run in runs
        ],
        "changes": [
            {"examples_seen": one.situation.examples_seen, "batch_size": one.batch_size, "lr_scale": one.lr_scale}
            for one in scaler.decisions
            if one.is_change
        ],
        "verdict": dataclasses.asdict(scaler.verdict()),
        "picture": str(picture),
        "journal": str(scaler.journal_path),
    }
