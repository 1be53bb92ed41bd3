"""Steps that do not happen: training_step returns None, on_train_batch_start returns -1."""

import itertools

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from tests.helpers.expected_warnings import CANNOT_MEASURE, DROPPED, WITHOUT_VALIDATION, hearing
from tests.helpers.training import (
    KeepSteps,
    Numbers,
    OneHot,
    UnsizedNumbers,
    assert_measured_right,
    fit,
    gradient_scaler,
    run_of,
    scripted,
    watching,
)

pytestmark = [CANNOT_MEASURE, pytest.mark.filterwarnings("ignore:`training_step` returned `None`"), WITHOUT_VALIDATION]


def loader_of(length, sized=True):
    return DataLoader(Numbers(length) if sized else UnsizedNumbers(length))


# ---------------------------------------------------------------- training_step returns None


class WithNone(OneHot):
    """training_step returns None for chosen loader batches, counted over the whole training."""

    def __init__(self, total, epoch_length, none):
        super().__init__(total, epoch_length)
        self.none = set(none)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if self.epoch * self.epoch_length + batch_idx in self.none else loss

    def on_before_optimizer_step(self, optimizer):
        if self.weight.grad is None:
            self.steps.append({})
        else:
            super().on_before_optimizer_step(optimizer)


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("none", [{4}, {7}, {5, 6, 7}, {4, 5, 6, 7}, {0, 1, 2, 3}, {12, 13}, {13, 14, 15, 27}])
def test_the_others_keep_their_weight(none, sized):
    """Windows 4, 4, 4, 2 of 14: K is the number of loader batches that came, as in Lightning's own divisor."""
    module, scaler, logger = WithNone(28, 14, none), scripted(measure_every=1), KeepSteps()
    settings = dict(max_epochs=2, accumulate_grad_batches=4, logger=logger, log_every_n_steps=1)
    trainer = fit(module, loader_of(14, sized), [scaler], **settings)
    starts = [*range(0, 14, 4), *range(14, 28, 4), 28]
    windows = [range(*pair) for pair in itertools.pairwise(starts)]
    assert module.steps == [{i: 1 / len(window) for i in window if i not in none} for window in windows]
    assert trainer.global_step == len(windows)
    assert scaler.examples_seen == 28
    assert [step for step, _ in logger.logged] == [*range(8)]
    assert_measured_right(scaler)
    # A window with such a loader batch is no measurement, and none that was dropped either.
    assert len(scaler.history) == sum(not none & set(window) for window in windows)
    assert trainer.callback_metrics["bsscale/dropped_windows"] == 0


@pytest.mark.parametrize("callback", [BatchSizeScaler, GradientNoiseScaleMonitor])
@pytest.mark.parametrize("none", [4, 5, 7])
def test_under_a_gradient_scaler_a_last_none_skips_the_step(callback, none):
    """Lightning has nothing to unscale then and does not step: counted as a step that did not happen."""

    class Moves(WithNone):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1.0)

    module, one = Moves(12, 12, {none}), watching(callback)
    trainer = fit(module, loader_of(12), [one], max_epochs=1, accumulate_grad_batches=4, **gradient_scaler())
    stepped = {0, 1, 2, 3, 8, 9, 10, 11} | ({4, 5, 6, 7} - {none} if none != 7 else set())
    assert module.weight.detach().tolist() == [-0.25 * (i in stepped) for i in range(12)]
    assert trainer.global_step == 3
    assert trainer.callback_metrics["bsscale/examples_seen"] == 12
    assert [made.optimizer_steps for made in one.history] == [1, 3]
    assert_measured_right(one)
    assert trainer.callback_metrics["bsscale/dropped_windows"] == 0


# ---------------------------------------------------------------- on_train_batch_start returns -1


class Leaves(OneHot):
    """Leaves its epochs at chosen loader batches."""

    def __init__(self, total, epoch_length, leave):
        super().__init__(total, epoch_length)
        self.leave = leave

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if self.leave.get(self.epoch) == batch_idx else None


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize(
    "leave", [{0: 0}, {0: 1}, {0: 4}, {0: 6}, {0: 9}, {1: 6}, {2: 6}, {0: 6, 1: 6}, {0: 6, 1: 3, 2: 9}]
)
def test_an_epoch_that_is_left_drops_its_window_and_the_next_is_exact(leave, sized):
    module, scaler, logger = Leaves(30, 10, leave), scripted(measure_every=1), KeepSteps()
    settings = dict(max_epochs=3, accumulate_grad_batches=4, logger=logger, log_every_n_steps=1)
    with hearing(DROPPED) as said:
        trainer = fit(module, loader_of(10, sized), [scaler], **settings)
    assert all(weight == pytest.approx(1 / len(step)) for step in module.steps for weight in step.values())
    expected = [10 * epoch + i for epoch in range(3) for i in range(leave.get(epoch, 10))]
    entered = [i for step in module.steps for i in step]
    assert entered == sorted(set(entered))
    lost = run_of(scaler).lost_loader_batches
    assert len(expected) - len(entered) == lost
    assert scaler.examples_seen == len(entered)
    assert trainer.global_step == len(module.steps)
    assert [step for step, _ in logger.logged] == [*range(len(module.steps))]
    assert len(said) == (lost > 0)
    assert_measured_right(scaler)
    # From the next epoch on the windows are whole again, but for one that ends where a sized loader's last epoch did.
    assert next(len(step) for step in module.steps if min(step) >= 20) == (3 if sized and leave.get(1, 10) < 4 else 4)


@pytest.mark.parametrize(
    "callback", [lambda: scripted(dry_run=True, measure_every=1), lambda: watching(GradientNoiseScaleMonitor)]
)
@pytest.mark.parametrize(
    ("make", "seen", "windows"),
    [
        (lambda: Leaves(30, 10, {0: 6, 1: 3, 2: 9}), 12, {4}),
        (lambda: WithNone(30, 10, {4, 9, 11, 15, 16, 17, 18, 19, 23}), 30, {2, 4}),
    ],
    ids=["leaves", "none"],
)
def test_who_only_looks_changes_nothing_and_measures_right(callback, make, seen, windows):
    settings = dict(max_epochs=3, accumulate_grad_batches=4, log_every_n_steps=1)
    bare, module, one = make(), make(), callback()
    fit(bare, loader_of(10), **settings)
    trainer = fit(module, loader_of(10), [one], **settings)
    assert module.steps == bare.steps
    assert_measured_right(one)
    assert {made.accumulate_grad_batches for made in one.history} == windows
    assert trainer.callback_metrics["bsscale/examples_seen"] == seen
