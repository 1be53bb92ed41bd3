"""A long training holds its memory, and its journal stays readable."""

import gc
import os
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_bsscale import BatchSizeScaler
from lightning_bsscale.journal import read_journal
from tests.helpers.training import Regression, fit, regression_loader

MEBIBYTE = 2**20


class Memory(pl.Callback):
    """Resident memory after the first steps, and at the end."""

    def __init__(self, first):
        self.first, self.at_first, self.at_end = first, 0.0, 0.0

    @staticmethod
    def resident():
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / MEBIBYTE

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.first and not self.at_first:
            self.at_first = self.resident()

    def on_train_end(self, trainer, pl_module):
        self.at_end = self.resident()


@pytest.mark.nightly
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_20_000_steps(tmp_path):
    """The defaults, with noise so large that the batch grows a few times; then it trains on at its size."""
    data = regression_loader(4000, noise=3.0).dataset
    scaler = BatchSizeScaler(max_batch_size=16, record=tmp_path / "journal.jsonl")
    memory = Memory(1000)
    module = Regression(lambda p: torch.optim.SGD(p, lr=1e-4))
    trainer = fit(module, DataLoader(data, batch_size=4), [scaler, memory], max_epochs=75)
    assert trainer.global_step >= 20_000
    assert memory.at_end - memory.at_first < 5, (memory.at_first, memory.at_end)
    assert (tmp_path / "journal.jsonl").stat().st_size < 10 * MEBIBYTE
    assert len(read_journal(tmp_path / "journal.jsonl")[1]) > 2500
    assert len(scaler.history) > 2500
