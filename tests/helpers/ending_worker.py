"""A user's script whose trainings on two processes have much to send home, or end badly.

    python ending_worker.py FOLDER RUN [RUN ...]

A run is `STRATEGY:KIND`. Afterwards FOLDER/RUN.json says what the process that called `fit` found: `error`, and of a
training that ended well whether the callback there shows what the first rank's does. FOLDER/RUN has the folder for
temporary files as the run left it. Kinds:

    WINDOWS     so many windows, all of them measured
    resumed     from FOLDER/big.ckpt
    killed      the second rank is killed when the first has written what it sends
    raises      a callback raises at the training's end, after ours
    fails       the training raises
    interrupted only the process that called `fit` gets Ctrl-C, so that the others train to their end; the last run
"""

import json
import os
import re
import signal
import tempfile
import threading
import time
from pathlib import Path

import lightning.pytorch as pl
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from tests.helpers.known_noise import DIMENSIONS, KnownNoise, gradients
from tests.helpers.launched_worker import SGD, as_json, begin, said, shown
from tests.helpers.training import QUIET, Regression, regression_loader

LIFE = 150  # seconds
CALLBACKS = []  # of the runs, in order


def written():
    return list(Path(tempfile.gettempdir()).glob("bsscale-*"))


class Killed(Regression):
    """Its state is taken after training, on every rank: the second one waits for the first one's file, and dies."""

    has_ended = False

    def on_fit_end(self):
        self.has_ended = True

    def state_dict(self, *args, **kwargs):
        if self.has_ended and self.trainer.global_rank == 1:
            while not written():
                time.sleep(0.01)
            mode = oct(written()[0].stat().st_mode & 0o777)
            Path(tempfile.gettempdir(), "found.txt").write_text(mode)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().state_dict(*args, **kwargs)


class Ends(pl.Callback):
    """Listed after ours: notes what it shows, or raises."""

    def __init__(self, callback, folder, kind):
        self.callback, self.folder, self.kind = callback, folder, kind

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.kind == "fails" and batch_idx == 20:
            raise RuntimeError("on purpose")
        if self.kind == "interrupted" and batch_idx == 20:
            (self.folder / "begun").touch()
            time.sleep(1)

    def on_train_end(self, trainer, pl_module):
        if self.kind == "raises":
            raise RuntimeError("on purpose")
        if trainer.is_global_zero:
            (self.folder / "rank-0.json").write_text(as_json(shown(self.callback)))


def train(folder, strategy, kind, big):
    module, loader, path, epochs = Regression(SGD), regression_loader(1203, noise=3.0), None, 1
    if kind.isdigit():
        callback = BatchSizeScaler(measure_every=1, warmup=0, memory=0.1, max_batch_size=4, max_micro_batch_size=None)
        micro_batches = gradients(4 * int(kind)).view(-1, 2, DIMENSIONS)
        module, loader = KnownNoise(), DataLoader(TensorDataset(micro_batches), batch_size=None)
    elif kind == "resumed":
        callback, path, epochs = BatchSizeScaler(measure_every=2, memory=0.2, max_micro_batch_size=None), big, 3
    else:
        callback = GradientNoiseScaleMonitor(measure_every=1)
        module = Killed(SGD) if kind == "killed" else module
    callbacks = [callback, Ends(callback, folder, kind)]
    trainer = pl.Trainer(**QUIET, devices=2, strategy=strategy, max_epochs=epochs, callbacks=callbacks)
    CALLBACKS.append(callback)
    if kind == "interrupted":
        threading.Thread(target=interrupt_when_trained, args=(folder,), daemon=True).start()
    trainer.fit(module, loader, ckpt_path=path)
    return trainer, callback


def interrupt_when_trained(folder):
    """The children ignore the signal that this process gets: it is sent to no group."""
    while not (folder / "begun").exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)


def main():
    root, runs = begin(LIFE)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it
    for name in runs:
        strategy, _, kind = name.partition(":")
        folder = root / name
        folder.mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
        told = {"error": None}
        try:
            trainer, callback = train(folder, strategy, kind, root / "big.ckpt")
        except (Exception, SystemExit) as error:
            told["error"] = f"{type(error).__name__}: {error}"
            told["said"] = said(CALLBACKS[-1])
        else:
            found = json.loads(as_json(shown(callback)))
            told["same"] = found == json.loads((folder / "rank-0.json").read_text())
            told["history"], told["decisions"] = len(found["history"]), len(found["decisions"])
            told["steps"] = found["history"][-1]["optimizer_steps"]
            told["kept"] = [value for key, value in vars(trainer.state).items() if re.match("bsscale", key)]
        (root / f"{name}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
