"""Numbers for loggers."""

import math

import lightning.pytorch as pl
import pytest
import torch

from lightning_bsscale.callbacks.output.logging import is_log_due, log_values, measured_values, show_batch
from lightning_bsscale.theory.measured import MeasuredWindows
from tests.helpers.simulated_run import Host, Program
from tests.helpers.training import QUIET, KeepSteps, Regression, fit, regression_loader

PROGRAM = Program(batches=(2,), accumulate=2, finite=(True, True, False))
MEASURED = ["noise_scale", "noise_scale_low", "noise_scale_high", "grad_sq_norm", "grad_trace_cov"]
COUNTED = ["dropped_windows", "limited_windows"]


def test_the_estimate_is_shown_from_the_first_one_on():
    assert measured_values(MeasuredWindows()) == dict.fromkeys(COUNTED, 0)
    measured = Host.begin(PROGRAM).train(PROGRAM.places()).state.measured
    values = measured_values(measured)
    assert list(values) == MEASURED + COUNTED
    noise = measured.noise
    assert not noise.resolved
    assert [values[name] for name in MEASURED] == [math.inf, noise.low, noise.high, noise.grad_sq, noise.trace]
    assert values["dropped_windows"] == 1


class LogsInside(pl.Callback):
    """Asks and logs at each step, as the callbacks do."""

    def __init__(self, *, shows=False):
        self.shows, self.due = shows, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.due.append(is_log_due(trainer))
        values = {"batch_size": trainer.global_step, "high": math.inf, "noise_scale_low": 0.0, "nan": math.nan}
        log_values(trainer, "our/", values, step=100 * trainer.global_step)
        if self.shows:
            show_batch(trainer, "our/", trainer.global_step)


@pytest.mark.parametrize(
    ("every", "stops", "due"),
    [(2, False, [0, 1, 0, 1, 1]), (0, False, [0, 0, 0, 0, 1]), (100, True, [1, 1, 1, 1, 1]), (1, False, [1] * 5)],
)
def test_it_is_due_where_lightnings_loggers_take_values_and_at_an_epochs_end(every, stops, due):
    class Stops(pl.Callback):
        def on_train_batch_start(self, trainer, *args):
            trainer.should_stop = stops

    inside = LogsInside()
    fit(Regression(), regression_loader(20), [Stops(), inside], max_epochs=1, min_steps=5, log_every_n_steps=every)
    assert inside.due == [bool(one) for one in due]


@pytest.mark.parametrize("every", [0, 1])
def test_known_values_go_to_the_loggers_and_all_to_whoever_asks(every):
    logger, inside = KeepSteps(), LogsInside(shows=True)
    trainer = fit(Regression(), regression_loader(12), [inside], max_epochs=1, log_every_n_steps=every, logger=logger)
    ours = [(step, values) for step, values in logger.logged if "our/batch_size" in values]
    assert ours == [(100 * step, {"our/batch_size": float(step)}) for step in range(1, 4 if every else 1)]
    shown = trainer.callback_metrics["our/high"]
    assert (shown.dtype, float(shown)) == (torch.float64, math.inf)
    assert math.isnan(trainer.callback_metrics["our/nan"])
    assert float(trainer.callback_metrics["our/noise_scale_low"]) == 0
    assert float(trainer.progress_bar_metrics["our/batch_size"]) == 3
    assert QUIET["logger"] is False
