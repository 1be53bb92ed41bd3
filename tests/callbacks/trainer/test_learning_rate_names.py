"""The learning rates that are used, under the names of Lightning's LearningRateMonitor."""

import pytest
from lightning.pytorch.callbacks import LearningRateMonitor
from torch.optim import SGD, lr_scheduler

from tests.helpers.expected_warnings import CANNOT_MEASURE
from tests.helpers.training import KeepsRates, KeepSteps, Regression, fit, regression_loader, scripted

pytestmark = CANNOT_MEASURE


def two_groups(*names):
    def make(parameters):
        groups = [{"params": [one], "lr": lr} for one, lr in zip(parameters, (0.1, 0.02), strict=True)]
        return KeepsRates(
            [{**group, "name": name} if name else group for group, name in zip(groups, names, strict=True)]
        )

    return make


def scheduled(*names):
    """The schedulers of one optimizer, each with a name of its own or None."""

    class Scheduled(Regression):
        def configure_optimizers(self):
            optimizer = self.make_optimizer(self.parameters())
            configs = [
                {"scheduler": lr_scheduler.StepLR(optimizer, 1000), "interval": "step", "name": name} for name in names
            ]
            return [optimizer], configs

    return Scheduled


CASES = {
    "one group": (Regression, lambda p: KeepsRates(p, lr=0.1)),
    "two groups": (Regression, two_groups(None, None)),
    "named groups": (Regression, two_groups("body", "head")),
    "a scheduler": (scheduled(None), lambda p: KeepsRates(p, lr=0.1)),
    "a named scheduler": (scheduled("mine"), two_groups(None, None)),
    "two schedulers": (scheduled(None, None), lambda p: KeepsRates(p, lr=0.1)),
    "two schedulers, one named": (scheduled(None, "mine"), two_groups("body", "head")),
}


@pytest.mark.parametrize("case", CASES)
def test_each_of_its_keys_has_a_sibling_with_the_learning_rate_that_was_used(case):
    module, optimizer = CASES[case]
    logger = KeepSteps()
    watch = [LearningRateMonitor(), scripted(8, 16)]
    trainer = fit(module(optimizer), regression_loader(64), watch, max_epochs=1, logger=logger, log_every_n_steps=1)
    logged = {key for _, values in logger.logged for key in values}
    theirs = {key for key in logged if key in watch[0].lrs}
    assert theirs == set(watch[0].lrs)
    siblings = {key for key in logged if key.startswith("bsscale/") and key.removeprefix("bsscale/") in theirs}
    assert siblings == {f"bsscale/{key}" for key in theirs}
    assert "bsscale/lr" not in logged  # it would say the same again
    # A name ends in its group's, where there are several.
    used = trainer.optimizers[0].used
    ends = {"pg2": 1, "head": 1}
    for key in siblings:
        group = ends.get(key.rpartition("/")[2], 0)
        assert [value for _, value in logger.points(key)] == pytest.approx([rates[group] for rates in used])
    assert set(trainer.callback_metrics) >= siblings


def test_without_it_there_is_one_key():
    logger = KeepSteps()
    module = Regression(two_groups(None, None))
    fit(module, regression_loader(64), [scripted(8, 16)], max_epochs=1, logger=logger, log_every_n_steps=1)
    logged = {key for _, values in logger.logged for key in values if "lr" in key}
    assert logged == {"bsscale/lr", "bsscale/lr_scale"}


def test_a_group_that_comes_in_mid_training():
    class Unfreezes(Regression):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 8:
                self.trainer.optimizers[0].add_param_group({"params": [self.net.bias], "lr": 0.03})

    logger = KeepSteps()
    module = Unfreezes(lambda p: SGD([next(iter(p))], lr=0.1, momentum=0.9))
    watch = [LearningRateMonitor("step"), scripted(4)]
    fit(module, regression_loader(64), watch, max_epochs=1, logger=logger, log_every_n_steps=1)
    assert [step for step, _ in logger.points("bsscale/lr-SGD")] == list(range(8))
    assert logger.points("bsscale/lr-SGD/pg2") == [(step, 0.03) for step in range(8, 16)]
