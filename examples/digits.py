"""Train on scikit-learn's digits with a growing batch, SGD and a scheduler of your own.

    python examples/digits.py                    # about 15 s on a CPU
    python examples/digits.py --max_epochs 2     # a quick look
    python examples/digits.py --measure_only     # log the noise scale and change nothing

Needs: pip install 'lightning-bsscale[examples]'. `DigitsModel` is an ordinary LightningModule; its scheduler is built
from `trainer.estimated_stepping_batches`, and ends where it should, although fewer steps are made.
"""

import argparse

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from lightning_bsscale.demo import DigitsModel, digits_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_epochs", type=int, default=25)
    parser.add_argument("--batch_size", type=int, default=8, help="size of a loader batch, and the starting batch size")
    parser.add_argument("--measure_only", action="store_true")
    parser.add_argument("--progress", action="store_true", help="show Lightning's progress bar")
    options = parser.parse_args()

    pl.seed_everything(0)
    torch.set_num_threads(1)  # the layers are tiny: a second thread costs more than it saves
    train_data, val_data = digits_data()
    if options.measure_only:
        # The monitor compares the micro-batches of a step, so it needs at least two.
        callback, accumulate = GradientNoiseScaleMonitor(), 2
    else:
        callback, accumulate = BatchSizeScaler(), 1
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=options.max_epochs,
        accumulate_grad_batches=accumulate,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=options.progress,
        enable_model_summary=False,
    )
    model = DigitsModel(rate=0.01)
    train_loader = DataLoader(train_data, batch_size=options.batch_size, shuffle=True)
    trainer.fit(model, train_loader, DataLoader(val_data, batch_size=len(val_data)))

    scores = trainer.callback_metrics
    print(f"{trainer.global_step} optimizer steps, {model.examples_seen} examples")
    print(f"validation loss {scores['val_loss']:.4f}, accuracy {scores['val_accuracy']:.4f}")
    if not options.measure_only:
        print(callback.summary())
    elif callback.noise_scale is not None:
        found = callback.noise_scale
        print(f"noise scale {found.noise_scale:.0f} examples, 90 % interval from {found.low:.0f} to {found.high:.0f}")


if __name__ == "__main__":
    main()
