"""The factor is on the rate only while the optimizer steps."""

import lightning.pytorch as pl
import pytest
import torch
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import StepLR

from lightning_bsscale.callbacks.trainer.learning_rate import ScopedFactor
from tests.helpers.expected_warnings import CANNOT_MEASURE
from tests.helpers.training import (
    QUIET,
    KeepsRates,
    Regression,
    assert_nothing_left,
    fit,
    regression_loader,
    scripted,
)

pytestmark = CANNOT_MEASURE


def p_groups(parameters):
    weight, bias = parameters
    return [{"params": [weight]}, {"params": [bias], "lr": 1.0}]


class Rates(Regression):
    """Keeps the rates that the user sees, wherever they look."""

    def on_fit_start(self):
        self.rates = []

    def look(self):
        self.rates.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])

    def on_train_batch_start(self, batch, batch_idx):
        self.look()

    def training_step(self, batch, batch_idx):
        self.look()
        return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer):
        self.look()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.look()


def test_the_rate_is_scaled_in_the_update_and_nowhere_else():
    module = Rates(lambda p: KeepsRates(p_groups(p), lr=0.1))
    trainer = fit(module, regression_loader(64), [scripted(8, 8, 16)], max_epochs=1)
    used = trainer.optimizers[0].used
    assert module.rates == [[0.1, 1.0]] * len(module.rates)
    assert [rates[0] for rates in used][:5] == pytest.approx([0.1, 0.2, 0.2, 0.4, 0.4])
    assert all(rates[1] == pytest.approx(10 * rates[0]) for rates in used)


def test_a_rate_that_the_user_changes_by_hand_is_the_users():
    class Decays(Rates):
        def training_step(self, batch, batch_idx):
            if batch_idx == 0:
                self.optimizers().param_groups[0]["lr"] = 0.2
            return super().training_step(batch, batch_idx)

        def on_before_optimizer_step(self, optimizer):
            optimizer.param_groups[0]["lr"] *= 0.5

    module = Decays(lambda p: KeepsRates(p, lr=0.1))
    trainer = fit(module, regression_loader(64), [scripted(8, 8, 16)], max_epochs=1)
    factors = [1, 2, 2, 4, 4, 3]
    expected = [0.2 * 0.5 ** (n + 1) * factor for n, factor in enumerate(factors)]
    assert [rates[0] for rates in trainer.optimizers[0].used] == pytest.approx(expected)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.2 * 0.5**6)


def test_weights_are_those_of_a_hand_written_loop():
    """SGD by hand over the same windows, with the scaled rates."""
    loader = regression_loader(48)
    module = Regression(lambda p: SGD(p, lr=0.05))
    reference = Regression().net
    reference.load_state_dict(module.net.state_dict())
    fit(module, loader, [scripted(8, 16, lr_rule="sqrt")], max_epochs=1)
    batches = list(loader)
    for window in (batches[:1], batches[1:3], batches[3:7], batches[7:11], batches[11:12]):
        size = sum(len(x) for x, _ in window)
        factor = max(1.0, (size / 4) ** 0.5)
        loss = sum(torch.nn.functional.mse_loss(reference(x), y) for x, y in window) / len(window)
        gradients = torch.autograd.grad(loss, list(reference.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(reference.parameters(), gradients, strict=True):
                parameter -= 0.05 * factor * gradient
    for ours, theirs in zip(module.net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1)])
def test_rates_come_back_to_the_last_digit(rate):
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = AdamW([parameter], lr=rate)
    group = optimizer.param_groups[0]
    before = group["lr"]
    scoped = ScopedFactor(optimizer)
    scoped.change(3.3, 0.7)
    parameter.grad = torch.ones(3)
    seen = []
    optimizer.step()
    assert group["lr"] is before
    assert float(group["lr"]) == pytest.approx(0.1, abs=1e-12 if isinstance(rate, float) else 1e-8)
    assert scoped.lr == pytest.approx(0.1 * 3.3 * 0.7)
    optimizer.step(lambda: seen.append(float(group["lr"])))
    assert seen == pytest.approx([0.1])
    scoped.remove()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_a_step_that_calls_its_parents_is_scaled_once():
    class Mine(SGD):
        def step(self, closure=None):
            return super().step(closure)

    weights = []
    for optimizer in (SGD, Mine):
        module = Regression(lambda p, made=optimizer: made(p, lr=0.05))
        fit(module, regression_loader(64), [scripted(8, 16)], max_epochs=1)
        weights.append(module.net.weight.detach())
    assert torch.equal(*weights)


def test_an_exception_inside_the_step_leaves_the_users_rate():
    class Breaks(Regression):
        def training_step(self, batch, batch_idx):
            if batch_idx == 8:  # the last of the window 5 to 8, so inside the optimizer's step
                raise RuntimeError("broken on purpose")
            return super().training_step(batch, batch_idx)

    def make(optimizer, trainer):
        return {"scheduler": StepLR(optimizer, 1000), "interval": "step"}

    module = Breaks(lambda p: SGD(p, lr=0.05), make)
    trainer = pl.Trainer(**QUIET, max_epochs=1, callbacks=[scripted(16)])
    with pytest.raises(RuntimeError, match="broken on purpose"):
        trainer.fit(module, regression_loader(80))
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.05
    assert_nothing_left(trainer, module, 1)


def test_a_rate_of_zero_is_a_rate():
    module = Regression(lambda p: torch.optim.SGD(p, lr=0.0))
    before = [p.detach().clone() for p in module.parameters()]
    scaler = scripted(8, 16, lr_rule="sqrt", memory=0.05)
    trainer = fit(module, regression_loader(80), [scaler], max_epochs=1)
    assert trainer.callback_metrics["bsscale/lr"] == 0
    assert scaler.lr_scale == pytest.approx(2.0)
    assert all(map(torch.equal, before, module.parameters()))
