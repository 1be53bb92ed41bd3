"""A training that is killed (SIGKILL) at random moments and started again until it ends, in processes of its own.

    python -m tests.helpers.killed_run FOLDER SEED KILLS

The parent forks one process for each attempt and kills it after a random time, at most KILLS times; the last attempt
is left alone. Every attempt goes on from the newest checkpoint. FOLDER/steps.jsonl gets one line for every optimizer
step that was ever made, FOLDER/result.json what the scaler knows at the end, FOLDER/kills.json how many kills hit.
"""

import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_bsscale import BatchSizeScaler, NoiseScalePolicy
from lightning_bsscale.theory.stored import as_plain
from tests.helpers.training import QUIET, KeepsRates, Regression, one_cycle, regression_loader

EXAMPLES, LOADER_BATCH_SIZE, EPOCHS = 1204, 4, 3


class StatefulLoader:
    """Shuffled by the epoch's number; its state is the position in the epoch."""

    def __init__(self):
        self.data = regression_loader(EXAMPLES, noise=3.0).dataset
        self.trainer = None
        self.position = 0

    def __len__(self):
        return -(-EXAMPLES // LOADER_BATCH_SIZE)

    def __iter__(self):
        self.position %= len(self)
        # Lightning restores the loader's state within an epoch, and begins anew at an epoch's end.
        order = torch.randperm(EXAMPLES, generator=torch.Generator().manual_seed(self.trainer.current_epoch))
        while self.position < len(self):
            rows = order[self.position * LOADER_BATCH_SIZE : (self.position + 1) * LOADER_BATCH_SIZE]
            self.position += 1
            yield self.data[rows]

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class WritesSteps(Regression):
    """Writes every step: its number, the examples that entered it, the rate that it was taken with."""

    def __init__(self, path):
        # Not trainer.estimated_stepping_batches: asked there, it keeps Lightning from restoring the loader's state.
        total = EPOCHS * -(-EXAMPLES // LOADER_BATCH_SIZE)
        super().__init__(lambda p: KeepsRates(p, lr=0.01, momentum=0.9), one_cycle(total))
        self.path = path
        self.examples, self.made = [], 0

    def training_step(self, batch, batch_idx):
        time.sleep(0.002)  # long enough to be killed a few times
        self.examples.append(round(float(batch[1].sum()), 4))  # which examples, not how many
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.trainer.global_step == self.made:
            return
        self.made = self.trainer.global_step
        rate = self.trainer.optimizers[0].used[-1][0]
        weight = float(self.net.weight.detach().sum())
        with self.path.open("a") as file:
            file.write(json.dumps({"step": self.made, "window": self.examples, "rate": rate, "weight": weight}) + "\n")
        self.examples = []

    def on_train_start(self):
        self.made = self.trainer.global_step
        for callback in self.trainer.checkpoint_callbacks:
            # It forgets over a restart that this step is saved, and would save again, in the middle of a window.
            callback._last_global_step_saved = self.made


def newest(folder):
    # Not that of the last epoch's end: from there nothing is left to do.
    checkpoints = [path for path in folder.glob("*.ckpt") if not path.stem.endswith(f"-{EPOCHS - 1}")]
    for path in sorted(checkpoints, key=lambda path: int(path.stem.split("-")[1]), reverse=True):
        # Resumed from an epoch's very last step, Lightning counts that epoch twice (docs/resume.md): the one that is
        # saved after the epoch has the same step.
        progress = torch.load(path, weights_only=True)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        if path.stem.startswith("e-") or progress["ready"] < len(StatefulLoader()):
            return path
    return None


def attempt(folder):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    policy = NoiseScalePolicy(target_ratio=0.5, hysteresis=2)  # of many steps
    options = dict(measure_every=2, max_micro_batch_size=64, record=folder / "journal.jsonl")
    scaler = BatchSizeScaler(policy=policy, **options)
    kept = dict(dirpath=folder, save_top_k=-1)
    trainer = pl.Trainer(
        **{**QUIET, "enable_checkpointing": True},
        max_epochs=EPOCHS,
        callbacks=[
            scaler,
            ModelCheckpoint(**kept, every_n_train_steps=7, filename="s-{step}-s", auto_insert_metric_name=False),
            ModelCheckpoint(**kept, every_n_epochs=1, filename="e-{step}-{epoch}", auto_insert_metric_name=False),
        ],
    )
    loader = StatefulLoader()
    loader.trainer = trainer
    trainer.fit(WritesSteps(folder / "steps.jsonl"), loader, ckpt_path=newest(folder))
    state = scaler.state_dict()
    result = {
        "decisions": [as_plain(record) for record in scaler.decisions],
        "history": [as_plain(made) for made in scaler.history],
        "global_step": trainer.global_step,
        **{key: state["run"][key] for key in ("examples", "windows", "position", "lost_loader_batches", "batch")},
    }
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "journal.txt").write_text(scaler.journal_path.name)


def main(folder, seed, kills):
    folder.mkdir(parents=True, exist_ok=True)
    dice, hits = random.Random(seed), 0
    while True:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                attempt(folder)
                status = 0
            finally:
                os._exit(status)
        if hits < kills:
            time.sleep(dice.uniform(0.3, 0.9))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            break
        hits += 1
    (folder / "kills.json").write_text(json.dumps(hits))
    return os.WEXITSTATUS(status)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
