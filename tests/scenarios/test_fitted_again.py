"""Lives of a callback: gone on with from another start, fitted twice, copied, evaluated with, thinned."""

import copy
import pickle
import re

import lightning.pytorch as pl
import pytest

from lightning_bsscale import GradientNoiseScaleMonitor
from tests.helpers.expected_warnings import CANNOT_MEASURE, CKPT_PATH, OTHER_START, WITHOUT_VALIDATION, hearing
from tests.helpers.training import (
    QUIET,
    CountsWindows,
    Regression,
    Saves,
    Scripted,
    Watched,
    fit,
    one_cycle,
    regression_loader,
    scripted,
)

pytestmark = [CANNOT_MEASURE, CKPT_PATH]


def grows(**options):
    return scripted(**{"policy": Scripted([8, 16]), "max_batch_size": 64, "lr_rule": "auto", **options})


# ---------------------------------------------------------------- another start


def from_another_start(tmp_path, before, after, match, batches=(24,), **settings):
    """One epoch of 204 examples with one start, saved, and gone on with another."""
    plan = 3 * -(-204 // (before[0] * before[1])) if "max_epochs" in settings else settings["max_steps"]

    def run(batches, size, accumulate, *others, **more):
        scaler = grows(policy=Scripted(batches), max_batch_size=96, split=False, measure_every=60)
        module = CountsWindows(scheduler=one_cycle(plan))
        loader = regression_loader(204, batch_size=size)
        trainer = fit(module, loader, [scaler, *others], accumulate_grad_batches=accumulate, **settings, **more)
        return scaler, module, trainer

    run(batches, *before, Saves(tmp_path / "saved.ckpt", None))
    with hearing(OTHER_START) as said:
        scaler, module, trainer = run([], *after, ckpt_path=tmp_path / "saved.ckpt")
    assert len(said) == (match is not None)
    assert match is None or re.search(match, said[0]), said
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == plan
    return scaler, module


@pytest.mark.parametrize("settings", [{"max_epochs": 3}, {"max_steps": 120}])
def test_a_changed_loader_batch_keeps_the_batch(tmp_path, settings):
    match = r"8 .*4 examples.*24 examples.*3 loader batches"
    scaler, module = from_another_start(tmp_path, (4, 1), (8, 1), match, **settings)
    assert scaler.batch_size == 24
    assert scaler.decisions[-1].situation.start_batch_size == 4
    if "max_epochs" in settings:
        assert module.windows == [*[24] * 8, 12] * 2
    else:
        # Lightning itself takes one loader batch more when it is resumed at an epoch's end without max_epochs, which
        # counts. The plan is 120 steps of 4, of which the first epoch made 51.
        assert module.windows == [8, *[24] * 8, 12, 24, 24, 16]
        assert scaler.examples_seen == 120 * 4


def test_a_batch_that_the_new_loader_batch_cannot_make_becomes_the_nearest(tmp_path):
    match = r"16 .*4.*24 examples.*32.*2 loader batches"
    scaler, module = from_another_start(tmp_path, (4, 1), (16, 1), match, max_epochs=3)
    assert scaler.batch_size == 32
    assert module.windows[:6] == [32] * 6
    # The rule's way: from 4 to 24 and on to 32.
    assert scaler.lr_scale == pytest.approx((32 / 4) ** 0.75)


def test_a_smaller_loader_batch_and_another_accumulation(tmp_path):
    match = r"4 .*12 examples.*accumulate_grad_batches=3 .*2"
    scaler, module = from_another_start(tmp_path, (12, 2), (4, 3), match, batches=(48,), max_epochs=3)
    assert module.windows[:4] == [48] * 4
    assert scaler.decisions[-1].situation.start_batch_size == 24


def test_the_same_start_says_nothing(tmp_path):
    from_another_start(tmp_path, (4, 2), (4, 2), None, max_epochs=3)


# ---------------------------------------------------------------- lives of a callback


def test_fit_again_on_the_same_trainer_goes_on_and_another_trainer_starts_anew():
    scaler, module = grows(), CountsWindows()
    trainer = fit(module, regression_loader(80), [scaler], max_epochs=2)
    assert (scaler.examples_seen, scaler.batch_size) == (160, 16)
    steps, decisions, history = trainer.global_step, scaler.decisions, scaler.history
    assert history
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, regression_loader(80))
    assert (scaler.examples_seen, scaler.batch_size) == (240, 16)
    assert module.windows == [16] * 5
    assert trainer.global_step == steps + 5
    assert scaler.decisions[: len(decisions)] == decisions
    assert scaler.history[: len(history)] == history
    fit(Regression(), regression_loader(40), [scaler], max_epochs=1)
    assert (scaler.examples_seen, scaler.batch_size) == (40, 4)


class Evaluates(Watched):
    predict_step = Regression.training_step


@WITHOUT_VALIDATION
@pytest.mark.parametrize("callback", [grows, GradientNoiseScaleMonitor])
def test_evaluation_before_and_after(callback):
    callback, module, loader = callback(), Evaluates(), regression_loader(80)
    trainer = pl.Trainer(**QUIET, max_epochs=1, callbacks=[callback], accumulate_grad_batches=2)
    evaluate = (trainer.validate, trainer.test, trainer.predict)
    for call in evaluate:
        call(module, loader)
    assert callback.history == []
    trainer.fit(module, loader)
    history = callback.history
    assert history
    state = callback.state_dict()
    for call in evaluate:
        call(module, loader)
    assert callback.history == history
    assert callback.state_dict() == state


@pytest.mark.parametrize("make", [grows, GradientNoiseScaleMonitor])
def test_a_run_that_was_over_when_it_was_resumed_still_shows_what_it_did(tmp_path, make):
    first, again = make(measure_every=1), make(measure_every=1)
    settings = dict(max_epochs=1, accumulate_grad_batches=2)
    fit(Regression(), regression_loader(80), [first, Saves(tmp_path / "saved.ckpt", None)], **settings)
    trainer = fit(Regression(), regression_loader(80), [again], ckpt_path=tmp_path / "saved.ckpt", **settings)
    assert trainer.global_step > 0
    assert 0 < len(again.history) < len(first.history)  # the last measurement was on its way when it was saved
    assert again.history == first.history[:-1]
    for name in ("batch_size", "lr_scale", "examples_seen", "decisions"):
        assert getattr(again, name, None) == getattr(first, name, None)


def copies_of(one):
    return copy.deepcopy(one), pickle.loads(pickle.dumps(one))


@pytest.mark.parametrize("make", [grows, GradientNoiseScaleMonitor])
def test_a_copy_of_a_used_callback_shows_the_same_without_the_trainer(make):
    used = make(measure_every=3)
    fit(Regression(), regression_loader(96), [used], max_epochs=1, accumulate_grad_batches=2)
    for copied in copies_of(used):
        for name in ("noise_scale", "history", "batch_size", "lr_scale", "examples_seen", "decisions"):
            assert getattr(copied, name, None) == getattr(used, name, None), name
        assert copied.history
        assert copied.state_dict() == used.state_dict()
        assert len(pickle.dumps(copied)) < 20_000
        fit(Regression(), regression_loader(96), [copied], max_epochs=1, accumulate_grad_batches=2)
        assert copied.history[0] == used.history[0], "it begins anew"
