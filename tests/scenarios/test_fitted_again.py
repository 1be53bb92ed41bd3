"""Lives of a callback: gone on with from another start, fitted twice, copied, evaluated with, thinned."""

import copy
import pickle
import re
import warnings

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from tests.helpers.expected_warnings import (
    CANNOT_MEASURE,
    CKPT_PATH,
    FOLDER_NOT_EMPTY,
    OTHER_START,
    WITHOUT_VALIDATION,
    said_of,
)
from tests.helpers.training import QUIET, CountsWindows, Regression, Scripted, fit, one_cycle, regression_loader

pytestmark = [
    CANNOT_MEASURE,
    CKPT_PATH,
    FOLDER_NOT_EMPTY,
]


# ---------------------------------------------------------------- another start


def from_another_start(tmp_path, before, after, match, batches=(24,), **settings):
    """One epoch of 204 examples with one start, saved, and gone on with another."""
    plan = 3 * -(-204 // (before[0] * before[1])) if "max_epochs" in settings else settings["max_steps"]
    runs = []
    for (size, accumulate), path in ((before, None), (after, tmp_path / "epoch=0.ckpt")):
        scaler = BatchSizeScaler(
            policy=Scripted(batches if path is None else []), warmup=0, memory=1.0, max_batch_size=96, probe_every=0
        )
        module = CountsWindows(scheduler=one_cycle(plan))
        keep = ModelCheckpoint(tmp_path, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer = fit(
                module,
                regression_loader(204, batch_size=size),
                [scaler, keep] if path is None else [scaler],
                ckpt_path=path,
                accumulate_grad_batches=accumulate,
                enable_checkpointing=path is None,
                **settings,
            )
        runs.append((scaler, module, trainer, caught))
    said = said_of(OTHER_START, runs[1][3])
    assert len(said) == (match is not None)
    assert match is None or re.search(match, said[0]), said
    scheduler = runs[1][2].lr_scheduler_configs[0].scheduler
    assert scheduler.last_epoch == plan
    return runs[1]


@pytest.mark.parametrize("settings", [{"max_epochs": 3}, {"max_steps": 120}])
def test_a_changed_micro_batch_keeps_the_batch(tmp_path, settings):
    match = r"8 .*4 examples.*24 examples.*3 micro-batches"
    scaler, module, _, _ = from_another_start(tmp_path, (4, 1), (8, 1), match, **settings)
    assert scaler.batch_size == 24
    assert scaler.decisions[-1].situation.start_batch_size == 4
    if "max_epochs" in settings:
        assert module.windows == [*[24] * 8, 12] * 2
    else:
        # Lightning itself takes one micro-batch more when it is resumed at an epoch's end without max_epochs, which
        # counts. The plan is 120 steps of 4, of which the first epoch made 51.
        assert module.windows == [8, *[24] * 8, 12, 24, 24, 16]
        assert scaler.examples_seen == 120 * 4


def test_a_batch_that_the_new_micro_batch_cannot_make_becomes_the_nearest(tmp_path):
    match = r"16 .*4.*24 examples.*32.*2 micro-batches"
    scaler, module, _, _ = from_another_start(tmp_path, (4, 1), (16, 1), match, max_epochs=3)
    assert scaler.batch_size == 32
    assert module.windows[:6] == [32] * 6
    # The rule's way: from 4 to 24 and on to 32, without a resolved noise scale by the root.
    assert scaler.lr_scale == pytest.approx((32 / 4) ** 0.5)


def test_a_smaller_micro_batch_and_another_accumulation(tmp_path):
    match = r"4 .*12 examples.*accumulate_grad_batches=3 .*2"
    scaler, module, _, _ = from_another_start(tmp_path, (12, 2), (4, 3), match, batches=(48,), max_epochs=3)
    assert module.windows[:4] == [48] * 4
    assert scaler.decisions[-1].situation.start_batch_size == 24


def test_the_same_start_says_nothing(tmp_path):
    from_another_start(tmp_path, (4, 2), (4, 2), None, max_epochs=3)


# ---------------------------------------------------------------- lives of a callback


def grows(**options):
    defaults = dict(policy=Scripted([8, 16]), warmup=0, memory=1.0, max_batch_size=64, probe_every=0)
    return BatchSizeScaler(**{**defaults, **options})


def test_fit_again_on_the_same_trainer_goes_on():
    scaler, module = grows(), CountsWindows()
    trainer = fit(module, regression_loader(80), [scaler], max_epochs=2)
    assert (scaler.examples_seen, scaler.batch_size) == (160, 16)
    steps, decisions = trainer.global_step, scaler.decisions
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, regression_loader(80))
    assert (scaler.examples_seen, scaler.batch_size) == (240, 16)
    assert module.windows == [16] * 5
    assert trainer.global_step == steps + 5
    assert scaler.decisions[: len(decisions)] == decisions
    assert scaler.decisions[-1].situation.total_examples == 160 or len(scaler.decisions) == len(decisions)


def test_another_trainer_starts_anew():
    scaler = grows()
    fit(Regression(), regression_loader(80), [scaler], max_epochs=2)
    fit(Regression(), regression_loader(40), [scaler], max_epochs=1)
    assert (scaler.examples_seen, scaler.batch_size) == (40, 4)


class Evaluates(Regression):
    def validation_step(self, batch, batch_idx):
        return self.training_step(batch, batch_idx)

    test_step = predict_step = validation_step


@WITHOUT_VALIDATION
@pytest.mark.parametrize("callback", [grows, GradientNoiseScaleMonitor])
def test_evaluation_before_and_after(callback):
    callback, module, loader = callback(), Evaluates(), regression_loader(80)
    trainer = pl.Trainer(**QUIET, max_epochs=1, callbacks=[callback], accumulate_grad_batches=2)
    evaluate = (trainer.validate, trainer.test, trainer.predict)
    for call in evaluate:
        call(module, loader, **({} if call == trainer.predict else {"verbose": False}))
    assert callback.history == []
    trainer.fit(module, loader)
    history = callback.history
    assert history
    state = callback.state_dict()
    for call in evaluate:
        call(module, loader, **({} if call == trainer.predict else {"verbose": False}))
    assert callback.history == history
    assert callback.state_dict() == state


def test_ckpt_path_last(tmp_path):
    for epochs, batches in ((1, [8, 16]), (2, [])):
        scaler, module = grows(policy=Scripted(batches)), CountsWindows()
        keep = ModelCheckpoint(tmp_path, save_last=True)
        fit(module, regression_loader(80), [scaler, keep], max_epochs=epochs, ckpt_path="last", enable_checkpointing=1)
        assert (scaler.examples_seen, scaler.batch_size) == (80 * epochs, 16)
    assert module.windows == [16] * 5


@pytest.mark.parametrize("make", [grows, GradientNoiseScaleMonitor])
def test_a_run_that_was_over_when_it_was_resumed_still_shows_what_it_did(tmp_path, make):
    keep = ModelCheckpoint(tmp_path, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    first = make(measure_every=1)
    settings = dict(max_epochs=1, accumulate_grad_batches=2)
    fit(Regression(), regression_loader(80), [first, keep], enable_checkpointing=True, **settings)
    again = make(measure_every=1)
    trainer = fit(Regression(), regression_loader(80), [again], ckpt_path=tmp_path / "epoch=0.ckpt", **settings)
    assert trainer.global_step > 0
    assert 0 < len(again.history) < len(first.history)  # the last measurement was on its way when it was saved
    assert again.history == first.history[:-1]
    for name in ("batch_size", "lr_scale", "examples_seen", "decisions"):
        assert getattr(again, name, None) == getattr(first, name, None)


@pytest.mark.parametrize("make", [grows, GradientNoiseScaleMonitor])
def test_an_unused_callback_copies_and_pickles(make):
    unused = make(measure_every=3)
    for copied in (copy.deepcopy(unused), pickle.loads(pickle.dumps(unused))):
        assert copied.state_dict() == {}
        fit(Regression(), regression_loader(96), [copied], max_epochs=1, accumulate_grad_batches=2)
        assert copied.history


@pytest.mark.parametrize("make", [grows, GradientNoiseScaleMonitor])
def test_a_copy_of_a_used_callback_shows_the_same_without_the_trainer(make):
    used = make(measure_every=3)
    module = Regression()
    fit(module, regression_loader(96), [used], max_epochs=1, accumulate_grad_batches=2)
    for copied in (copy.deepcopy(used), pickle.loads(pickle.dumps(used))):
        for name in ("noise_scale", "history", "batch_size", "lr_scale", "examples_seen", "decisions"):
            assert getattr(copied, name, None) == getattr(used, name, None), name
        assert copied.history
        assert copied.state_dict() == used.state_dict()
        assert len(pickle.dumps(copied)) < 20_000
        fit(Regression(), regression_loader(96), [copied], max_epochs=1, accumulate_grad_batches=2)
        assert copied.history[0] == used.history[0], "it begins anew"
