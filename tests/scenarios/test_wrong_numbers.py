"""What docs/wrong_numbers.md says is off without a word: by how much, with a known truth."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsscale import GradientNoiseScaleMonitor
from lightning_bsscale.theory.moments import window_moments
from tests.helpers.expected_warnings import NOT_THE_MEAN, said_of
from tests.helpers.known_noise import DIMENSIONS, NOISE_SCALE, KnownNoise, gradients
from tests.helpers.training import fit

ACCUMULATE = 4


def measured(module, loader, **options):
    monitor = GradientNoiseScaleMonitor(measure_every=1, memory=1.0, **options)
    fit(module, loader, [monitor], max_epochs=1, accumulate_grad_batches=ACCUMULATE)
    return monitor.noise_scale


def in_parts(xs, sizes):
    return DataLoader([[part] for part in xs.split(sizes)], batch_size=None)


def summed():
    return KnownNoise(loss=lambda linear, xs: linear(xs).sum())


def test_a_sum_over_examples_is_right_at_one_size_and_off_at_several():
    """A factor on all gradients leaves the noise scale; with sizes of 1 and 7 the sum is no mean any more."""
    xs = gradients(16 * 200)
    alike = [noise.noise_scale for noise in (measured(kind(), in_parts(xs, 4)) for kind in (KnownNoise, summed))]
    assert alike[1] == pytest.approx(alike[0], rel=1e-3)
    sizes = [1, 7, 1, 7] * 200
    unlike = [measured(kind(), in_parts(xs, sizes)) for kind in (KnownNoise, summed)]
    assert unlike[0].low < NOISE_SCALE < unlike[0].high
    assert unlike[1].high < 0.75 * NOISE_SCALE


def test_a_wrong_count_of_examples_is_the_factor_on_the_noise_scale():
    xs = gradients(16 * 100)
    right = measured(KnownNoise(), in_parts(xs, 4))
    wrong = measured(KnownNoise(), in_parts(xs, 4), batch_size_fn=lambda batch: 3 * len(batch[0]))
    assert wrong.noise_scale == pytest.approx(3 * right.noise_scale)


def centred(linear, xs):
    """What BatchNorm and contrastive losses do: an example's loss depends on the others of its micro-batch."""
    values = linear(xs)
    return (values - values.mean()).square().mean() + values.mean()


def test_a_loss_across_examples_depends_on_the_micro_batch():
    """At weights of zero the spread has no gradient; away from it, it has: the number is that of one size only."""
    xs = gradients(32 * 100)
    found = []
    for size in (2, 8):
        module = KnownNoise(loss=centred)
        nn.init.constant_(module.linear.weight, 0.5)
        found.append(measured(module, in_parts(xs, size)).noise_scale)
    assert max(found) > 1.2 * min(found)


def test_a_tiny_data_set_without_replacement_looks_noisier():
    """Windows of all 16 examples: the pairs of different examples know nothing of an example's pair with itself."""
    xs = gradients(16, seed=7) + gradients(1, seed=8)
    deviations = xs - xs.mean(0)
    trace = float(deviations.square().sum()) / 16
    signal = float(xs.mean(0).square().sum())
    again = torch.cat([xs[torch.randperm(16, generator=torch.Generator().manual_seed(k))] for k in range(60)])
    found = measured(KnownNoise(), DataLoader(TensorDataset(again), batch_size=4))
    assert found.trace / found.grad_sq == pytest.approx(trace * 16 / 15 / (signal - trace / 15), rel=0.05)
    assert found.noise_scale > trace / signal


@pytest.mark.parametrize(
    ("loss", "added"),
    [
        # Half of the inputs are dropped, and the others doubled: of an example's squares as much again is noise.
        (lambda linear, xs: linear(nn.functional.dropout(xs, 0.5)).mean(), DIMENSIONS + 1.0),
        (lambda linear, xs: linear(xs + 2.0 * torch.randn_like(xs)).mean(), DIMENSIONS * 4.0),
    ],
    ids=["dropout", "augmentation"],
)
def test_dropout_and_augmentation_are_noise_of_an_example(loss, added):
    torch.manual_seed(0)
    found = measured(KnownNoise(loss=loss), in_parts(gradients(16 * 300), 4))
    assert found.trace == pytest.approx(DIMENSIONS + added, rel=0.05)
    assert NOISE_SCALE < found.low < NOISE_SCALE + added < found.high


def correlated(correlations, windows):
    """Examples of which those of a window depend on each other as given, and of two windows not at all."""
    generator = torch.Generator().manual_seed(0)
    independent = torch.randn(windows, 16, DIMENSIONS, generator=generator, dtype=torch.float64)
    factor = torch.linalg.cholesky(correlations + 1e-9 * torch.eye(16))
    return (DIMENSIONS**-0.5 + factor @ independent).float().flatten(0, 1)


ONE, TWICE = torch.eye(8, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)
STEPS = torch.arange(16.0, dtype=torch.float64)
DEPENDENT = {
    "each example twice in a micro-batch": (torch.kron(ONE, TWICE), 128.0),
    "each example in two micro-batches": (torch.kron(TWICE, ONE), 6.7),
    "steps of one episode": (0.9 ** (STEPS[:, None] - STEPS).abs(), 2.62),
}


@pytest.mark.parametrize("name", DEPENDENT)
def test_examples_that_depend_on_each_other(name):
    """Independent ones have a noise scale of 64; what is measured of these follows from their correlations."""
    correlations, told = DEPENDENT[name]
    of_micro_batch, of_window = (1 + DIMENSIONS * float(correlations[:n, :n].mean()) for n in (4, 16))
    expected = window_moments([of_micro_batch] * ACCUMULATE, of_window, [4] * ACCUMULATE)
    assert expected.trace / expected.grad_sq == pytest.approx(told, rel=0.02)
    found = measured(KnownNoise(), in_parts(correlated(correlations, 400), 4))
    assert found.trace == pytest.approx(expected.trace, rel=0.1)
    assert found.noise_scale == pytest.approx(told, rel=0.2)
    assert not found.low < NOISE_SCALE < found.high


def alike(linear, xs):
    """Gradients of which nearly all is their mean: a sum of them in bfloat16 stops growing at 256 times one of them."""
    return linear((1 + 0.1 * xs).to(linear.weight.dtype)).mean()


@pytest.mark.parametrize(
    ("precision", "micro_batches", "refused"), [("bf16-true", 64, 0), ("bf16-true", 1024, 1), ("32-true", 1024, 0)]
)
def test_many_micro_batches_in_bfloat16_throughout(precision, micro_batches, refused, recwarn):
    monitor = GradientNoiseScaleMonitor(measure_every=1, memory=1.0)
    settings = dict(max_epochs=1, accumulate_grad_batches=micro_batches, precision=precision)
    fit(KnownNoise(loss=alike), in_parts(gradients(2 * micro_batches), 1), [monitor], **settings)
    assert len(said_of(NOT_THE_MEAN, recwarn)) == refused
    assert len(monitor.history) == (0 if refused else 2)


def test_gradients_whose_squares_leave_float32_are_measured_wrong():
    tiny = KnownNoise(loss=lambda linear, xs: 1e-22 * linear(xs).mean())
    found = measured(tiny, in_parts(gradients(16 * 100), 4))
    assert not found.low <= NOISE_SCALE <= found.high
