"""One of four processes on two nodes, started by torchrun.

    torchrun ... -m tests.helpers.node_worker FOLDER --name NAME [--kill] [--go_on]

It trains the demo's model on FOLDER/digits.pt, and writes FOLDER/NAME-RANK.json: what it decided and did, or the error
that it ended with. With `--kill` the last rank kills itself (SIGKILL) within a window, after the batch has grown.
"""

import argparse
import faulthandler
import json
import os
import signal
import time
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsscale import BatchSizeScaler, NoiseScalePolicy
from lightning_bsscale.demo import DigitsModel
from lightning_bsscale.theory.stored import as_plain
from tests.helpers.training import QUIET, KeepsRates

TIME_OUT = 10  # seconds, of the process group
LIFE = 60  # seconds: whatever hangs, this process ends, and says where it was
EPOCHS = 3
LAST_WINDOW = 88  # in epoch 1; windows have four micro-batches by then


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


def train(options, rank):
    """Trains on this rank; what all ranks must agree on."""
    pl.seed_everything(0, verbose=False)
    policy = NoiseScalePolicy(target_ratio=1.0)
    scaler = BatchSizeScaler(policy=policy, measure_every=2, memory=0.2, record=options.folder / "bsscale.jsonl")
    module = Worker(options.folder / "killed.json" if options.kill and rank == 3 else None)
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
        callbacks=[scaler, ModelCheckpoint(options.folder, save_last=True)],
    )
    loader = DataLoader(TensorDataset(*torch.load(options.folder / "digits.pt")), batch_size=4, shuffle=True)
    trainer.fit(module, loader, ckpt_path=options.folder / "last.ckpt" if options.go_on else None)
    return {
        "decisions": [as_plain(record) for record in scaler.decisions],
        "history": [as_plain(made) for made in scaler.history],
        "examples_seen": scaler.examples_seen,
        "windows": module.windows,
        "rates": trainer.optimizers[0].used,
        "weights": [parameter.detach().flatten().tolist() for parameter in module.parameters()],
    }


def main():
    faulthandler.dump_traceback_later(LIFE, exit=True)
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--go_on", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rank = int(os.environ["RANK"])
    told = {"node": int(os.environ["GROUP_RANK"]), "local_rank": int(os.environ["LOCAL_RANK"])}
    try:
        told["agreed"] = json.dumps(train(options, rank))
    except BaseException as error:
        told |= {"error": type(error).__name__, "text": str(error), "at": time.time()}
        told["functions"] = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        raise
    finally:
        (options.folder / f"{options.name}-{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
