"""The monitor through the real Trainer: it measures and changes nothing."""

from functools import partial

import pytest
import torch
from torch import nn

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from lightning_bsscale.journal import read_journal
from lightning_bsscale.theory.records import Measurement
from tests.helpers.expected_warnings import CANNOT_MEASURE, NOT_MEASURED, said_of
from tests.helpers.training import KeepSteps, Regression, fit, regression_loader, weights_after


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("split", [True, False])
@CANNOT_MEASURE
def test_the_weights_are_bit_identical_and_equal_to_rounding_where_a_loader_batch_is_split(accumulate, split):
    bare = weights_after([], accumulate_grad_batches=accumulate)
    monitor = GradientNoiseScaleMonitor(measure_every=1, split=split)
    watched = weights_after([monitor], accumulate_grad_batches=accumulate)
    was_split = split and accumulate == 1
    assert all(torch.equal(a, b) for a, b in zip(bare, watched, strict=True)) != was_split
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(bare, watched, strict=True))
    assert (monitor.noise_scale is None) == (accumulate == 1 and not split)


class Normalised(Regression):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(self.net, nn.BatchNorm1d(2))


@pytest.mark.parametrize("made", [GradientNoiseScaleMonitor, partial(BatchSizeScaler, dry_run=True), BatchSizeScaler])
@pytest.mark.parametrize(
    ("options", "module", "size", "words"),
    [
        (dict(split=False), Regression, 4, "split=False"),
        (dict(), Normalised, 4, "batch normalisation.*split=True"),
        (dict(), Regression, 1, "single example"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*depends on the micro-batch, not")
def test_where_nothing_can_be_split_it_says_once_that_it_cannot_measure(made, options, module, size, words):
    with pytest.warns(UserWarning, match=f"{NOT_MEASURED}.*{words}") as caught:
        fit(module(), regression_loader(40, batch_size=size), [made(**options)], max_epochs=2)
    assert len(said_of(NOT_MEASURED, caught)) == 1


@pytest.mark.filterwarnings("ignore:.*depends on the micro-batch, not")
def test_a_model_with_batch_norm_is_split_where_that_is_asked_for():
    monitor = GradientNoiseScaleMonitor(measure_every=1, split=True)
    fit(Normalised(), regression_loader(40), [monitor], max_epochs=2)
    assert len(monitor.history) == 20


def test_logged_keys(tmp_path):
    logger = KeepSteps()
    monitor = GradientNoiseScaleMonitor(measure_every=3, memory=1.0, record=tmp_path / "journal.jsonl")
    settings = dict(max_epochs=1, accumulate_grad_batches=2, log_every_n_steps=5)
    trainer = fit(Regression(), regression_loader(200), [monitor], logger=logger, **settings)
    keys = {key for _, metrics in logger.logged for key in metrics if key.startswith("bsscale/")}
    names = "noise_scale noise_scale_low noise_scale_high grad_sq_norm grad_trace_cov dropped_windows limited_windows"
    names += " batch_size accumulate_grad_batches examples_seen"
    assert keys == {f"bsscale/{name}" for name in names.split()}
    assert [step for step, _ in logger.logged] == [4, 9, 14, 19, 24]
    assert keys <= set(trainer.callback_metrics)
    header, records = read_journal(tmp_path / "journal.jsonl")
    assert header["schema"] == 2
    assert all(isinstance(record, Measurement) for record in records)
    assert records == monitor.history


def test_it_measures_what_the_scaler_measures():
    monitor, scaler = GradientNoiseScaleMonitor(measure_every=1), BatchSizeScaler(measure_every=1, max_batch_size=8)
    for callback in (monitor, scaler):
        fit(Regression(), regression_loader(400), [callback], max_epochs=1, accumulate_grad_batches=2)
    assert [made.noise for made in monitor.history] == [made.noise for made in scaler.history]
