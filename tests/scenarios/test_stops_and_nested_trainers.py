"""Stops that others ask for, and Trainers that run within another one's training, with the callbacks in both."""

import functools

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from tests.helpers.expected_warnings import CANNOT_MEASURE, CKPT_PATH, MID_EPOCH, WITHOUT_VALIDATION
from tests.helpers.training import (
    QUIET,
    KeepSteps,
    Saves,
    Scripted,
    Watched,
    assert_nothing_left,
    fit,
    regression_loader,
)

pytestmark = [WITHOUT_VALIDATION, CANNOT_MEASURE, CKPT_PATH, MID_EPOCH]

# ---------------------------------------------------------------- stops


class StopsAt(pl.Callback):
    """Asks for the end of training in one hook."""

    def __init__(self, hook):
        setattr(self, hook, self.ask)

    def ask(self, trainer, *args):
        trainer.should_stop = True


@pytest.mark.parametrize("order", [1, -1], ids=["listed before", "listed after"])
@pytest.mark.parametrize("limit", [{"max_epochs": 2}, {"max_steps": 150, "max_epochs": -1}], ids=["epochs", "steps"])
def test_a_resumed_run_keeps_a_stop_that_another_callback_asked_for(tmp_path, limit, order):
    options = dict(policy=Scripted([8, 12]), warmup=0, lr_rule="none", split=False)
    saves = Saves(tmp_path / "saved.ckpt", 26)  # a window's end
    fit(Watched(), regression_loader(), [BatchSizeScaler(**options), saves], **limit)
    module, callbacks = Watched(), [StopsAt("on_train_start"), BatchSizeScaler(**options)]
    trainer = fit(module, regression_loader(), callbacks[::order], ckpt_path=saves.path, **limit)
    assert module.seen == 0
    assert trainer.should_stop, "it is not the scaler's to take back"


@pytest.mark.parametrize("hook", ["on_train_start", "on_train_batch_end"])
def test_the_end_of_the_budget_leaves_a_stop_of_another_callback(hook):
    callbacks = [StopsAt(hook), BatchSizeScaler(total_examples=40, warmup=0)]
    assert fit(Watched(), regression_loader(), callbacks, max_epochs=1).should_stop
    assert not fit(Watched(), regression_loader(), callbacks[1:], max_epochs=1).should_stop


# ---------------------------------------------------------------- a Trainer within a training

WITHIN = ["on_fit_start", "on_train_start", "on_train_batch_start", "on_before_optimizer_step", "on_train_end"]


class Within(pl.Callback):
    """Calls `run` once, in a hook of the outer training; of those that come with a loader batch, in the 7th."""

    def __init__(self, hook, run):
        self.calls, self.run, self.errors = 0, run, []
        setattr(self, hook, self.call)
        self.at = 7 if "batch" in hook or "optimizer" in hook else 1

    def call(self, trainer, *args):
        self.calls += 1
        if self.calls == self.at:
            # Its own seeds and its own module: what Lightning does to those is not the callbacks' affair.
            with torch.random.fork_rng():
                try:
                    self.run(trainer)
                except MisconfigurationException as error:
                    self.errors.append(str(error))


def scaler():
    policy = Scripted([8, 8, 12, 16, 8, 20])
    return BatchSizeScaler(policy=policy, warmup=0, measure_every=2, lr_rule="sqrt", max_batch_size=20)


def monitor():
    return GradientNoiseScaleMonitor(measure_every=2)


def outer(callback, others=()):
    """Weights, log and records of a training of two epochs, shuffled."""
    torch.manual_seed(3)
    module, logger = Watched(), KeepSteps()
    accumulate = 2 if isinstance(callback, GradientNoiseScaleMonitor) else 1
    settings = dict(max_epochs=2, accumulate_grad_batches=accumulate, logger=logger, log_every_n_steps=1)
    fit(module, regression_loader(63, shuffle=True), [callback, *others], **settings)
    return [p.detach().clone() for p in module.parameters()], repr(logger.logged), without_times(callback)


@functools.cache
def undisturbed(made):
    return outer(made())


def without_times(callback):
    decisions = getattr(callback, "decisions", [])
    return repr(callback.history), [(record.batch_size, record.lr_scale, record.lr_rule) for record in decisions]


def assert_same(found, expected):
    assert all(torch.equal(one, other) for one, other in zip(found[0], expected[0], strict=True))
    assert found[1:] == expected[1:]


def inner(callback, call):
    def run(outer_trainer):
        trainer = pl.Trainer(**QUIET, max_epochs=1, callbacks=[callback])
        module = Watched()
        try:
            call(trainer, module, regression_loader(40))
        finally:
            assert_nothing_left(trainer, module, 1)

    return run


@pytest.mark.parametrize("hook", WITHIN)
@pytest.mark.parametrize("made", [scaler, monitor])
def test_one_object_is_refused_in_a_second_trainer_and_the_first_does_not_notice(made, hook):
    callback = made()
    within = Within(hook, inner(callback, lambda trainer, module, loader: trainer.fit(module, loader)))
    found = outer(callback, [within])
    assert len(within.errors) == 1
    assert "in use by the fit of another Trainer" in within.errors[0]
    assert_same(found, undisturbed(made))


@pytest.mark.parametrize(("stage", "fails"), [("validate", False), ("test", False), ("validate", True)])
@pytest.mark.parametrize("made", [scaler, monitor])
def test_another_trainer_may_validate_and_test_within_it(made, fails, stage):
    callback, loaders = made(), []

    def evaluate(trainer, module, loader):
        loaders.append(getattr(trainer, stage)(module, loader, verbose=False))
        if fails:
            module.validation_step = module.test_step = lambda *args: [][0]
            with pytest.raises(IndexError):
                getattr(trainer, stage)(module, loader, verbose=False)

    found = outer(callback, [Within("on_train_batch_end", inner(callback, evaluate))])
    assert loaders[0][0]["val_loss"] > 0
    assert_same(found, undisturbed(made))


@pytest.mark.parametrize("made", [scaler, monitor])
def test_a_checkpoint_that_is_validated_within_it_does_not_replace_the_state(made, tmp_path):
    """Lightning loads the callbacks' state before it validates a checkpoint."""
    done = fit(Watched(), regression_loader(40), [made()], max_epochs=1, accumulate_grad_batches=2)
    done.save_checkpoint(tmp_path / "done.ckpt")
    callback = made()

    def evaluate(trainer, module, loader):
        trainer.validate(module, loader, ckpt_path=tmp_path / "done.ckpt", verbose=False)

    found = outer(callback, [Within("on_train_start", inner(callback, evaluate))])
    assert_same(found, undisturbed(made))


class Breaks(pl.Callback):
    """Raises in a hook, and perhaps again when it learns of that."""

    def __init__(self, hook, error, again):
        setattr(self, hook, self.raise_it)
        self.error, self.again = error, again

    def raise_it(self, *args, stage=None):
        raise self.error

    def on_exception(self, trainer, pl_module, exception):
        if self.again:
            raise ValueError("and again")


ERRORS = [(RuntimeError("on purpose"), False), (RuntimeError("on purpose"), True), (KeyboardInterrupt(), False)]
HOOKS = ["setup", "on_train_batch_end", "on_train_end"]


@pytest.mark.parametrize(
    ("made", "hook", "error", "again"),
    [(scaler, hook, *error) for hook in HOOKS for error in ERRORS] + [(monitor, hook, *ERRORS[1]) for hook in HOOKS],
)
def test_a_fit_that_failed_is_not_open(made, hook, error, again):
    callback, module = made(), Watched()
    breaks = Breaks(hook, error, again)
    trainer = pl.Trainer(**QUIET, max_epochs=1, accumulate_grad_batches=2, callbacks=[breaks, callback])
    with pytest.raises((RuntimeError, SystemExit, ValueError)):
        trainer.fit(module, regression_loader(40))
    fit(module, regression_loader(40), [callback], max_epochs=1, accumulate_grad_batches=2)
    assert len(callback.history) > 0
    if hook != "setup":
        assert_nothing_left(trainer, module, 2)
