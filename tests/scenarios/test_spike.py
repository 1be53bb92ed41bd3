"""One gradient spike in a measured window, through the real Trainer: growth is delayed by one memory at most."""

import functools

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_bsscale import BatchSizeScaler
from tests.helpers.known_noise import KnownNoise
from tests.helpers.training import fit

DIMENSIONS = 4096
LOADER_BATCH_SIZE = 4
LOADER_BATCHES = 1500
TOTAL = LOADER_BATCHES * LOADER_BATCH_SIZE
NOISE_SCALE = 400.0
MEASURED = 56  # the loader batch is in a measured window, in warmup (5 %: 75 loader batches)


class Gradients(Dataset):
    """Gaussian gradients of known noise scale; loader batch `at` is multiplied by `factor`."""

    def __init__(self, at=None, factor=1.0):
        self.at, self.factor = at, factor

    def __len__(self):
        return LOADER_BATCHES

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        noise = torch.randn(LOADER_BATCH_SIZE, DIMENSIONS, generator=generator) * (NOISE_SCALE / DIMENSIONS) ** 0.5
        noise[:, 0] += 1
        return [noise * self.factor if index == self.at else noise]


@functools.cache
def first_growth(**spike):
    """The share of the budget at which the batch first grows, the scaler, and its Trainer."""
    scaler = BatchSizeScaler(max_batch_size=16)
    loader = DataLoader(Gradients(**spike), batch_size=None)
    trainer = fit(KnownNoise(DIMENSIONS), loader, [scaler], max_epochs=1, gradient_clip_val=1.0)
    seen = [record.situation.examples_seen for record in scaler.decisions if record.is_change]
    return (seen[0] / TOTAL if seen else 1.0), scaler, trainer


@pytest.mark.parametrize("factor", [10.0, 1000.0])
def test_a_spike_delays_growth_by_one_memory_at_most(factor):
    usual, *_ = first_growth()
    spiked, scaler, _ = first_growth(at=MEASURED, factor=factor)
    assert usual < 0.15
    assert spiked <= usual + 0.05
    assert scaler.noise_scale.low < 1.3 * NOISE_SCALE
    assert scaler.noise_scale.high > 0.7 * NOISE_SCALE


def test_the_limited_window_is_counted_logged_and_recorded():
    _, scaler, trainer = first_growth(at=MEASURED, factor=1000.0)
    assert trainer.callback_metrics["bsscale/limited_windows"] == 1
    assert trainer.callback_metrics["bsscale/dropped_windows"] == 0
    # History keeps what was measured, not what entered the averages.
    assert max(made.trace for made in scaler.history) > 1e4 * NOISE_SCALE
