"""The monitor through the real Trainer: it measures and changes nothing."""

import pytest
import torch

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from lightning_bsscale.journal import read_journal
from lightning_bsscale.theory.records import Measurement
from tests.helpers.expected_warnings import FEW_MICRO_BATCHES, NOT_MEASURED, said_of
from tests.helpers.training import KeepSteps, Regression, fit, regression_loader, weights_after


@pytest.mark.parametrize("accumulate", [1, 4])
@FEW_MICRO_BATCHES
def test_the_weights_are_bit_identical(accumulate):
    bare = weights_after([], accumulate_grad_batches=accumulate)
    monitor = GradientNoiseScaleMonitor(measure_every=1)
    watched = weights_after([monitor], accumulate_grad_batches=accumulate)
    assert all(torch.equal(a, b) for a, b in zip(bare, watched, strict=True))
    assert (monitor.noise_scale is None) == (accumulate == 1)


@pytest.mark.parametrize(
    ("made", "words"), [(GradientNoiseScaleMonitor, ""), (lambda: BatchSizeScaler(dry_run=True), ".*dry_run=True")]
)
def test_with_one_micro_batch_it_says_once_that_it_cannot_measure(made, words):
    with pytest.warns(UserWarning, match=NOT_MEASURED + words) as caught:
        fit(Regression(), regression_loader(40), [made()], max_epochs=2)
    assert len(said_of(NOT_MEASURED, caught)) == 1


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
