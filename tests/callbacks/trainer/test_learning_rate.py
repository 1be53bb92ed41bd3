"""The factor is on the rate only while the optimizer steps."""

import pytest
import torch
from torch.optim import AdamW
from torch.utils.data import DataLoader

from lightning_bsscale.callbacks.trainer.learning_rate import ScopedFactor, relative_learning_rate
from tests.helpers.expected_warnings import CANNOT_MEASURE
from tests.helpers.training import KeepsRates, Regression, UnsizedRegression, fit, regression_loader, scripted

pytestmark = CANNOT_MEASURE


def test_a_rate_that_the_user_changes_by_hand_is_the_users():
    class Decays(Regression):
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


def test_a_window_that_its_loader_cuts_has_the_factor_of_its_own_size():
    module = Regression(lambda p: KeepsRates(p, lr=0.1))
    loader = DataLoader(UnsizedRegression(44), batch_size=4)
    trainer = fit(module, loader, [scripted(16, total_examples=1000)], max_epochs=1)
    assert trainer.optimizers[0].used == [[pytest.approx(0.1 * size)] for size in (1, 4, 4, 2)]


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


def test_a_rate_of_zero_is_a_rate():
    module = Regression(lambda p: torch.optim.SGD(p, lr=0.0))
    before = [p.detach().clone() for p in module.parameters()]
    scaler = scripted(8, 16, lr_rule="sqrt", memory=0.05)
    trainer = fit(module, regression_loader(80), [scaler], max_epochs=1)
    assert trainer.callback_metrics["bsscale/lr"] == 0
    assert scaler.lr_scale == pytest.approx(2.0)
    assert all(map(torch.equal, before, module.parameters()))


def test_relative_to_the_initial_learning_rate_or_to_the_default():
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [weight], "lr": 0.4}], lr=0.1)
    assert relative_learning_rate(optimizer) == pytest.approx(4)
    torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)  # notes nothing
    optimizer.param_groups[0]["lr"] *= 0.5
    assert relative_learning_rate(optimizer) == pytest.approx(2)  # half of what it was
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # notes where it found it
    optimizer.param_groups[0]["lr"] *= 0.5
    assert relative_learning_rate(optimizer) == pytest.approx(0.5)
    tensor = torch.optim.AdamW([weight], lr=torch.tensor(0.1))
    tensor.param_groups[0]["lr"].mul_(0.5)
    assert relative_learning_rate(tensor) == 1
