"""Clipping, parameter groups, scaled losses, compiled models: what is measured, and stepped with."""

import math

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_bsscale import GradientNoiseScaleMonitor
from lightning_bsscale.theory.moments import window_moments
from tests.helpers.expected_warnings import CANNOT_MEASURE
from tests.helpers.training import (
    QUIET,
    Regression,
    Unsized,
    assert_nothing_left,
    fit,
    regression_loader,
    scripted,
    watching,
)


def by_hand(module, loader, accumulate):
    """Each window's moments, one micro-batch after the other, at weights that stand still."""
    found, norms, sizes, total = [], [], [], None
    parameters = list(module.parameters())
    for index, (x, y) in enumerate(loader):
        gradients = torch.autograd.grad(module.loss(x, y), parameters)
        flat = torch.cat([gradient.flatten() for gradient in gradients]).double()
        norms.append(float(flat.square().sum()))
        sizes.append(len(x))
        total = flat if total is None else total + flat
        if (index + 1) % accumulate == 0:
            moments = window_moments(norms, float((total / accumulate).square().sum()), sizes)
            found.append((moments.trace, moments.grad_sq))
            norms, sizes, total = [], [], None
    return found


def assert_measured(one, expected):
    """The measurements are these, each with its trace and squared norm."""
    for made, (trace, grad_sq) in zip(one.history, expected, strict=True):
        assert made.trace == pytest.approx(trace, rel=1e-3)
        assert made.grad_sq == pytest.approx(grad_sq, rel=1e-3, abs=1e-3 * trace)


class Standing(Regression):
    """Weights stand still unless the test chooses an optimizer; `loss` can be called by hand."""

    def __init__(self, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0), **options):
        super().__init__(optimizer, **options)

    def loss(self, x, y):
        return nn.functional.mse_loss(self.net(x), y)

    def training_step(self, batch, batch_idx):
        return self.loss(*batch)


# ---------------------------------------------------------------- clipping


class KeepsNorms(torch.optim.SGD):
    """SGD that keeps the gradient that it really updates with."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.norms, self.largest = [], []

    def step(self, closure=None):
        loss = closure()
        grads = torch.cat([p.grad.flatten() for group in self.param_groups for p in group["params"]])
        self.norms.append(float(grads.norm()))
        self.largest.append(float(grads.abs().max()))
        super().step()
        return loss


class ClipsByHand(Standing):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        for parameter in self.parameters():
            parameter.grad.mul_(0.01)


def keeps_norms(parameters):
    return KeepsNorms(parameters, lr=0.0)


@pytest.mark.parametrize("how", ["norm", "value", "by hand"])
def test_clipped_steps_are_measured_unclipped(how):
    module = (ClipsByHand if how == "by hand" else Standing)(keeps_norms)
    settings = {} if how == "by hand" else {"gradient_clip_val": 0.01, "gradient_clip_algorithm": how}
    one, loader = watching(GradientNoiseScaleMonitor), regression_loader(96)
    trainer = fit(module, loader, [one], max_epochs=1, accumulate_grad_batches=3, **settings)
    assert_measured(one, by_hand(module, loader, 3))
    optimizer = trainer.optimizers[0]
    steps_of = {"norm": optimizer.norms, "value": optimizer.largest, "by hand": optimizer.norms}[how]
    # The steps were clipped, every one, far below what was measured.
    unclipped = fit(Standing(keeps_norms), loader, max_epochs=1, accumulate_grad_batches=3).optimizers[0]
    assert all(norm > 0.1 for norm in unclipped.norms)
    limit = 0.01 if how != "by hand" else 0.01 * max(unclipped.norms)
    assert all(clipped <= limit * 1.001 for clipped in steps_of)


def test_a_window_that_was_cut_is_clipped_as_the_mean_that_it_is():
    """The last window of an unsized loader is rescaled first: if it were clipped first, it would be twice as long."""

    loader = DataLoader(Unsized(regression_loader(40)), batch_size=None)
    scaler = scripted(total_examples=1000, measure_every=1)
    settings = dict(max_epochs=1, accumulate_grad_batches=4, gradient_clip_val=0.01)
    trainer = fit(Standing(keeps_norms), loader, [scaler], **settings)
    assert trainer.optimizers[0].norms == pytest.approx([0.01] * 3, rel=1e-3)


# ---------------------------------------------------------------- groups, decay, tensor rates


def two_groups(make, **options):
    def optimizer(parameters):
        weight, bias = parameters
        return make([{"params": [weight], "weight_decay": 0.1}, {"params": [bias], "lr": options["lr"] * 3}], **options)

    return optimizer


@CANNOT_MEASURE
@pytest.mark.parametrize(
    "optimizer",
    [
        two_groups(torch.optim.SGD, lr=0.05, momentum=0.9),
        two_groups(torch.optim.AdamW, lr=0.01),
        two_groups(torch.optim.AdamW, lr=torch.tensor(0.01), foreach=False),
        two_groups(torch.optim.AdamW, lr=0.01, fused=True),
        two_groups(torch.optim.SGD, lr=0.05, fused=True),
    ],
    ids=["sgd", "adamw", "tensor rate", "adamw fused", "sgd fused"],
)
def test_groups_decay_and_rates_are_those_of_a_hand_written_loop(optimizer):
    """Every group steps with its own rate × the factor, decay included, as a loop by hand would."""
    loader, batches = regression_loader(64), list(regression_loader(64))
    module, reference = Standing(optimizer), Standing(optimizer)
    trainer = fit(module, loader, [scripted(8, 16, 12, lr_rule="sqrt", measure_every=1)], max_epochs=1)
    ours = optimizer(reference.parameters())
    start = 0
    for count in (1, 2, 4, 3, 3, 3):
        window = batches[start : start + count]
        start += count
        loss = sum(reference.loss(x, y) for x, y in window) / count
        ours.zero_grad()
        loss.backward()
        rates = [float(group["lr"]) for group in ours.param_groups]
        for group, rate in zip(ours.param_groups, rates, strict=True):
            group["lr"] = rate * math.sqrt(count)
            if "betas" in group:  # Adam's second beta follows the batch too
                group["betas"] = (0.9, 0.999**count)
        ours.step()
        for group, rate in zip(ours.param_groups, rates, strict=True):
            group["lr"] = rate
    assert start == len(batches)
    for one, other in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    kept = [float(group["lr"]) for group in trainer.optimizers[0].param_groups]
    assert kept == pytest.approx(rates)


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("factor", [1e-6, 1024.0])
def test_a_loss_that_the_user_scales(factor):
    class Scaled(Standing):
        def training_step(self, batch, batch_idx):
            return factor * self.loss(*batch)

    runs = []
    for module in (Standing(), Scaled()):
        one = watching(GradientNoiseScaleMonitor)
        fit(module, regression_loader(160), [one], max_epochs=1, accumulate_grad_batches=2)
        runs.append(one.noise_scale)
    plain, scaled = runs
    assert (scaled.noise_scale, scaled.low) == pytest.approx((plain.noise_scale, plain.low), rel=1e-4)
    moments = factor**2 * plain.trace, factor**2 * plain.grad_sq
    assert (scaled.trace, scaled.grad_sq) == pytest.approx(moments, rel=1e-4)


def test_detect_anomaly():
    """It watches too; and where it raises, nothing is left behind."""
    one, module, loader = watching(GradientNoiseScaleMonitor), Standing(), regression_loader(96)
    fit(module, loader, [one], max_epochs=1, accumulate_grad_batches=3, detect_anomaly=True)
    assert_measured(one, by_hand(module, loader, 3))

    class Broken(Standing):
        def training_step(self, batch, batch_idx):
            # A finite loss whose gradient is not: 0 × inf in the backward pass of the square root.
            return super().training_step(batch, batch_idx) + (0 * self.net.weight.sum()).sqrt() * (batch_idx == 4)

    module = Broken()
    trainer = pl.Trainer(**QUIET, max_epochs=1, accumulate_grad_batches=3, detect_anomaly=True, callbacks=[one])
    with pytest.warns(UserWarning, match="Error detected in"), pytest.raises(RuntimeError, match="nan values"):
        trainer.fit(module, loader)
    assert_nothing_left(trainer, module, 3)


# ---------------------------------------------------------------- compiled


class Compiled(Standing):
    """A compiled part, whose graphs are counted."""

    def __init__(self, counter, **options):
        super().__init__(**options)
        self.forward_of_net = torch.compile(self.net, backend=counter)

    def loss(self, x, y):
        return nn.functional.mse_loss(self.forward_of_net(x), y)


@pytest.fixture
def counter():
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    yield CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()


@pytest.mark.parametrize("whole", [False, True])
def test_a_compiled_module_is_compiled_once_whatever_the_window(counter, whole):
    """Windows of 2, 3, 5, 1 … measured and not, with the factor on the rate: one graph."""
    scaler = scripted(12, 20, 8, 8, 16, 12, 8, measure_every=2)
    module = Standing(hidden=4) if whole else Compiled(counter, hidden=4)
    compiled = torch.compile(module, backend=counter) if whole else module
    fit(compiled, regression_loader(200), [scaler], max_epochs=2, accumulate_grad_batches=2)
    windows = {made.accumulate_grad_batches for made in scaler.history}
    assert len(windows) >= 2
    assert counter.frame_count == 1
