"""Where a small batch wastes the processor: does the scaler save time?

A byte-level GRU (64 units, 64 bytes of context) reads 8,000 sequences of the Python standard library's own source once.
Each of its 64 time steps is a small operation, whose cost hardly depends on the batch. The text, the held-out sequences
and the schedule are those of benchmarks/front.py, with Adam without weight decay. Each fixed batch runs at the best of
four learning rates (see `--rates`); `BatchSizeScaler()`, at its defaults, starts from batch 4 at the learning rate of
batch 4. A seed fixes the initial weights, which sequences are read, and their order.

    python benchmarks/recurrent.py               # 8 seeds, about a minute each
    python benchmarks/recurrent.py --rates --seeds 2 --out rates.json
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from front import TASK, Sequences, as_is, corpus, warmup_and_cosine
from paired import Clock, parser, run
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_bsscale import BatchSizeScaler

WIDTH, SEQUENCES = 64, 8_000
RATES = (2e-3, 4e-3, 8e-3, 16e-3)
BEST = {4: 4e-3, 64: 8e-3}
RUNS = {"fixed 4": (4, BEST[4]), "fixed 64": (64, BEST[64]), "scaler from 4": (4, BEST[4])}
TRIED = {f"fixed {batch}, rate {rate}": (batch, rate) for batch in BEST for rate in RATES}


class ByteGRU(pl.LightningModule):
    """A GRU over bytes, with Adam and the schedule of benchmarks/front.py."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate, self.examples = rate, 0
        self.embed = nn.Embedding(256, WIDTH)
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, 256)

    def loss(self, rows: Tensor) -> Tensor:
        """Compute the mean loss of the next byte.

        Args:
            rows: Sequences one byte longer than the context.

        Returns:
            The loss in nats per byte.
        """
        logits = self.head(self.gru(self.embed(rows[:, :-1]))[0])
        return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.examples += len(batch)
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.rate)
        return warmup_and_cosine(optimizer, int(self.trainer.estimated_stepping_batches))


def one(job: tuple[str, int]) -> dict[str, Any]:
    """Make one run.

    Args:
        job: The run's name and the seed.

    Returns:
        Its results.
    """
    name, seed = job
    batch, rate = (RUNS | TRIED)[name]
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    rows, held_out, _ = corpus()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:SEQUENCES]
    torch.manual_seed(seed)
    model, clock, scaler = ByteGRU(rate), Clock(), BatchSizeScaler()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[clock, scaler] if name.startswith("scaler") else [clock],
        gradient_clip_val=TASK["clip"],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(Sequences(rows[order]), batch_size=batch, collate_fn=as_is))
    with torch.no_grad():
        losses = [model.loss(part).item() * len(part) for part in held_out.split(256)]
    return {
        "name": name,
        "seed": seed,
        "optimizer_steps": trainer.global_step,
        "examples": model.examples,
        "val_loss": sum(losses) / len(held_out),
        "growths": [(made.situation.examples_seen, made.batch_size) for made in scaler.decisions if made.is_change],
        **clock.read(),
    }


def main() -> int:
    """Make all runs and write the table.

    Returns:
        The exit status.
    """
    options = parser(__doc__, name="recurrent", seeds=8)
    options.add_argument("--rates", action="store_true", help="try the learning rates of the fixed batches")
    chosen = options.parse_args()
    return run(
        chosen,
        one,
        list(TRIED if chosen.rates else RUNS),
        scores={"val_loss": "val loss"},
        title="A recurrent network: fixed small, fixed large, scaler",
        text=f"Byte-level GRU, {SEQUENCES} sequences of {TASK['context']} bytes in one epoch.",
        settings={"sequences": SEQUENCES, "width": WIDTH, "rates": BEST},
    )


if __name__ == "__main__":
    sys.exit(main())
