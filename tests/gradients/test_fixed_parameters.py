"""Measuring without training: right where the truth is known, and nothing left behind."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsscale.functional import measure_noise_scale
from lightning_bsscale.theory.moments import window_moments
from lightning_bsscale.theory.noise_report import Ending


class Quadratic(nn.Module):
    """Mean of 1/2 w.Hw - w.x over examples x: gradient Hw - x, with a diagonal H and a known covariance of x."""

    def __init__(self, curvature, start):
        super().__init__()
        self.first = nn.Parameter(start[:2].clone())
        self.second = nn.ParameterDict({"w": start[2:].clone()})
        self.curvature = curvature

    def forward(self, examples):
        weights = torch.cat([self.first, self.second["w"]])
        return 0.5 * weights @ (self.curvature * weights) - examples.mean(0) @ weights


CURVATURE = torch.tensor([1.0, 2.0, 4.0, 8.0, 0.5], dtype=torch.float64)
DEVIATION = torch.tensor([1.0, 3.0, 0.5, 2.0, 1.0], dtype=torch.float64)
START = torch.tensor([1.0, -1.0, 0.5, 0.25, 2.0], dtype=torch.float64)
SIGMA, GRADIENT = DEVIATION**2, CURVATURE * START
B_SIMPLE = float(SIGMA.sum() / (GRADIENT @ GRADIENT))
B_NOISE = float((CURVATURE * SIGMA).sum() / (GRADIENT @ (CURVATURE * GRADIENT)))


def examples(batches, size=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(batches * size, 5, generator=generator, dtype=torch.float64) * DEVIATION).split(size)


def loss_fn(model, batch):
    return model(batch)


def test_every_number_is_that_of_the_gradients_themselves():
    model, batches = Quadratic(CURVATURE, START), examples(40)
    optimizer = torch.optim.AdamW([{"params": [model.first], "name": "early"}, {"params": [*model.second.values()]}])
    for step in range(3):
        loss_fn(model, batches[step]).backward()
        optimizer.step()
        optimizer.zero_grad()
    found = measure_noise_scale(model, batches, loss_fn, relative_error=1e-9, optimizer=optimizer)
    weights = torch.cat([p.detach() for p in model.parameters()])
    gradients = torch.stack([CURVATURE * weights - batch.mean(0) for batch in batches])
    roots = [optimizer.state[p]["exp_avg_sq"].div(1 - 0.999**3).sqrt().add(1e-8) ** -0.5 for p in model.parameters()]

    def expected(of):
        moments = window_moments(of.square().sum(1).tolist(), float(of.mean(0).square().sum()), [2] * len(of))
        return pytest.approx((moments.trace, moments.grad_sq), rel=1e-9)

    first, second = gradients[:, :2], gradients[:, 2:]
    assert (found.noise.trace, found.noise.grad_sq) == expected(gradients)
    for part in (found.layers[""], found.groups["early"]):
        assert (part.trace, part.grad_sq) == expected(first)
    for part in (found.layers["second"], found.groups["1"]):
        assert (part.trace, part.grad_sq) == expected(second)
    assert (found.preconditioned.trace, found.preconditioned.grad_sq) == expected(gradients * torch.cat(roots))
    assert (found.batches, found.examples, found.ending) == (40, 80.0, Ending.OUT_OF_BATCHES)
    assert found.table().count("\n") == 6
    assert "more" in found.sentence()


@pytest.mark.parametrize("hessian", [False, True], ids=["B_simple", "B_noise"])
def test_the_intervals_cover_the_truth_though_looked_at_many_times(hessian):
    """And stopped at the first look that pleases."""
    truth, covered, found = (B_NOISE if hessian else B_SIMPLE), 0, []
    for seed in range(150):
        model = Quadratic(CURVATURE, START)
        report = measure_noise_scale(model, examples(160, seed=seed), loss_fn, relative_error=0.3, hessian=hessian)
        noise = report.hessian if hessian else report.noise
        covered += noise.low <= truth <= noise.high
        found.append((noise.trace, noise.grad_sq))
    assert 0.84 <= covered / 150 <= 0.97, covered / 150
    if hessian:
        traces, squares = np.array(found).T
        for sample, exact in ((traces, (CURVATURE * SIGMA).sum()), (squares, GRADIENT @ (CURVATURE * GRADIENT))):
            assert abs(sample.mean() - float(exact)) < 4.5 * sample.std(ddof=1) / math.sqrt(len(sample))


@pytest.mark.parametrize("rows", [4, 40])
def test_the_hessian_is_of_other_batches(rows):
    """In a regression of few examples, a Hessian of the same batches would be correlated with their gradients."""
    features, ratios = 3, []
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, features, generator=generator, dtype=torch.float64)
    y = x.sum(1) + torch.randn(rows, generator=generator, dtype=torch.float64)
    model = nn.Linear(features, 1, bias=False).double()
    nn.init.constant_(model.weight, 0.3)
    residual = x @ model.weight.detach()[0] - y
    each = residual[:, None] * x
    curvature, mean = x.T @ x / rows, each.mean(0)
    sigma = (each - mean).T @ (each - mean) / rows
    exact = float((curvature * sigma).sum()), float(mean @ curvature @ mean)
    for _ in range(250):
        drawn = torch.randint(rows, (48, 2), generator=generator)  # with replacement: independent of each other
        report = measure_noise_scale(
            model,
            [(x[one], y[one]) for one in drawn],
            lambda model, batch: 0.5 * (model(batch[0])[:, 0] - batch[1]).square().mean(),
            relative_error=1e-9,
            hessian=True,
            num_blocks=6,
        )
        ratios.append((report.hessian.trace, report.hessian.grad_sq))
    assert (report.hessian_products, report.batches) == (9, 36)
    for sample, truth in zip(np.array(ratios).T, exact, strict=True):
        assert abs(sample.mean() - truth) < 4 * sample.std(ddof=1) / math.sqrt(len(sample))


def test_it_stops_at_the_error_asked_for_and_forecasts_it():
    model = Quadratic(CURVATURE, START)
    few = measure_noise_scale(model, examples(60), loss_fn, relative_error=0.1)
    assert not few.is_reached
    assert 1 < few.more_batches < math.inf
    enough = measure_noise_scale(model, examples(60 + 2 * int(few.more_batches)), loss_fn, relative_error=0.1)
    assert enough.is_reached
    assert enough.batches < 60 + 2 * few.more_batches
    assert (enough.noise.high - enough.noise.low) / 2 <= 0.1 * enough.noise.noise_scale
    assert enough.more_batches == 0
    limited = measure_noise_scale(model, examples(60), loss_fn, relative_error=0.1, max_batches=10)
    assert (limited.batches, limited.ending) == (10, Ending.MAX_BATCHES)
    hurried = measure_noise_scale(model, examples(60), loss_fn, relative_error=1e-9, max_seconds=1e-9)
    assert (hurried.batches, hurried.ending) == (8, Ending.OUT_OF_TIME)


@pytest.fixture
def trained():
    """A model with everything that a forward pass writes to, a loader with a generator, and half a step's gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.utils.parametrizations.spectral_norm(nn.Linear(8, 2))
    )
    model[0].bias.requires_grad_(False)
    model[1].eval()
    data = TensorDataset(torch.randn(96, 4), torch.randint(2, (96,)))
    loader = DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(1))
    F.cross_entropy(model(data[:8][0]), data[:8][1]).backward()
    return model, loader


def snapshot(model, loader):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()]
    flags = [module.training for module in model.modules()] + [p.requires_grad for p in model.parameters()]
    states = torch.get_rng_state(), loader.generator.get_state(), random.getstate(), np.random.get_state()[1].copy()
    buffers = [id(buffer) for buffer in model.buffers()]
    return state, gradients, flags, states, buffers


def disturb(model, batch):
    model.train()
    model[0].bias.requires_grad_(True)
    model[1].running_mean = torch.zeros(8)  # replaced, not written to
    random.random(), np.random.rand()
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize("how", ["usual", "disturbed", "hessian", "exception"])
def test_everything_is_as_before(trained, how):
    model, loader = trained
    before, seen = snapshot(model, loader), 0

    def loss(model, batch):
        nonlocal seen
        seen += 1
        if how == "exception" and seen == 5:
            raise KeyError("the user's")
        return disturb(model, batch) if how != "usual" else F.cross_entropy(model(batch[0]), batch[1])

    if how == "exception":
        with pytest.raises(KeyError, match="the user's"):
            measure_noise_scale(model, loader, loss)
    else:
        measure_noise_scale(model, loader, loss, relative_error=1e-9, hessian=how == "hessian", num_blocks=4)
    after = snapshot(model, loader)
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert [g and g[0] for g in after[1]] == [g and g[0] for g in before[1]]
    torch.testing.assert_close([g[1] for g in after[1] if g], [g[1] for g in before[1] if g], rtol=0, atol=0)
    assert after[2] == before[2]
    assert torch.equal(after[3][0], before[3][0])
    assert torch.equal(after[3][1], before[3][1])
    assert after[3][2] == before[3][2]
    assert (after[3][3] == before[3][3]).all()
    assert after[4] == before[4]


def test_a_batch_that_overflows_is_left_out_and_counted():
    batches = list(examples(30))
    plain = measure_noise_scale(Quadratic(CURVATURE, START), batches, loss_fn, relative_error=1e-9)
    batches.insert(7, torch.full((2, 5), math.inf, dtype=torch.float64))
    found = measure_noise_scale(Quadratic(CURVATURE, START), batches, loss_fn, relative_error=1e-9)
    assert found.dropped == 1
    assert found.noise == plain.noise


def change_a_parameter(model, batch):
    loss = model(batch)
    with torch.no_grad():
        model.first.mul_(0.9)
    return loss


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (dict(batches=examples(1)), ValueError, "batches must hold at least two .* got 1"),
        (dict(loss_fn=lambda model, batch: 1.0), TypeError, "loss_fn must return the mean loss, .* got 1.0"),
        (dict(loss_fn=lambda model, batch: model.first), TypeError, "loss_fn must return"),
        (dict(loss_fn=change_a_parameter), RuntimeError, "loss_fn changed a parameter"),
        (dict(relative_error=0), ValueError, "relative_error must be"),
        (dict(num_blocks=3), ValueError, "num_blocks must be"),
        (dict(batch_size_fn=lambda batch: 0), ValueError, "the size of a batch must be"),
        (dict(model=nn.ReLU()), ValueError, "model must have a parameter"),
    ],
)
def test_what_is_wrong_is_said(changed, error, message):
    given = dict(model=Quadratic(CURVATURE, START), batches=examples(9), loss_fn=loss_fn)
    with pytest.raises(error, match=message):
        measure_noise_scale(**given | changed)


def test_what_cannot_be_had_is_said_in_the_report():
    model = Quadratic(CURVATURE, START)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = measure_noise_scale(model, examples(12), loss_fn, relative_error=1e-9, hessian=True, optimizer=optimizer)
    assert found.hessian is None
    assert found.preconditioned is None
    assert [note.split(":")[0] for note in found.notes] == [
        "No preconditioned noise scale",
        "No Hessian-weighted noise scale",
    ]
