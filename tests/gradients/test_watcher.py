"""What all watchers share: the order of calls, and a window's sums against separate gradients of every sample."""

import copy
import itertools
import math
import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_bsscale.gradients.comparison import Difference
from lightning_bsscale.gradients.fsdp1 import FlatParameterHooks
from lightning_bsscale.gradients.fsdp2 import WholeParameterHooks
from lightning_bsscale.gradients.parameter_hooks import ParameterHooks
from lightning_bsscale.gradients.shard_differences import ShardDifferences
from lightning_bsscale.gradients.watcher import share_of_sums
from lightning_bsscale.theory.moments import moments_of
from lightning_bsscale.theory.records import WindowSums
from tests.helpers.gradient_models import WIDTH, ZOO, Mlp, loss_of, micro_batches, watched
from tests.helpers.oracles import own_sq_norms, sq_norm
from tests.helpers.sharded_models import hooked

# Without those of low precision, whose rounding another order of sums changes, and those that the oracle cannot divide.
MODELS = [name for name in ZOO if name not in {"half", "mixed_dtypes", "sparse", "reentrant_shared"}]

# A window, not of the watchers but of separate gradients


def true_sums(model, samples, weights=None):
    """`WindowSums` of samples of all ranks, from a fresh copy of the model and an own backward pass for each."""
    given, weights = weights, weights or [1.0] * len(samples)
    fresh = copy.deepcopy(model)
    for x, weight in zip(samples, weights, strict=True):
        (loss_of(fresh, x) * weight / sum(weights)).backward()
    norms = own_sq_norms(model, samples, loss_of)
    return WindowSums(
        sum_sq_norms=sum(weight * norm for weight, norm in zip(weights, norms, strict=True)),
        mean_sq_norm=sum(sq_norm(p.grad) for p in fresh.parameters() if p.grad is not None),
        num_samples=len(samples),
        sum_inverse_sizes=sum(weight / len(x) for weight, x in zip(weights, samples, strict=True)),
        examples=sum(map(len, samples)),
        sum_weights=sum(weights) if given else None,
        sum_sq_weights=sum(w * w / len(x) for w, x in zip(weights, samples, strict=True)) if given else None,
    )


def shares_of(model, by_rank, *, divisor, scale, is_grad_scaled, said, weights=None, compared=True):
    """Each rank's `WindowShare`; the watchers are told what is in `said`, whatever was done."""
    ranks = len(by_rank)
    models = [copy.deepcopy(model) for _ in by_rank]
    watchers = [ParameterHooks(m.parameters(), grad_is_own=ranks == 1, num_replicas=ranks) for m in models]
    for rank_model, watcher, samples in zip(models, watchers, by_rank, strict=True):
        loss = lambda m, x: loss_of(m, x) * scale / divisor  # noqa: E731
        watched(watcher, rank_model, samples, loss, weights=weights, compared=compared)
    for copies in zip(*(m.parameters() for m in models), strict=True):  # as DDP does, and Lightning before the step
        grads = [p.grad for p in copies if p.grad is not None]
        for p in copies:
            p.grad = sum(grads) / ranks / (1 if is_grad_scaled else scale) if grads else None
    return [watcher.window_share(**said) for watcher in watchers]


def drawn(seed):
    """A model, its samples by rank, and what happens to the losses and to `.grad`."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    ranks, count = draw.randint(1, 3), draw.randint(1, 4)
    by_rank = [[torch.randn(draw.randint(1, 9), WIDTH) for _ in range(count)] for _ in range(ranks)]
    how = dict(
        divisor=draw.choice([1, count, count + 1, 3.5]),
        scale=draw.choice([1.0, 2.0**10]),
        is_grad_scaled=draw.random() < 0.5,
        weights=[draw.choice([0.25, 1.0, 3.0]) for _ in range(count)] if draw.random() < 0.5 else None,
    )
    said = dict(
        loss_divisor=how["divisor"],
        loss_scale=torch.tensor(how["scale"]) if how["scale"] != 1 or draw.random() < 0.5 else None,
        is_grad_scaled=how["is_grad_scaled"],
    )
    return ZOO[draw.choice(MODELS)](), by_rank, how, said


def added(shares):
    return sum(share.sums for share in shares).tolist(), sum(share.difference for share in shares).tolist()


@pytest.mark.parametrize("seed", range(24))
def test_shares_add_up_to_the_sums_of_separate_gradients(seed):
    model, by_rank, how, said = drawn(seed)
    compared = seed % 3 > 0
    shares = shares_of(model, by_rank, **how, said=said, compared=compared)
    sums, difference = added(shares)
    weights = how["weights"] and how["weights"] * len(by_rank)
    expected = true_sums(model, [x for samples in by_rank for x in samples], weights)
    if weights and {*weights} == {1.0}:
        expected = replace(expected, sum_weights=None, sum_sq_weights=None)
    found = WindowSums.from_numbers(sums)
    assert (found.sum_weights is None) == (expected.sum_weights is None)
    for name in WindowSums.__dataclass_fields__:
        wanted = getattr(expected, name)
        assert wanted is None or getattr(found, name) == pytest.approx(wanted, rel=2e-5, abs=1e-12), name
    assert Difference.from_numbers(difference).is_explained is (True if compared else None)
    assert all(share.sums.dtype == torch.float64 for share in shares)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(loss_divisor=3),
        dict(loss_scale=None),
        dict(loss_scale=torch.tensor(2.0**9)),
        dict(is_grad_scaled=True),
    ],
    ids=lambda wrong: " ".join(wrong),
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_watcher_that_is_told_something_else_is_wrong(wrong, ranks):
    """The twin."""
    torch.manual_seed(0)
    model, by_rank = Mlp(), [micro_batches(2) for _ in range(ranks)]
    how = dict(divisor=2, scale=2.0**10, is_grad_scaled=False)
    right = dict(loss_divisor=2, loss_scale=torch.tensor(2.0**10), is_grad_scaled=False)
    expected = true_sums(model, [x for samples in by_rank for x in samples])
    for said in (right, right | wrong):
        sums, _ = added(shares_of(model, by_rank, **how, said=said))
        norms = (expected.sum_sq_norms, expected.mean_sq_norm)
        assert (sums[:2] == pytest.approx(norms, rel=2e-5)) == (said is right)


def test_other_elements_are_compared_each_time():
    """A change of one element in ten thousand, which no single comparison of a sample needs to find."""
    model = nn.Linear(100, 100, bias=False)
    watcher, found = ParameterHooks(model.parameters(), num_replicas=2), []
    for _ in range(8):
        model.zero_grad()
        watched(watcher, model, [torch.ones(2, 100)], compared=True)
        model.weight.grad[7, 60:] = 1e6
        found.append(watcher.window_share(loss_divisor=1).difference.tolist())
    assert len({tuple(sums) for sums in found}) > 1


# The order of calls


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Mlp()


def test_a_sample_that_never_ended_is_forgotten(model):
    batches = micro_batches(3)
    expected = own_sq_norms(model, batches, loss_of)
    watcher = ParameterHooks(model.parameters())
    watcher.start_window()
    for k, x in enumerate(batches):
        watcher.start_sample()
        loss_of(model, x).backward()
        if k != 1:  # that one as after an exception that somebody caught
            watcher.end_sample(len(x))
    watcher.start_sample()
    loss_of(model, batches[0]).backward()
    assert watcher.stop_window() == watcher.stop_window() == 2
    assert watcher.sq_norms.tolist() == pytest.approx([expected[0], expected[2]], rel=1e-5)
    assert watcher.window_share(loss_divisor=1).sums[2:5].tolist() == [2, 1 / 3 + 1 / 5, 8]


def test_a_window_that_never_ended_is_given_up(model):
    batches = micro_batches(2)
    watcher = ParameterHooks(model.parameters())
    assert hooked(model) == 0
    watcher.start_window()
    assert hooked(model) == len(list(model.parameters()))
    watcher.start_sample()
    loss_of(model, batches[0]).backward()
    watcher.end_sample(1)
    watcher.start_sample()
    watcher.start_window()
    with pytest.raises(RuntimeError, match="end_sample was called without a sample"):
        watcher.end_sample(1)
    watcher.start_sample()
    found = watched(watcher, model, batches).tolist()
    assert found == pytest.approx(own_sq_norms(model, batches, loss_of), rel=1e-5)
    assert hooked(model) == 0


@pytest.mark.parametrize(
    "watcher",
    [
        ParameterHooks(Mlp().parameters()),
        FlatParameterHooks(nn.Linear(1, 1), list, world_size=1),
        WholeParameterHooks(nn.Linear(1, 1), list, world_size=1),
        ShardDifferences(list, world_size=2),
    ],
    ids=lambda watcher: type(watcher).__name__,
)
def test_calls_out_of_order_are_refused(watcher):
    with pytest.raises(RuntimeError, match="start_sample was called outside a window: call start_window first"):
        watcher.start_sample()
    watcher.start_window()
    with pytest.raises(RuntimeError, match="end_sample was called without a sample: call start_sample first"):
        watcher.end_sample(1)
    watcher.start_sample()
    with pytest.raises(ValueError, match="examples must be a finite number above 0, got 0"):
        watcher.end_sample(0)
    watcher.start_sample()
    watcher.end_sample(2)
    with pytest.raises(RuntimeError, match="call start_sample first"):
        watcher.end_sample(2)
    assert watcher.stop_window() == watcher.stop_window() == 1
    assert watcher.sq_norms.tolist() == [0.0]
    share = watcher.window_share(loss_divisor=3)
    together = 2 if watcher.sees_mean_over_ranks else 1
    assert share.sums.tolist() == [0.0, 0.0, *[1 / together, 0.5 / together**2, 2.0, 1 / together, 0.5 / together**2]]
    assert share.difference.isnan().all()
    with pytest.raises(RuntimeError, match="call start_window first"):
        watcher.start_sample()
    watcher.start_window()
    assert watcher.stop_window() == 0
    assert watcher.sq_norms.tolist() == []


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
    found = share_of_sums(number(20.0), number(16.0), [4, 1], [1.0, 1.0], **options)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([*norms, 2, 1.25, 5, 2, 1.25], rel=1e-15)
    together = share_of_sums(number(20.0), number(16.0), [4, 1], [1.0, 1.0], ranks_in_sample=4, **options).tolist()
    assert together == pytest.approx([*norms, 0.5, 1.25 / 16, 5, 0.5, 1.25 / 16], rel=1e-15)
    weighted = share_of_sums(number(20.0), number(16.0), [4, 1], [3.0, 0.5], **options).tolist()
    mean = norms[1] * (2 / 3.5) ** 2
    assert weighted == pytest.approx([norms[0], mean, 2, 3 / 4 + 0.5, 5, 3.5, 9 / 4 + 0.25], rel=1e-15)


def test_without_a_sample_there_is_no_mean():
    found = share_of_sums(number(0.0), number(16.0), [], [], loss_divisor=2).tolist()
    assert math.isnan(found[1])
    assert found[0] == found[2] == found[3] == found[4] == 0


def test_what_is_not_finite_stays_so():
    assert math.isnan(share_of_sums(number(math.nan), number(1.0), [1, 1], [1, 1], loss_divisor=2)[0])
    assert math.isinf(share_of_sums(number(1.0), number(math.inf), [1, 1], [1, 1], loss_divisor=2)[1])


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
            share_of_sums(
                *norms, [of_sample[rank] for of_sample in sizes], [1.0, 1.0], loss_divisor=2, ranks_in_sample=2
            )
            * torch.tensor([1 / 4, 1, 1, 1, 1, 1, 1])  # of losses that were not divided
            for rank, norms in enumerate(held)
        ]
        sums = WindowSums.from_numbers(sum(shares).tolist())
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
