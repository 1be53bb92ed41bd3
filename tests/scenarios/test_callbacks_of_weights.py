"""Callbacks that change weights or which of them are trained, beside the scaler: averages, finetuning, pruning."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import callbacks
from torch import nn

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from tests.helpers.expected_warnings import CANNOT_MEASURE
from tests.helpers.training import KeepsRates, Regression, Watched, fit, regression_loader, scripted

GROWTH = (8, 16, 12)
pytestmark = CANNOT_MEASURE

# ---------------------------------------------------------------- averages of the weights


@pytest.mark.parametrize("name", ["WeightAveraging", "EMAWeightAveraging"])
@pytest.mark.parametrize("order", [1, -1])
def test_averages_are_over_the_steps_that_were_made(name, order):
    """In mid-window validations too, for which the average is swapped in and out."""
    if not hasattr(callbacks, name):
        pytest.skip("this Lightning has no WeightAveraging")

    def trained(*others):
        weights = []

        class Keeps(Watched):
            def on_train_batch_end(self, outputs, batch, batch_idx):
                if self.global_step > len(weights):
                    weights.append(self.net.weight.detach().clone())

        module, scaler = Keeps(), scripted(*GROWTH, measure_every=1)
        settings = dict(val=regression_loader(8), val_check_interval=5, max_epochs=2)
        fit(module, regression_loader(80), [*others, scaler][::order], **settings)
        return module.net.weight.detach(), weights, scaler.history

    made = callbacks.EMAWeightAveraging(decay=0.8) if name.startswith("EMA") else callbacks.WeightAveraging()
    average, weights, history = trained(made)
    bare, same_weights, same_history = trained()
    assert len(weights) == 15
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(weights, same_weights, strict=True))
    assert history == same_history
    expected = weights[0]
    for number, weight in enumerate(weights[1:], start=1):
        expected = torch.lerp(expected, weight, 0.2 if name.startswith("EMA") else 1 / (number + 1))
    torch.testing.assert_close(average, expected)
    assert not torch.allclose(average, bare)


# ---------------------------------------------------------------- callbacks that change the model


class TwoParts(pl.LightningModule):
    """The gradient of every weight of the head is 1 and of the backbone 3, whatever the micro-batch."""

    def __init__(self, optimizer):
        super().__init__()
        self.backbone, self.head = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
        self.make_optimizer = optimizer
        self.unfreezes_at = None

    def training_step(self, batch, batch_idx):
        return self.head.weight.sum() + 3 * self.backbone.weight.sum()

    def on_train_epoch_start(self):
        if self.unfreezes_at is not None:
            self.backbone.requires_grad_(self.current_epoch >= self.unfreezes_at)

    def configure_optimizers(self):
        return self.make_optimizer(self)


@pytest.mark.parametrize("cls", [BatchSizeScaler, GradientNoiseScaleMonitor])
@pytest.mark.parametrize("by", ["BackboneFinetuning", "the module itself"])
def test_finetuning_is_measured_from_where_it_unfreezes(cls, by):
    """The watched parameters are read anew for each window: those of a new group, and those unfrozen in an old one."""
    watch = scripted(measure_every=1, lr_rule="none") if cls is BatchSizeScaler else cls(measure_every=1)
    if by == "BackboneFinetuning":
        module = TwoParts(lambda m: KeepsRates(m.head.parameters(), lr=0.1))
        others = [callbacks.BackboneFinetuning(1, lambda epoch: 2.0, backbone_initial_ratio_lr=0.1)]
    else:
        module, others = TwoParts(lambda m: KeepsRates(m.parameters(), lr=0.1)), []
        module.unfreezes_at = 1
    loader = regression_loader(32)
    trainer = fit(module, loader, [*others, watch], max_epochs=3, accumulate_grad_batches=2)
    # 2 weights of gradient 1, and from the second epoch on 2 more of gradient 3.
    assert [made.grad_sq for made in watch.history] == pytest.approx([2.0] * 4 + [20.0] * 8)
    used = trainer.optimizers[0].used
    if by == "BackboneFinetuning":
        assert used == [[0.1]] * 4 + [pytest.approx([0.1, 0.01])] * 4 + [pytest.approx([0.1, 0.02])] * 4


def test_a_group_that_comes_later_is_scaled():
    module = TwoParts(lambda m: KeepsRates(m.head.parameters(), lr=0.1))
    finetune = callbacks.BackboneFinetuning(1, lambda epoch: 2.0, backbone_initial_ratio_lr=0.1)
    trainer = fit(module, regression_loader(32), [finetune, scripted(8, 16)], max_epochs=2)
    used = trainer.optimizers[0].used
    assert [len(rates) for rates in used] == [1, 1, 1, 1, 2, 2]
    assert used[-1] == pytest.approx([0.4, 0.04])
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == pytest.approx([0.1, 0.01])


def test_pruning():
    """Windows that do not change give the weights of a run without us, and each of them is measured."""
    weights = []
    for scaler in (None, scripted(measure_every=1)):
        module = Regression(hidden=6)
        prune = callbacks.ModelPruning("l1_unstructured", amount=0.3, use_lottery_ticket_hypothesis=True)
        others = [prune] if scaler is None else [prune, scaler]
        fit(module, regression_loader(80), others, max_epochs=3, accumulate_grad_batches=2)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in module.parameters()]))
    assert torch.equal(*weights)
    assert (weights[0] == 0).float().mean() > 0.3
    assert len(scaler.history) == 30
