"""Train a small byte-level transformer on Python's help texts, with AdamW, warmup, cosine decay and a growing batch.

    python examples/char_lm.py                   # about a minute on a CPU
    python examples/char_lm.py --sequences 400   # a quick look
    python examples/char_lm.py --fixed           # the same without the callback

Nothing is downloaded: the text is `pydoc_data.topics`. OneCycleLR is built from `trainer.estimated_stepping_batches`.
A growing batch means fewer steps, so by itself the schedule would never reach its end; the callback keeps it on time.
"""

import argparse
from pydoc_data.topics import topics

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_bsscale import BatchSizeScaler

CONTEXT, WIDTH = 64, 64


class ByteModel(pl.LightningModule):
    def __init__(self, rate: float = 3e-3) -> None:
        super().__init__()
        self.rate = rate
        self.embed = nn.Embedding(256, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, nhead=4, dim_feedforward=4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, num_layers=2, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 256)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def loss(self, rows: Tensor) -> Tensor:
        x = self.layers(self.embed(rows[:, :-1]) + self.position, mask=self.mask, is_causal=True)
        return F.cross_entropy(self.head(x).flatten(0, 1), rows[:, 1:].flatten())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.rate, betas=(0.9, 0.95), weight_decay=0.1)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.rate, int(self.trainer.estimated_stepping_batches), pct_start=0.05, cycle_momentum=False
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_epochs", type=int, default=1)
    parser.add_argument("--sequences", type=int, default=None, help="number of sequences to train on (default: all)")
    parser.add_argument("--batch_size", type=int, default=4, help="size of a loader batch, and the starting batch size")
    parser.add_argument("--fixed", action="store_true", help="train without the callback")
    options = parser.parse_args()

    pl.seed_everything(0)
    text = "\n".join(topics[name] for name in sorted(topics)).encode()
    rows = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    rows = rows[: len(rows) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    rows = rows[torch.randperm(len(rows))]
    held_out, rows = rows[:512], rows[512:][: options.sequences]
    scaler = BatchSizeScaler()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=options.max_epochs,
        gradient_clip_val=1.0,
        callbacks=[] if options.fixed else [scaler],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    train_loader = DataLoader(rows, batch_size=options.batch_size, shuffle=True)
    trainer.fit(ByteModel(), train_loader, DataLoader(held_out, batch_size=256))
    loss, sequences = trainer.callback_metrics["val_loss"], len(rows) * options.max_epochs
    print(f"{sequences} sequences in {trainer.global_step} optimizer steps: validation loss {loss:.4f} nats per byte")
    if not options.fixed:
        print(scaler.summary())


if __name__ == "__main__":
    main()
