"""One fit at a time."""

import gc

import lightning.pytorch as pl
import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.trainer.states import TrainerStatus

from lightning_bsscale.callbacks.state.open_run import OpenRun
from tests.helpers.training import QUIET


def trainer_that(status):
    trainer = pl.Trainer(**QUIET)
    trainer.state.status = status
    return trainer


def test_from_setup_to_teardown():
    run, ours, other = OpenRun(), trainer_that(TrainerStatus.RUNNING), trainer_that(TrainerStatus.RUNNING)
    assert run.trainer is None
    assert not run.is_in_another(ours)
    assert run.begin(ours, "Test") is None
    assert run.trainer is ours
    assert (run.is_in_another(ours), run.is_in_another(other)) == (False, True)
    run.is_training = True
    run.end(other)  # not its fit
    assert (run.trainer, run.is_training) == (ours, True)
    run.end(ours)
    assert (run.trainer, run.is_training) == (None, False)


def test_a_second_fit_within_the_first_is_refused_and_changes_nothing():
    run, ours = OpenRun(), trainer_that(TrainerStatus.RUNNING)
    run.begin(ours, "Test")
    run.is_training = True
    with pytest.raises(MisconfigurationException, match="This Test is part of the fit of another Trainer"):
        run.begin(trainer_that(TrainerStatus.RUNNING), "Test")
    assert (run.trainer, run.is_training) == (ours, True)


@pytest.mark.parametrize("status", [TrainerStatus.INTERRUPTED, TrainerStatus.FINISHED])
def test_a_fit_that_failed_unnoticed_is_handed_back(status):
    run, failed, next_one = OpenRun(), trainer_that(status), trainer_that(TrainerStatus.RUNNING)
    run.begin(failed, "Test")
    run.is_training = True
    assert run.begin(next_one, "Test") is failed
    assert (run.trainer, run.is_training) == (next_one, False)
    assert run.begin(next_one, "Test") is next_one  # the same Trainer again


def test_a_trainer_that_is_gone_is_not_kept():
    run, gone = OpenRun(), trainer_that(TrainerStatus.RUNNING)
    run.begin(gone, "Test")
    del gone
    gc.collect()
    assert run.trainer is None
    assert run.begin(trainer_that(TrainerStatus.RUNNING), "Test") is None
