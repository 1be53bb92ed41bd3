"""After training, and after whatever broke it, everything is as the user made it: a deep snapshot, and a bare twin."""

import functools
import signal
import sys
import warnings
from dataclasses import replace
from unittest import mock

import lightning.pytorch as pl
import pytest
from torch import nn
from torch.optim import SGD, lr_scheduler

from lightning_bsscale import GradientNoiseScaleMonitor
from lightning_bsscale.journal import Journal
from tests.helpers.expected_warnings import CANNOT_MEASURE, MID_EPOCH, NOT_MEASURED, WITHIN_A_WINDOW
from tests.helpers.training import QUIET, KeepSteps, Regression, Scripted, regression_loader, scripted

pytestmark = [
    CANNOT_MEASURE,
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    # Fragile overrides every hook, only to break in it.
    pytest.mark.filterwarnings("ignore:.*lr_scheduler_step is overridden.*"),
]


@pytest.fixture(autouse=True)
def interrupts_still_arrive():
    """Lightning turns the signal off for good when it shuts down."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


# ---------------------------------------------------------------- the snapshot


OF_A_TENSOR = ("_backward_hooks", "_post_accumulate_grad_hooks")


def table(hooks):
    """Which hooks, in which order; a table that is not there is not an empty one."""
    return None if hooks is None else list(hooks.items())


def hook_tables(thing):
    return {name: table(value) for name, value in vars(thing).items() if "hooks" in name and hasattr(value, "items")}


def numbers(thing):
    """Every integer, string, flag and None, with its type: a subclass of int is no int."""
    return {name: (type(value), value) for name, value in vars(thing).items() if isinstance(value, int | str | None)}


def snapshot(trainer, module):
    """All that the callbacks could have touched."""
    (optimizer,) = trainer.optimizers
    return {
        "accumulate_grad_batches": (type(trainer.accumulate_grad_batches), trainer.accumulate_grad_batches),
        "callbacks": list(trainer.callbacks),
        "loggers": list(trainer.loggers),
        "limits": (trainer.max_steps, trainer.max_epochs, trainer.min_steps, trainer.min_epochs),
        "schedulers": [
            {name: getattr(config, name) for name in config.__dataclass_fields__}
            for config in trainer.lr_scheduler_configs
        ],
        "scheduler steps": [(type(c.scheduler), c.scheduler.step.__qualname__) for c in trainer.lr_scheduler_configs],
        "optimizer hooks": hook_tables(optimizer),
        "optimizer": (type(optimizer), optimizer.step.__qualname__),
        "global hooks": [hook_tables(found) for found in (sys.modules["torch.optim.optimizer"], nn.modules.module)],
        "groups": [{**group, "params": list(map(id, group["params"]))} for group in optimizer.param_groups],
        "parameters": {
            name: (id(p), p.requires_grad, [table(getattr(p, hooks)) for hooks in OF_A_TENSOR], sorted(vars(p)))
            for name, p in module.named_parameters()
        },
        "modules": {name: hook_tables(part) for name, part in module.named_modules()},
    }


def assert_given_back(trainer, module, *, interrupted=True):
    assert trainer.interrupted == interrupted
    ours = snapshot(trainer, module)
    assert ours.keys() == module.before.keys()
    for name in ours:
        assert ours[name] == module.before[name], name


# ---------------------------------------------------------------- a module that breaks where it is told to


class Broken(Exception):
    pass


class BreaksInTheUpdate(SGD):
    armed = False

    def step(self, closure=None):
        loss = closure()
        if self.armed:
            raise Broken("in the update")
        super().step()
        return loss


class Fragile(Regression):
    """Has hooks and schedulers of its own, and raises `error` in `where` at the first chance after `after` steps."""

    def __init__(self, where=None, after=0, error=Broken):
        super().__init__(hidden=3)
        self.where, self.after, self.error = where, after, error
        self.before = None
        # The user's own: on one parameter, one part and the optimizer, beside others without.
        self.net[0].weight.register_hook(self.own_hook)
        self.net[2].bias.register_post_accumulate_grad_hook(self.own_hook)
        self.net[1].register_forward_hook(self.own_hook)

    def own_hook(self, *args):
        pass

    def breaks(self, where):
        if where == self.where and self.global_step >= self.after:
            raise self.error("on purpose")

    def configure_optimizers(self):
        optimizer = BreaksInTheUpdate(self.net.parameters(), lr=0.05, momentum=0.9)
        optimizer.register_step_pre_hook(self.own_hook)
        optimizer.register_state_dict_post_hook(self.own_hook)
        # Schedulers that leave the rate, so it must be there again to the last digit.
        plateau = lr_scheduler.ReduceLROnPlateau(optimizer, patience=10**6)
        config = {"scheduler": plateau, "interval": "step", "monitor": "loss", "frequency": 2}
        steps = {"scheduler": lr_scheduler.ConstantLR(optimizer, 1.0, 5), "interval": "step", "frequency": 3}
        return [optimizer], [config, steps, {"scheduler": lr_scheduler.StepLR(optimizer, 10**6), "interval": "epoch"}]

    def on_fit_start(self):
        self.before = snapshot(self.trainer, self)

    def training_step(self, batch, batch_idx):
        self.breaks("training_step")
        self.trainer.optimizers[0].armed = self.where == "the update" and self.global_step >= self.after
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.breaks("validation_step")


def breaking(hook):
    def method(self, *args, **kwargs):
        self.breaks(hook)
        return getattr(super(Fragile, self), hook)(*args, **kwargs)

    return method


HOOKS = [
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "configure_gradient_clipping",
    "optimizer_step",
    "optimizer_zero_grad",
    "lr_scheduler_step",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_model_zero_grad",
    "on_validation_epoch_end",
    "on_train_epoch_end",
    "on_train_end",
    "teardown",
]
OF_THE_MODULE = ["training_step", "the update", "validation_step"]  # which it breaks by itself
for name in HOOKS:
    setattr(Fragile, name, breaking(name))


def scaler():
    return scripted(16, 24, 8, measure_every=1)


CALLBACKS = {
    "scaler": scaler,
    "dry run": lambda: scripted(16, 24, 8, measure_every=1, dry_run=True),
    "monitor": lambda: GradientNoiseScaleMonitor(measure_every=1),
}


# Other windows make other counts; Lightning keeps the name of the hook that broke: ours, where we step a scheduler.
DIFFERS = {"_batches_that_stepped": 0, "_current_fx_name": None}


def make_trainer(*callbacks, **settings):
    settings = QUIET | dict(max_epochs=2, accumulate_grad_batches=2, val_check_interval=5) | settings
    return pl.Trainer(**settings, callbacks=list(callbacks))


def fit(trainer, module, **options):
    trainer.fit(module, regression_loader(80), regression_loader(8), **options)
    return trainer


def train(module, *callbacks):
    trainer = make_trainer(*callbacks)
    try:
        fit(trainer, module)
    except (Broken, KeyboardInterrupt, SystemExit):
        assert module.where is not None
    return trainer


@functools.cache
def bare_twin(where, after, error):
    return train(Fragile(where, after, error))


def parts_of(trainer):
    loop = trainer.fit_loop
    own = (trainer, loop, loop.epoch_loop, loop.epoch_loop.automatic_optimization, trainer.strategy)
    return *own, trainer.lightning_module, trainer.optimizers[0]


def assert_as_found(module, *callbacks):
    """As before training; and Trainer, loops, module and optimizer have what they have after the same without us."""
    trainer = train(module, *callbacks)
    twin = bare_twin(module.where, module.after, module.error)
    assert_given_back(trainer, module, interrupted=twin.interrupted)
    for ours, theirs in zip(parts_of(trainer), parts_of(twin), strict=True):
        assert set(vars(ours)) == set(vars(theirs))
        assert {**numbers(ours), **DIFFERS} == {**numbers(theirs), **DIFFERS}
    return trainer


# ---------------------------------------------------------------- how training ends


@pytest.mark.parametrize("name", CALLBACKS)
def test_after_training(name):
    callback = CALLBACKS[name]()
    trainer = assert_as_found(Fragile(), callback)
    assert callback.history
    assert trainer.global_step > 3


OF_A_LOADER_BATCH = ["on_train_batch_start", "training_step", "on_after_backward"]
# Those who only look have no schedulers and no windows of their own.
OF_A_WINDOW = [*OF_A_LOADER_BATCH, "the update", "on_train_batch_end", "teardown"]
# After two steps: in the middle of windows that have grown and are measured.
PLACES = [("scaler", where, 0 if where == "on_train_start" else 2, Broken) for where in [*HOOKS, *OF_THE_MODULE]]
PLACES += [(name, where, 2, Broken) for name in ("dry run", "monitor") for where in OF_A_WINDOW]
STOPPED = ["training_step", "on_before_optimizer_step", "validation_step", "on_train_batch_end"]
for name in CALLBACKS:
    PLACES += [(name, where, 0, Broken) for where in ["on_train_start", *OF_A_LOADER_BATCH]]
    PLACES += [(name, where, 2, KeyboardInterrupt) for where in STOPPED]


@pytest.mark.parametrize(("name", "where", "after", "error"), dict.fromkeys(PLACES))
def test_after_an_exception_and_after_an_interrupt(name, where, after, error):
    """At the first chance after so many steps."""
    assert assert_as_found(Fragile(where, after, error), CALLBACKS[name]()).interrupted


# ---------------------------------------------------------------- what breaks beside the module


class BreakingCallback(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step >= 2 and batch_idx % 2:
            raise Broken("beside")


class BreakingLogger(KeepSteps):
    def log_metrics(self, metrics, step=None):
        if step == 2:
            raise Broken("no space left")


class BreakingPolicy(Scripted):
    """Breaks in a decision, or when its state is asked for."""

    def __init__(self, where):
        super().__init__([16, 24, 8])
        self.where = where

    def decide(self, situation, limits):
        if self.where == "decide" and situation.optimizer_steps == 3:
            raise Broken("undecided")
        return super().decide(situation, limits)

    def state_dict(self):
        if self.where == "state_dict":
            raise Broken("no state")
        return {}


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("name", CALLBACKS)
def test_after_another_callback_broke(name, order):
    module = Fragile("another callback")
    trainer = train(module, *[BreakingCallback(), CALLBACKS[name]()][::order])
    assert_given_back(trainer, module)


@pytest.mark.parametrize("broken", ["logger", "decide", "state_dict", "batch_size_fn", "journal"])
def test_after_something_of_the_users_broke_in_our_hands(broken, tmp_path, monkeypatch):
    options = {
        "decide": dict(policy=BreakingPolicy("decide")),
        "state_dict": dict(policy=BreakingPolicy("state_dict")),
        "batch_size_fn": dict(batch_size_fn=mock.Mock(side_effect=[4] * 6 + [Broken("uncountable")])),
        "journal": dict(record=tmp_path / "journal.jsonl"),
    }
    if broken == "journal":
        monkeypatch.setattr(Journal, "write", mock.Mock(side_effect=OSError("No space left on device")))
    module = Fragile("training_step" if broken == "state_dict" else broken, after=2)
    settings = dict(logger=BreakingLogger(), log_every_n_steps=1) if broken == "logger" else {}
    trainer = make_trainer(scripted(16, 24, 8, **{"measure_every": 1, **options.get(broken, {})}), **settings)
    with pytest.raises((Broken, OSError)):
        fit(trainer, module)
    assert_given_back(trainer, module)


@pytest.mark.parametrize("name", CALLBACKS)
def test_after_a_warning_of_ours_that_is_an_error(name, recwarn):
    """As under ``python -W error``, which is how this suite runs: what warns at the start must hold nothing yet."""
    callback = CALLBACKS[name]()
    module = Fragile("a warning")
    callback._options = replace(callback._options, split=False)
    trainer = make_trainer(callback, accumulate_grad_batches=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=NOT_MEASURED)
        with pytest.raises(UserWarning):
            fit(trainer, module)
    assert_given_back(trainer, module)


@MID_EPOCH
@pytest.mark.parametrize("where", ["on_train_start", "on_train_batch_start", "training_step", "the update"])
def test_after_a_resumed_run_broke(where, tmp_path):
    """A window is placed before the first loader batch then, for Lightning's own restart."""
    path = tmp_path / "saved.ckpt"
    train(Fragile(), scaler()).save_checkpoint(path)
    module, trainer = Fragile(where), make_trainer(scaler(), max_epochs=4)
    with pytest.raises(Broken):
        fit(trainer, module, ckpt_path=path)
    assert_given_back(trainer, module)


@WITHIN_A_WINDOW
def test_the_same_trainer_trains_on_after_an_exception():
    """Nothing of the broken window is left that would disturb the next fit."""
    module = Fragile("the update", after=2)
    trainer = train(module, scaler())
    assert trainer.interrupted
    module.where = None
    fit(trainer, module)
    assert (trainer.current_epoch, trainer.should_stop) == (2, False)
    assert_given_back(trainer, module, interrupted=False)


def test_a_stop_at_the_budgets_end_does_not_stop_the_next_fit():
    module = Fragile()
    trainer = fit(make_trainer(scaler(), max_epochs=-1, max_steps=10), module)
    steps = trainer.global_step
    trainer.fit_loop.epoch_loop.max_steps = 20
    assert fit(trainer, module).global_step > steps
