"""Callbacks that read or write the learning rate, beside the scaler: what they see and set is the user's rate."""

import pytest
from lightning.pytorch.callbacks import LambdaCallback, LearningRateMonitor
from torch.optim import lr_scheduler

from tests.helpers.expected_warnings import CANNOT_MEASURE
from tests.helpers.training import KeepsRates, KeepSteps, Regression, fit, regression_loader, scripted

pytestmark = CANNOT_MEASURE


@pytest.mark.parametrize("interval", [None, "step", "epoch"])
@pytest.mark.parametrize("order", [1, -1])
def test_learning_rate_monitor_keeps_logging_the_users_rate(interval, order):
    def trained(extra):
        logger = KeepSteps()
        module = Regression(
            lambda p: KeepsRates(p, lr=0.1),
            lambda o, t: {"scheduler": lr_scheduler.ExponentialLR(o, 0.9), "interval": "step"},
        )
        watch = [LearningRateMonitor(interval), *extra][::order]
        trainer = fit(module, regression_loader(64), watch, max_epochs=2, logger=logger, log_every_n_steps=1)
        return logger, trainer.optimizers[0].used

    logger, used = trained([scripted(8, 16)])
    # Windows of 1, 2, 4, 4, 4 and 1 loader batches, then four of 4.
    windows = [1, 2, 4, 4, 4, 1, 4, 4, 4, 4]
    users = [0.1 * 0.9 ** sum(windows[:step]) for step in range(10)]
    # It logs at every loader batch, also within a window, at the step that is being made.
    by_step = dict(logger.points("lr-KeepsRates"))
    steps = [0, 6] if interval == "epoch" else list(range(10))
    assert by_step == {step: pytest.approx(users[step]) for step in steps}
    plan, _ = trained([])
    of_plan = dict(plan.points("lr-KeepsRates"))
    assert list(by_step.values()) == [of_plan[sum(windows[:step])] for step in steps]
    # Ours is what the optimizer used, and the factor between the two is in the log.
    effective, factors = dict(logger.points("bsscale/lr-KeepsRates")), dict(logger.points("bsscale/lr_scale"))
    assert [[rate] for rate in effective.values()] == used
    assert list(effective) == list(factors) == list(range(10))
    assert factors == {step: pytest.approx(window) for step, window in enumerate(windows)}
    assert effective == {step: pytest.approx(users[step] * factors[step]) for step in range(10)}


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("looks", [False, True])
def test_a_rate_set_by_a_lambda_is_the_users(order, looks):
    def set_rate(trainer, pl_module, *args):
        batch = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        trainer.optimizers[0].param_groups[0]["lr"] = 0.1 / (1 + batch)

    every = LambdaCallback(on_train_batch_start=set_rate, on_train_epoch_start=set_rate)
    # Watching alone, the rate is the user's, and the log says so: that of the update, not of the window's start.
    scaler = scripted(8, 16, dry_run=looks, measure_every=1)
    logger = KeepSteps()
    settings = dict(max_epochs=1, logger=logger, log_every_n_steps=1, accumulate_grad_batches=2 if looks else 1)
    module = Regression(lambda p: KeepsRates(p, lr=0.5))
    trainer = fit(module, regression_loader(64), [every, scaler][::order], **settings)
    windows = [2] * 8 if looks else [1, 2, 4, 4, 4, 1]
    ends = [sum(windows[: number + 1]) for number in range(len(windows))]
    factors = [1] * 8 if looks else windows
    expected = [0.1 / (1 + end) * factor for end, factor in zip(ends, factors, strict=True)]
    assert [rate for (rate,) in trainer.optimizers[0].used] == pytest.approx(expected)
    assert [rate for _, rate in logger.points("bsscale/lr")] == pytest.approx(expected)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.1 / 17
