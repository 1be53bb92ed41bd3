"""What a probe takes from a checkpoint: the batch and the learning rate that its training had come to."""

import lightning.pytorch as pl
import pytest
from torch.utils.data import DataLoader

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor, Milestones
from lightning_bsscale.critical_batch import ProbeError
from lightning_bsscale.critical_batch.checkpoint import branching_point, load_checkpoint
from tests.helpers.training import QUIET, Regression, regression_loader

GROWS = Milestones({0.25: 2, 0.5: 4})


def trained(tmp_path, *callbacks, examples=160, batch_size=4, **options):
    trainer = pl.Trainer(**{**QUIET, "callbacks": list(callbacks), "max_epochs": 1, **options})
    trainer.fit(Regression(), DataLoader(regression_loader(examples).dataset, batch_size=batch_size))
    trainer.save_checkpoint(tmp_path / "made.ckpt")
    return load_checkpoint(tmp_path / "made.ckpt")


def test_the_batch_and_the_factor_of_a_grown_training(tmp_path):
    scaler = BatchSizeScaler(policy=GROWS, lr_rule="sqrt", warmup=0)
    made = trained(tmp_path, scaler)
    assert (scaler.batch_size, scaler.lr_scale) == (16, pytest.approx(2))
    found = branching_point(made, rows=4, accumulate=1)
    assert (found.accumulate, found.path.product, found.schedule) == (4, pytest.approx(2), 1)
    assert found.notes == (
        "The checkpoint's BatchSizeScaler had a batch of 16 examples, grown from 4: the branches are multiples of it.",
    )
    found = branching_point(made, rows=6, accumulate=None)
    assert found.accumulate == 3
    assert "Loader batches of 6 do not make 16: the branches are multiples of 18" in found.notes[1]


def test_the_factor_of_the_scalers_own_schedule(tmp_path):
    scaler = BatchSizeScaler(policy=GROWS, lr_rule="sqrt", warmup=0, schedule="cosine", measure_every=1)
    made = trained(tmp_path, scaler, max_steps=-1)
    found = branching_point(made, rows=4, accumulate=1)
    assert found.path.product == pytest.approx(2)
    assert 0 < found.schedule < 0.5
    stored = made["optimizer_states"][0]["param_groups"][0]["lr"]
    # The sums of the last window were still on their way when the checkpoint was saved.
    assert found.schedule * found.path.product * stored == pytest.approx(scaler.history[-2].lr)


def test_a_dry_run_made_no_step_at_the_batch_that_it_names(tmp_path):
    scaler = BatchSizeScaler(policy=GROWS, lr_rule="sqrt", warmup=0, dry_run=True)
    made = trained(tmp_path, scaler, accumulate_grad_batches=2)
    assert scaler.batch_size > 8
    found = branching_point(made, rows=4, accumulate=None)
    assert (found.accumulate, found.path.product) == (2, 1)
    assert "had a batch of 8 examples:" in found.notes[0]


def test_a_monitor_knows_the_accumulation(tmp_path):
    made = trained(tmp_path, GradientNoiseScaleMonitor(), accumulate_grad_batches=2)
    assert branching_point(made, rows=4, accumulate=None).accumulate == 2


def test_without_a_callback_the_caller_says_it_and_is_told_of_a_doubt(tmp_path):
    made = trained(tmp_path, accumulate_grad_batches=4)
    assert branching_point(made, rows=4, accumulate=4).notes == ()
    found = branching_point(made, rows=4, accumulate=None)
    assert found.accumulate == 1
    assert "4 loader batches on average, but the branches take 1 for one: say --accumulate 4" in found.notes[0]
    assert branching_point(None, rows=4, accumulate=2).accumulate == 2


def test_a_state_of_another_version_is_refused(tmp_path):
    made = trained(tmp_path, BatchSizeScaler(policy=GROWS))
    made["callbacks"]["BatchSizeScaler"]["schema"] = 1
    with pytest.raises(ProbeError, match="state of schema 1"):
        branching_point(made, rows=4, accumulate=None)
