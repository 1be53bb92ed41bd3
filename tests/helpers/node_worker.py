"""One of four processes on two nodes, started by torchrun.

    torchrun ... -m tests.helpers.node_worker FOLDER NAME [kill | go_on]

It trains the demo's model on FOLDER/digits.pt, and writes FOLDER/NAME-RANK.json: what it decided and did, or the error
that it ended with. With `kill` the last rank kills itself (SIGKILL) within a window, after the batch has grown.
"""

import json
import os
import signal
import time
import traceback
from datetime import timedelta

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsscale import BatchSizeScaler, NoiseScalePolicy
from lightning_bsscale.demo import DigitsModel
from lightning_bsscale.theory.stored import as_plain
from tests.helpers.launched_worker import begin, weights_of
from tests.helpers.training import QUIET, KeepsRates

TIME_OUT = 10  # seconds, of the process group
LIFE = 60  # seconds
EPOCHS = 3
LAST_WINDOW = 88  # in epoch 1; windows have four loader batches by then


class Worker(DigitsModel):
    """Keeps its windows, and may kill its own process in the middle of one."""

    def __init__(self, killed=None):
        super().__init__(rate=0.01)
        self.killed = killed
        self.windows, self.came = [], 0

    def training_step(self, batch, batch_idx):
        self.came += 1
        if self.killed is not None and len(self.windows) == LAST_WINDOW and self.came == 2:
            self.killed.write_text(json.dumps({"epoch": self.current_epoch, "at": time.time()}))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer):
        self.windows.append(self.came)
        self.came = 0

    def configure_optimizers(self):
        optimizer = KeepsRates(self.parameters(), lr=0.01, momentum=0.9)
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def train(folder, how, rank):
    """Trains on this rank; what all ranks must agree on."""
    pl.seed_everything(0, verbose=False)
    policy = NoiseScalePolicy(target_ratio=1.0, confidence=0.9, hysteresis=2, min_steps=0)
    options = dict(measure_every=2, memory=0.2, max_micro_batch_size=None)
    scaler = BatchSizeScaler(policy=policy, record=folder / "bsscale.jsonl", **options)
    module = Worker(folder / "killed.json" if "kill" in how and rank == 3 else None)
    strategy = DDPStrategy(
        # With it DDP never arranges its buckets anew. Else it does so after the first step of every start, and sums of
        # four ranks are rounded differently before and after: a restarted training is equal to some 1e-8 only.
        find_unused_parameters=True,
        process_group_backend="gloo",
        timeout=timedelta(seconds=TIME_OUT),
    )
    trainer = pl.Trainer(
        **{**QUIET, "enable_checkpointing": True},
        num_nodes=2,
        devices=2,
        strategy=strategy,
        max_epochs=EPOCHS,
        callbacks=[scaler, ModelCheckpoint(folder, save_last=True)],
    )
    loader = DataLoader(TensorDataset(*torch.load(folder / "digits.pt")), batch_size=4, shuffle=True)
    trainer.fit(module, loader, ckpt_path=folder / "last.ckpt" if "go_on" in how else None)
    return {
        "decisions": [as_plain(record) for record in scaler.decisions],
        "history": [as_plain(made) for made in scaler.history],
        "examples_seen": scaler.examples_seen,
        "windows": module.windows,
        "rates": trainer.optimizers[0].used,
        "weights": weights_of(module),
    }


def main():
    folder, (name, *how) = begin(LIFE)
    rank = int(os.environ["RANK"])
    told = {"node": int(os.environ["GROUP_RANK"]), "local_rank": int(os.environ["LOCAL_RANK"])}
    try:
        told["agreed"] = json.dumps(train(folder, how, rank))
    except BaseException as error:
        told |= {"error": type(error).__name__, "text": str(error), "at": time.time()}
        told["functions"] = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        raise
    finally:
        (folder / f"{name}-{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
