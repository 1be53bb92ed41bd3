"""The rescaling of a window's sums, by hand; `test_watcher.py` compares it with separate gradients."""

import itertools
import math

import pytest
import torch

from lightning_bsscale.gradients.shares import share_of_sums
from lightning_bsscale.theory.moments import moments_of
from lightning_bsscale.theory.records import WindowSums


def number(value):
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "norms"),
    [
        (dict(loss_divisor=1), [20.0, 16.0 / 4]),
        (dict(loss_divisor=2), [4 * 20.0, 16.0]),
        (dict(loss_divisor=3), [9 * 20.0, 9 / 4 * 16.0]),
        (dict(loss_divisor=2, loss_scale=number(8.0)), [20 / 16, 16.0]),
        (dict(loss_divisor=2, loss_scale=number(8.0), is_grad_scaled=True), [20 / 16, 1 / 4]),
        (dict(loss_divisor=2, is_grad_scaled=True), [4 * 20.0, 16.0]),
    ],
)
def test_loss_divisor_and_loss_scale_by_hand(options, norms):
    found = share_of_sums(number(20.0), number(16.0), [4, 1], **options)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([*norms, 2, 1.25, 5], rel=1e-15)
    together = share_of_sums(number(20.0), number(16.0), [4, 1], ranks_in_sample=4, **options).tolist()
    assert together == pytest.approx([*norms, 0.5, 1.25 / 16, 5], rel=1e-15)


def test_without_a_sample_there_is_no_mean():
    found = share_of_sums(number(0.0), number(16.0), [], loss_divisor=2).tolist()
    assert math.isnan(found[1])
    assert found[0] == found[2] == found[3] == found[4] == 0


def test_what_is_not_finite_stays_so():
    assert math.isnan(share_of_sums(number(math.nan), number(1.0), [1, 1], loss_divisor=2)[0])
    assert math.isinf(share_of_sums(number(1.0), number(math.inf), [1, 1], loss_divisor=2)[1])


@pytest.mark.parametrize("sizes", [((1, 1), (1, 1)), ((1, 2), (1, 1)), ((2, 1), (1, 2))], ids=str)
def test_samples_that_are_means_over_ranks_are_unbiased(sizes):
    """Two samples of two ranks: every draw from a population of three examples, with equal probability."""
    population = torch.tensor([0.0, 2.0, 7.0], dtype=torch.float64)
    bounds = list(itertools.pairwise(itertools.accumulate([0, *itertools.chain(*sizes)])))
    traces, grad_sqs, wrong = [], [], []
    for draw in itertools.product(range(3), repeat=bounds[-1][1]):
        examples = population[list(draw)]
        own = torch.stack([examples[a:b].mean() for a, b in bounds]).reshape(2, 2)  # by sample and rank
        samples = own.mean(1)
        # The gradient has one element, which the first rank holds.
        held = [(samples.square().sum(), samples.mean().square()), (number(0.0), number(0.0))]
        shares = [
            share_of_sums(*norms, [of_sample[rank] for of_sample in sizes], loss_divisor=2, ranks_in_sample=2)
            * torch.tensor([1 / 4, 1, 1, 1, 1])  # of losses that were not divided
            for rank, norms in enumerate(held)
        ]
        sums = WindowSums.read(sum(shares).tolist())
        assert (sums.num_samples, sums.examples) == (2, len(examples))
        moments = moments_of(sums)
        traces.append(moments.trace)
        grad_sqs.append(moments.grad_sq)
        wrong.append(moments.trace / moments.harmonic_size * len(examples) / 2)  # the twin: as if sizes were equal
    truth = float((population - population.mean()).square().mean())
    assert sum(traces) / len(traces) == pytest.approx(truth, rel=1e-9)
    assert sum(grad_sqs) / len(grad_sqs) == pytest.approx(float(population.mean().square()), rel=1e-9)
    are_equal = len({size for of_sample in sizes for size in of_sample}) == 1
    assert (sum(wrong) / len(wrong) == pytest.approx(truth, rel=1e-3)) == are_equal
