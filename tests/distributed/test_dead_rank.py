"""A rank that dies, or stops, at an awkward place: the other ends with torch's own error, and gives everything back."""

import json
import os
import signal
import time
import traceback
from datetime import timedelta

import lightning.pytorch as pl
import pytest
from lightning.pytorch.strategies import DDPStrategy

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from lightning_bsscale.theory.stored import as_plain
from tests.helpers.ddp_runs import Linear, loader_of, regression_items, trainer_of
from tests.helpers.processes import run
from tests.helpers.training import run_of

pytestmark = pytest.mark.timeout(60)

TIME_OUT = 2  # seconds, of the process group
LAST_WINDOW = 6


class Ends(pl.Callback):
    def __init__(self, place, number, file):
        self.place, self.number, self.file = place, number, file
        self.came, self.stepped, self.windows, self.told = 0, False, 0, []

    def reach(self, place):
        if self.file is not None and place == self.place and self.windows == LAST_WINDOW:
            self.file.write_text(str(os.getpid()))
            os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.came += 1
        if self.came == 2:
            self.reach("within")

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.reach("step")
        self.stepped = True

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.stepped:
            self.reach("message")
            self.windows += 1
            self.came, self.stepped = 0, False


class Notes(pl.Callback):
    """Stands after the package's callback, and is told of the error all the same."""

    error = None

    def on_exception(self, trainer, pl_module, exception):
        self.error = str(exception)


def lose_rank_1(rank, folder, make, place, number):
    callback = make(measure_every=1, record=folder / "bsscale.jsonl")
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=TIME_OUT))
    ends, notes = Ends(place, number, folder / "pid" if rank == 1 else None), Notes()
    trainer = trainer_of(2, [ends, callback, notes], strategy, max_epochs=1, accumulate_grad_batches=3)
    module = Linear(lr=0.01)
    started = time.monotonic()
    try:
        trainer.fit(module, loader_of(regression_items(60, [4]), rank, 2))
    except Exception as error:
        told = {
            "error": type(error).__name__,
            "text": str(error),
            "functions": [frame.name for frame in traceback.extract_tb(error.__traceback__)],
            "told_to_others": notes.error,
            "seconds": time.monotonic() - started,
            "windows": ends.windows,
            "accumulate": trainer.accumulate_grad_batches,
            "hooks": any(p._backward_hooks for p in module.parameters()),
            "rate_hooks": any(optimizer._optimizer_step_pre_hooks for optimizer in trainer.optimizers),
            "examples": as_plain(run_of(callback).examples),
            "pending": run_of(callback).pending is not None,
            "records": len((folder / "bsscale.jsonl").read_text().splitlines()),
        }
        (folder / "told.json").write_text(json.dumps(told))
        os.kill(int((folder / "pid").read_text()), signal.SIGKILL)  # one that only stopped


@pytest.mark.parametrize(
    ("make", "place", "number"),
    [
        (BatchSizeScaler, "within", signal.SIGKILL),
        (BatchSizeScaler, "step", signal.SIGKILL),
        (BatchSizeScaler, "message", signal.SIGKILL),
        (BatchSizeScaler, "message", signal.SIGSTOP),
        (GradientNoiseScaleMonitor, "message", signal.SIGKILL),
    ],
)
def test_the_other_rank_ends_with_the_error_of_torch_and_gives_everything_back(tmp_path, make, place, number):
    with pytest.raises(RuntimeError, match="rank 1 ended without a word"):
        run(lose_rank_1, 2, tmp_path, make, place, number, init=False, timeout=30)
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["error"] == "RuntimeError"
    assert "on_exception" not in told["functions"], told
    assert told["told_to_others"] == told["text"]
    assert told["seconds"] < TIME_OUT + 5
    assert told["windows"] >= LAST_WINDOW
    assert told["accumulate"] == 3
    assert not told["hooks"]
    assert not told["rate_hooks"]
    assert told["records"] > 1, "the journal was closed"
    # What no message will tell any more stands as assumed: a restart would else lose it from the count.
    assert told["pending"] or told["examples"]["in_flight"] == 0
    assert sum(told["examples"].values()) == told["windows"] * 24
