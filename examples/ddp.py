"""Train in several processes (DDP): the batch counts the examples of all of them, and all decide alike.

    python examples/ddp.py                                # two processes on this machine's CPU
    python examples/ddp.py --max_epochs 4                 # a quick look
    python examples/ddp.py --devices 4 --accelerator gpu  # four GPUs

Needs: pip install 'lightning-bsscale[examples]'. Lightning starts the other processes with the same command.
For several nodes, and runs that resume, see examples/multi_node/.
"""

import argparse

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from lightning_bsscale import BatchSizeScaler
from lightning_bsscale.demo import DigitsModel, digits_data


class Classifier(DigitsModel):
    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        images, labels = batch
        accuracy = (self(images).argmax(1) == labels).float().mean()
        self.log("val_accuracy", accuracy, sync_dist=True)  # the mean over all processes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=2, help="processes on this machine")
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--max_epochs", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=8, help="size of a loader batch, in every process")
    options = parser.parse_args()

    pl.seed_everything(0, workers=True)  # the same weights everywhere; Lightning's sampler distributes the examples
    torch.set_num_threads(1)
    train_data, val_data = digits_data()
    scaler = BatchSizeScaler()
    trainer = pl.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        strategy="ddp" if options.devices > 1 else "auto",
        max_epochs=options.max_epochs,
        callbacks=[scaler],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(train_data, batch_size=options.batch_size, shuffle=True)
    trainer.fit(Classifier(rate=0.01 * options.devices), loader, DataLoader(val_data, batch_size=75))

    # Every process has the same batch, steps and history: one of them says so.
    if trainer.is_global_zero:
        print(
            f"{trainer.world_size} processes: the batch started at {trainer.world_size * options.batch_size} examples"
        )
        print(
            f"{trainer.global_step} optimizer steps, and all-reduces of the gradient, instead of {scaler.planned_steps}"
        )
        print(f"accuracy {trainer.callback_metrics['val_accuracy']:.4f}")
        print(scaler.summary())


if __name__ == "__main__":
    main()
