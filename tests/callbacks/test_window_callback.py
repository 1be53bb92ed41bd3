"""What is left at a run's end, also where the end itself breaks."""

import copy
import pickle
from contextlib import nullcontext

import lightning.pytorch as pl
import pytest

from lightning_bsscale import GradientNoiseScaleMonitor
from lightning_bsscale.callbacks.actuator import TrainerActuator
from lightning_bsscale.callbacks.output.journal import RunJournal
from tests.helpers.training import (
    QUIET,
    Broken,
    Regression,
    Scripted,
    Watched,
    assert_nothing_left,
    fit,
    regression_loader,
    scripted,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*noise scale cannot be measured.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]


class KeepsState(Scripted):
    """A policy whose state can be made unreadable."""

    is_broken = False

    def state_dict(self):
        if self.is_broken:
            raise Broken
        return {"asked": len(self.asked)}

    def load_state_dict(self, state):
        pass


def trainer_with(callback, **settings):
    return pl.Trainer(**QUIET, max_epochs=1, accumulate_grad_batches=2, callbacks=[callback], **settings)


def breaking(function):
    """Breaks after its work, so that only the following calls are missing."""

    def broken(*args, **kwargs):
        function(*args, **kwargs)
        raise Broken

    return broken


@pytest.mark.parametrize("is_broken", [False, True])
@pytest.mark.parametrize("owner", [RunJournal, TrainerActuator])
def test_an_end_that_breaks_gives_everything_back_and_keeps_the_results(owner, is_broken, monkeypatch):
    ran = []
    for name in (None, {RunJournal: "end", TrainerActuator: "release"}[owner]):
        scaler, module = scripted(8, 16, measure_every=1), Watched(breaks_at=(0, 7) if is_broken else None)
        trainer = trainer_with(scaler)
        if name is not None:
            monkeypatch.setattr(owner, name, breaking(getattr(owner, name)))
        with pytest.raises((Broken, RuntimeError)) if is_broken or name else nullcontext():
            trainer.fit(module, regression_loader(40))
        assert_nothing_left(trainer, module, 2)
        ran.append((scaler.history, scaler.batch_size, [record.batch_size for record in scaler.decisions]))
    assert ran[0] == ran[1]
    assert ran[0][1:] == (16, [8, 16] if is_broken else [8, 16, 16])


def test_where_the_state_cannot_be_read_no_old_one_stands_in_for_it():
    policy = KeepsState([16])
    scaler = scripted(policy=policy)
    trainer = trainer_with(scaler)
    trainer.fit(Regression(), regression_loader(40))
    assert scaler.state_dict()["policy"]["state"] == {"asked": 3}
    trainer.fit_loop.max_epochs = 2
    policy.is_broken = True
    with pytest.raises(Broken):
        trainer.fit(Regression(), regression_loader(40))
    assert scaler.state_dict() == {}
    assert scaler.examples_seen == 80


@pytest.mark.parametrize("again", [copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))])
@pytest.mark.parametrize(
    "made", [lambda: scripted(8, 16, measure_every=1), lambda: GradientNoiseScaleMonitor(measure_every=1)]
)
def test_a_copy_shows_the_same_at_every_moment_and_the_run_does_not_notice(made, again):
    copies = []

    class Copies(pl.Callback):
        def look(self, trainer, *args, **kwargs):
            copied = again(ours)
            assert (copied.history, copied.noise_scale) == (ours.history, ours.noise_scale)
            assert copied.state_dict() == ours.state_dict()
            assert (copied._loop, copied._actuator) == (None, None)
            copies.append(copied)

        on_train_start = on_train_batch_start = on_before_backward = on_before_zero_grad = look
        on_before_optimizer_step = on_train_batch_end = on_train_end = look

    ours, alone = made(), made()
    for callbacks in ([ours, Copies()], [alone]):
        fit(Regression(), regression_loader(38), callbacks, max_epochs=2, accumulate_grad_batches=2)
    assert len(copies) > 50
    assert copies[-1].history == ours.history == alone.history
