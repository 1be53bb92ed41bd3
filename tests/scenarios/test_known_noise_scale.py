"""The measured noise scale against a known one, through the real Trainer."""

import pytest
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from tests.helpers.known_noise import DIMENSIONS, NOISE_SCALE, KnownNoise, gradients
from tests.helpers.training import Scripted, fit


@pytest.mark.parametrize("callback", [BatchSizeScaler, GradientNoiseScaleMonitor])
def test_one_loader_batch_a_step_split_in_two(callback):
    scaler_only = dict(max_batch_size=16) if callback is BatchSizeScaler else {}
    watching = callback(measure_every=1, memory=1.0, **scaler_only)
    data = DataLoader(TensorDataset(gradients(16 * 1000, seed=1)), batch_size=16)
    fit(KnownNoise(), data, [watching], max_epochs=1)
    noise = watching.noise_scale
    assert noise.effective_windows == pytest.approx(1000, rel=0.02)
    assert noise.noise_scale == pytest.approx(NOISE_SCALE, rel=0.1)
    assert noise.low < NOISE_SCALE < noise.high


def test_unequal_parts_are_weighted():
    """Three loader batches in groups of two and one, halves of 7 in 3 and 4: no part counts more than its examples."""
    scaler = BatchSizeScaler(policy=Scripted([21]), measure_every=1, memory=1.0, max_micro_batch_size=15, warmup=0)
    data = DataLoader(TensorDataset(gradients(21 * 1000, seed=2)), batch_size=7)
    fit(KnownNoise(), data, [scaler], max_epochs=1)
    assert scaler.noise_scale.noise_scale == pytest.approx(NOISE_SCALE, rel=0.1)


def test_ragged_end_of_every_epoch_is_corrected():
    """Epochs of three loader batches under a divisor of four: every window has the wrong divisor; none may show it."""
    windows = 300
    monitor = GradientNoiseScaleMonitor(measure_every=1, memory=1.0)
    parts = iter(gradients(12 * windows, seed=4).split(4))
    module, loader = KnownNoise(loss=lambda linear, _: linear(next(parts)).mean()), DataLoader(range(12), batch_size=4)
    fit(module, loader, [monitor], max_epochs=windows, accumulate_grad_batches=4)
    assert {made.accumulate_grad_batches for made in monitor.history} == {3}
    truth, noise = NOISE_SCALE, monitor.noise_scale
    # One standard error is about 7 % here; uncorrected, the estimate would be off by tens of percent.
    assert noise.low < truth < noise.high
    assert noise.trace == pytest.approx(DIMENSIONS, rel=0.04)
