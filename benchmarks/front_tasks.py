"""The trainings of the front: a language model, images, and pieces of source code to classify.

Each reads real data that ships inside Python or scikit-learn, trains through the Lightning Trainer with its own warmup
and cosine on steps, and returns a mean loss over examples that no run trains on. A seed fixes the initial weights and
the order of the examples, whatever the batch.
"""

from __future__ import annotations

import functools
import logging
import sysconfig
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from language_model import TASK, ByteModel, Sequences, as_is, corpus, warmup_and_cosine
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsscale.demo import DigitsModel, digits_data

Loader = DataLoader[Any]
PIECES: dict[str, Any] = {
    "version": 1,
    "classes": 20,
    "bytes": 64,
    "buckets": 2_048,
    "width": 32,
    "examples": 40_000,
    "held_out": 4_000,
    "base_rate": 8e-3,
    "warmup": 0.03,
    "final": 0.05,
}
DIGITS: dict[str, Any] = {"version": 1, "epochs": 25, "base_rate": 0.01}


@dataclass(frozen=True)
class Task:
    """A training, and which runs it has.

    Attributes:
        name: Its name on the command line.
        title: What is trained, in one phrase.
        settings: What every result depends on.
        start: The batch that the scaler starts from.
        rates: Batch of a fixed run → factors on its base learning rate, which follows the batch by `power`.
        power: The exponent of the batch in the base learning rate: 0.5 for Adam's family, 1 for SGD.
        epochs: Passes over the data.
        clip: Gradient clipping.
        make_model: Makes the module, given its learning rate.
        make_loader: Makes the loader, given the batch, the seed and the number of examples (None for all).
        score: Computes the held-out loss of a trained module.
        unit: The unit of the loss.
        is_sgd: Whether the optimizer is SGD, and not of Adam's family.
        methods: Names of the methods to compare; None for all.
        examples: Examples to read; None for all.
        reads_source: Whether the examples are the standard library's source, and so depend on the version of Python.
    """

    name: str
    title: str
    settings: Mapping[str, Any]
    start: int
    rates: Mapping[int, tuple[float, ...]]
    power: float
    epochs: int
    clip: float | None
    make_model: Callable[[float], pl.LightningModule]
    make_loader: Callable[[int, int, int | None], Loader]
    score: Callable[[Any], float]
    unit: str
    is_sgd: bool = False
    methods: tuple[str, ...] | None = None
    examples: int | None = None
    reads_source: bool = False

    def learning_rate(self, batch: int, factor: float) -> float:
        """Return the learning rate of a run.

        Args:
            batch: The batch it starts from.
            factor: The factor on the base learning rate.

        Returns:
            The learning rate.
        """
        return float(self.settings["base_rate"] * (batch / self.start) ** self.power * factor)

    def fit(self, model: pl.LightningModule, loader: Loader, callbacks: list[pl.Callback]) -> pl.Trainer:
        """Train a module, in one thread and with few words, and leave it in evaluation mode.

        Args:
            model: The module.
            loader: Its examples.
            callbacks: The Trainer's callbacks.

        Returns:
            The Trainer.
        """
        torch.set_num_threads(1)
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=self.epochs,
            callbacks=callbacks,
            gradient_clip_val=self.clip,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, loader)
        model.eval()
        return trainer


class Counted(pl.Callback):
    """Counts the examples that were trained on.

    Attributes:
        examples: The count.
    """

    def __init__(self) -> None:
        self.examples = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.examples += len(batch if isinstance(batch, Tensor) else batch[0])


def shuffled(seed: int, size: int, count: int | None) -> Tensor:
    """Return the order of the examples of a seed."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:count]


# The language model.


def sequences(batch: int, seed: int, count: int | None) -> Loader:
    """Load sequences of bytes in the order of a seed."""
    rows = corpus()[0]
    order = shuffled(seed, len(rows), count or TASK["sequences"])
    return DataLoader(Sequences(rows[order]), batch_size=batch, collate_fn=as_is)


@torch.no_grad()
def loss_per_byte(model: ByteModel) -> float:
    """Return the mean loss over the held-out sequences."""
    held_out = corpus()[1]
    return sum(model.loss(part).item() * len(part) for part in held_out.split(256)) / len(held_out)


# The digits.


def digits(batch: int, seed: int, count: int | None) -> Loader:
    """Load the digits, in a new order for each epoch."""
    return DataLoader(digits_data()[0], batch_size=batch, shuffle=True, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def digits_loss(model: DigitsModel) -> float:
    """Return the mean loss over the held-out digits."""
    images, labels = digits_data()[1].tensors
    return F.cross_entropy(model(images), labels).item()


# Which package of the standard library does a piece of source come from?


@functools.cache
def pieces() -> tuple[TensorDataset, TensorDataset]:
    """Cut the largest packages of the standard library into pieces, and hash their trigrams.

    Returns:
        The examples to train on, and the held-out ones, of every tenth file: hashed trigrams, and the package's number.
    """
    root, length = Path(sysconfig.get_path("stdlib")), PIECES["bytes"]
    skipped = {"test", "tests", "site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"}
    sources: dict[str, list[bytes]] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if len(parts) > 1 and not skipped.intersection(parts) and not parts[0].startswith("config-"):
            sources.setdefault(parts[0], []).append(path.read_bytes())
    largest = sorted(sources, key=lambda name: (-sum(map(len, sources[name])), name))[: PIECES["classes"]]
    made: tuple[list[Tensor], list[Tensor]] = ([], [])
    labels: tuple[list[int], list[int]] = ([], [])
    for label, name in enumerate(largest):
        for index, text in enumerate(sources[name]):
            if len(text) < length:
                continue
            part = index % 10 == 5
            flat = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
            rows = flat[: len(flat) // length * length].view(-1, length)
            made[part].append(rows)
            labels[part].extend([label] * len(rows))
    return hashed(made[0], labels[0], PIECES["examples"]), hashed(made[1], labels[1], PIECES["held_out"])


def hashed(rows: list[Tensor], labels: list[int], count: int) -> TensorDataset:
    """Return a random selection of pieces as hashed trigrams and labels."""
    chosen = shuffled(0, len(labels), count)
    text = torch.cat(rows)[chosen]
    trigrams = (text[:, :-2] * 961 + text[:, 1:-1] * 31 + text[:, 2:]) * 2_654_435_761 % 2**32 % PIECES["buckets"]
    return TensorDataset(trigrams, torch.tensor(labels)[chosen])


class PieceModel(pl.LightningModule):
    """The mean of the trigrams' embeddings, and two layers; Adam without weight decay."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        width = PIECES["width"]
        self.embed = nn.EmbeddingBag(PIECES["buckets"], width, mode="mean")
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, PIECES["classes"]))

    def forward(self, trigrams: Tensor) -> Tensor:
        logits: Tensor = self.layers(self.embed(trigrams) * PIECES["width"] ** 0.5)
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        trigrams, labels = batch
        return F.cross_entropy(self(trigrams), labels)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.rate, fused=True)
        return warmup_and_cosine(optimizer, int(self.trainer.estimated_stepping_batches))


def load_pieces(batch: int, seed: int, count: int | None) -> Loader:
    """Load pieces in the order of a seed."""
    trigrams, labels = pieces()[0].tensors
    order = shuffled(seed, len(labels), count)
    return DataLoader(TensorDataset(trigrams[order], labels[order]), batch_size=batch)


@torch.no_grad()
def piece_loss(model: PieceModel) -> float:
    """Return the mean loss over the held-out pieces."""
    trigrams, labels = pieces()[1].tensors
    return F.cross_entropy(model(trigrams), labels).item()


LANGUAGE_MODEL = Task(
    name="lm",
    title="Byte-level transformer (119,424 parameters) on Python source, AdamW",
    settings=TASK,
    start=4,
    # Three each, and a fourth, lower one for the larger batches, whose best of the three was the lowest.
    rates={4: (0.5, 0.7, 1.0), 8: (0.5, 0.7, 1.0), **dict.fromkeys((12, 16, 32), (0.35, 0.5, 0.7, 1.0))},
    power=0.5,
    epochs=1,
    clip=TASK["clip"],
    make_model=ByteModel,
    make_loader=sequences,
    score=loss_per_byte,
    unit="nats per byte",
    reads_source=True,
)
TASKS: dict[str, Task] = {
    "lm": LANGUAGE_MODEL,
    "lm_short": replace(
        LANGUAGE_MODEL,
        name="lm_short",
        title="The same transformer on 12,000 sequences",
        settings={**TASK, "sequences": 12_000},
        rates=dict.fromkeys((4, 8, 16), (0.7, 1.0)),
        methods=("scaler", "scaler0.3", "scaler0.6", "no min_steps", "confidence 0.9", "square root", "linear"),
        examples=12_000,
    ),
    "digits": Task(
        name="digits",
        title="Small CNN on scikit-learn's digits, SGD with momentum",
        settings=DIGITS,
        start=8,
        rates=dict.fromkeys((8, 16, 32, 64), (0.5, 1.0, 2.0)),
        power=1.0,
        epochs=DIGITS["epochs"],
        clip=None,
        make_model=DigitsModel,
        make_loader=digits,
        score=digits_loss,
        unit="nats",
        is_sgd=True,
    ),
    "pieces": Task(
        name="pieces",
        title="Which package is a piece of source from: embedded trigrams and two layers, Adam",
        settings=PIECES,
        start=4,
        rates=dict.fromkeys((4, 8, 16, 32), (0.35, 0.7, 1.4)),
        power=0.5,
        epochs=1,
        clip=None,
        make_model=PieceModel,
        make_loader=load_pieces,
        score=piece_loss,
        unit="nats",
        reads_source=True,
    ),
}
