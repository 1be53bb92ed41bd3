"""Checkpoints at every place, and runs that go on from them: nothing is lost but what no checkpoint holds."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn
from torch.utils.data import DataLoader

from lightning_bsscale.replay import replay
from tests.helpers.expected_warnings import CANNOT_MEASURE, CKPT_PATH, MID_EPOCH, WITHIN_A_WINDOW, hearing
from tests.helpers.training import ByStep, KeepSteps, Numbers, Saves, fit, run_of, scripted

pytestmark = [CANNOT_MEASURE, CKPT_PATH, MID_EPOCH]

ROOT = Path(__file__).parents[2]
EPOCHS, LENGTH = 2, 17
WINDOWS = [1, 3, 2, 5, 4, 3, 1, 6, 2, 4, 3]


class ByIndex(pl.LightningModule):
    """Loader batch i of the training has gradient e_i, by Lightning's own count: the data's order does not matter."""

    def __init__(self, breaks_at=None):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(EPOCHS * LENGTH))
        self.breaks_at = breaks_at
        self.steps: list[tuple[int, dict[int, float]]] = []

    def training_step(self, batch, batch_idx):
        index = self.current_epoch * LENGTH + batch_idx
        if index == self.breaks_at:
            raise RuntimeError("on purpose")
        self.log("loss", 1.0)
        return self.weight[index]

    def on_before_optimizer_step(self, optimizer):
        grad = self.weight.grad
        entered = {int(i): round(float(grad[i]), 6) for i in grad.nonzero().flatten()}
        self.steps.append((self.trainer.global_step, entered))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def windows_from(first, interrupted=0, steps=0):
    """What should enter each step, from loader batch `first` on; `interrupted` are to come of an unfinished window."""
    planned, position = [], first
    while position < EPOCHS * LENGTH:
        wanted = interrupted or (WINDOWS[steps % len(WINDOWS)] if steps else 1)
        interrupted = 0
        length = min(wanted, LENGTH - position % LENGTH)
        planned.append({position + i: round(1 / length, 6) for i in range(length)})
        position += length
        steps += 1
    return planned


def train(module, callbacks=(), **settings):
    scaler, logger = scripted(policy=ByStep(WINDOWS), max_batch_size=6, lr_rule="none"), KeepSteps()
    settings |= dict(max_epochs=EPOCHS, logger=logger, log_every_n_steps=1)
    try:
        fit(module, DataLoader(Numbers(LENGTH)), [scaler, *callbacks], **settings)
    finally:
        module.logged = [step for step, _ in logger.points("loss")]
    return scaler


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a checkpoint after every loader batch."""
    folder, module = tmp_path_factory.mktemp("saved"), ByIndex()
    train(module, [Saves(folder / f"{i + 1}.ckpt", i % LENGTH, i // LENGTH) for i in range(EPOCHS * LENGTH)])
    assert [entered for _, entered in module.steps] == windows_from(0)
    return folder


def expect_going_on(path, stopped, position, *, counted=True):
    """From `position` on: the rest of the unfinished window, then the windows of a run that was never stopped."""
    whole, steps = windows_from(0), len(stopped.steps)
    window = next(window for window in whole if position <= max(window))
    lost, module = position - min(window), ByIndex()
    scaler = train(module, ckpt_path=path)
    expected = windows_from(position, interrupted=len(window) - lost if lost else 0, steps=steps)
    assert module.steps == list(enumerate(expected, start=steps))
    assert run_of(scaler).lost_loader_batches == lost
    # The loggers' steps go on where the optimizer's do, and none comes twice.
    assert not counted or stopped.logged + module.logged == list(range(steps + len(expected)))
    assert expected[-1] == whole[-1]


@WITHIN_A_WINDOW
@pytest.mark.parametrize("position", range(1, EPOCHS * LENGTH))
def test_from_every_loader_batch_on(saved, position):
    stopped = ByIndex()
    stopped.steps = [step for step in enumerate(windows_from(0)) if max(step[1]) < position]
    stopped.logged = list(range(len(stopped.steps)))
    expect_going_on(saved / f"{position}.ckpt", stopped, position)


def test_lost_loader_batches_are_said_once(saved):
    with hearing("checkpoint.*2 loader batches.*1") as said:
        train(ByIndex(), ckpt_path=saved / "3.ckpt")
    assert len(said) == 1


@WITHIN_A_WINDOW
@pytest.mark.parametrize("position", range(1, EPOCHS * LENGTH, 3))
def test_after_an_exception_in_every_window(tmp_path, position):
    """Lightning repeats the loader batch that failed."""
    broken = ByIndex(breaks_at=position)
    with pytest.raises(RuntimeError, match="on purpose"):
        train(broken, [OnExceptionCheckpoint(tmp_path)], enable_checkpointing=True)
    # In an epoch's last loader batch Lightning itself then counts a step too many for the loggers.
    expect_going_on(tmp_path / "on_exception.ckpt", broken, position, counted=(position + 1) % LENGTH != 0)


class Terminated(ByIndex):
    """Gets SIGTERM, as from a cluster's scheduler, in the given loader batch: Lightning ends it, and stops."""

    def training_step(self, batch, batch_idx):
        if self.current_epoch * LENGTH + batch_idx == self.breaks_at:
            self.breaks_at = None
            signal.raise_signal(signal.SIGTERM)
        return super().training_step(batch, batch_idx)


@WITHIN_A_WINDOW
@pytest.mark.parametrize("position", [2, 3, 7, 12, 20, 29])
def test_after_sigterm(tmp_path, position):
    stopped = Terminated(breaks_at=position)
    with pytest.raises(SIGTERMException):
        train(stopped, [OnExceptionCheckpoint(tmp_path)], enable_checkpointing=True)
    expect_going_on(tmp_path / "on_exception.ckpt", stopped, position + 1)


# ---------------------------------------------------------------- killed processes


@pytest.mark.timeout(300)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")
def test_killed_at_random_moments_it_ends_as_if_never_killed(tmp_path, kills):
    """Every step ever made, the decisions, the history and the journal equal those of an unbroken run."""
    whole = killed(tmp_path / "whole", 0, 0)
    steps = {json.loads(line)["step"]: line for line in lines_of(whole / "steps.jsonl")}
    result, journal = without_seconds(whole / "result.json"), records_of(whole)
    assert len(steps) > 300
    assert '"reason": "grow' in result
    hits = seed = 0
    while hits < kills:
        seed += 1
        folder = killed(tmp_path / str(seed), seed, kills - hits)
        hits += json.loads((folder / "kills.json").read_text())
        assert [line for line in lines_of(folder / "steps.jsonl") if steps[json.loads(line)["step"]] != line] == []
        assert without_seconds(folder / "result.json") == result
        assert records_of(folder) == journal
        shutil.rmtree(folder)


def killed(folder, seed, kills):
    words = [sys.executable, "-m", "tests.helpers.killed_run", str(folder), str(seed), str(kills)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return folder


def records_of(folder):
    """Those of the run that ended: one that was killed before its first checkpoint is nobody's to continue.

    Each run that resumed another records this in a line that an unbroken run does not have.
    """
    path = folder / (folder / "journal.txt").read_text()
    assert all(one.agrees for one in replay(path))
    header, *records = without_seconds(path).splitlines()
    assert json.loads(header)["continues"] is None
    return [line for line in records if not line.startswith('{"event":"resumed"')]


def lines_of(path):
    return path.read_text().splitlines()


def without_seconds(path):
    times = r'"seconds_per_(loader_batch|step)": ?[^,}]+|,"seconds":\[[^]]*\]|,"took": ?[^,}]+|,"pace": ?\{[^}]*\}'
    return re.sub(times, "", path.read_text())
