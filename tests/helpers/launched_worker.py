"""A user's script: it trains on two processes that Lightning starts, and looks at its callback afterwards.

    python launched_worker.py FOLDER RUN [RUN ...]

A run is a strategy, or `STRATEGY-monitor` for the monitor in the scaler's place. Every rank writes
FOLDER/RUN/rank-RANK.json at the end of the training, and the process that called `fit` then FOLDER/RUN/main.json.
"""

import faulthandler
import json
import os
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from lightning_bsscale.theory.stored import plain_value
from tests.helpers.training import QUIET, Regression, regression_loader

LIFE = 90  # seconds
SHOWN = ["noise_scale", "batch_size", "lr_scale", "examples_seen", "planned_steps", "decisions", "history"]


def begin(life):
    """The script's arguments; it ends after `life` seconds, and says where it was."""
    faulthandler.dump_traceback_later(life, exit=True)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    folder, *rest = sys.argv[1:]
    return Path(folder), rest


def callback_of(kind, folder):
    options = dict(measure_every=2, memory=0.2, record=folder / "bsscale.jsonl")
    if kind == "monitor":
        return GradientNoiseScaleMonitor(**options)
    return BatchSizeScaler(max_micro_batch_size=None, **options)  # no clock takes part: trainings are compared


def shown(callback):
    return {name: getattr(callback, name) for name in SHOWN if hasattr(callback, name)}


def as_json(told):
    return json.dumps(told, default=plain_value)


def weights_of(module):
    return [parameter.detach().flatten().tolist() for parameter in module.parameters()]


def said(callback):
    """What the callback answers to a user, with its times."""
    if not hasattr(callback, "verdict"):
        return {}
    answers = {"verdict": str(callback.verdict()), "repr": repr(callback), "journal": str(callback.journal_path)}
    return answers | ({"summary": callback.summary()} if hasattr(callback, "summary") else {})


def what_is_here(callback, module):
    return {"shown": shown(callback), "said": said(callback), "weights": weights_of(module), "process": os.getpid()}


class Writes(pl.Callback):
    """What this rank shows at the end; it is the last callback."""

    def __init__(self, folder, callback):
        self.folder, self.callback = folder, callback
        self.windows, self.came = [], 0

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.windows.append(self.came + 1)
        self.came = -1

    def on_train_batch_end(self, trainer, *args):
        self.came += 1

    def on_fit_end(self, trainer, pl_module):
        told = what_is_here(self.callback, pl_module) | {"windows": self.windows}
        (self.folder / f"rank-{trainer.global_rank}.json").write_text(as_json(told))


def train(folder, strategy, callback):
    """Two epochs of a regression; `strategy` is what the Trainer is given."""
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        **{**QUIET, "enable_checkpointing": True},
        devices=2,
        strategy=strategy,
        max_epochs=2,
        callbacks=[callback, ModelCheckpoint(folder, filename="last"), Writes(folder, callback)],
    )
    module = Regression(SGD)
    trainer.fit(module, regression_loader(1203, noise=3.0, shuffle=True))
    return trainer, module


def SGD(parameters):  # by name, as a lambda cannot be pickled
    return torch.optim.SGD(parameters, lr=0.02, momentum=0.9)


def on_rank(rank, folder, kind):
    callback = callback_of(kind, folder) if kind else pl.Callback()
    train(folder, DDPStrategy(process_group_backend="gloo"), callback)


def main():
    root, runs = begin(LIFE)
    for name in runs:
        strategy, _, kind = name.partition("-")
        folder = root / name
        folder.mkdir(exist_ok=True)
        callback = callback_of(kind, folder)
        trainer, module = train(folder, strategy, callback)
        if trainer.is_global_zero:
            told = what_is_here(callback, module)
            told["metrics"] = {key: float(value) for key, value in trainer.callback_metrics.items()}
            told["best_model_path"] = trainer.checkpoint_callback.best_model_path
            (folder / "main.json").write_text(as_json(told))


if __name__ == "__main__":
    main()
