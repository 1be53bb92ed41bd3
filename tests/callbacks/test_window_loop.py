"""The order of a window's life, as a story through the real Trainer, and its counts after whatever broke it."""

from contextlib import nullcontext

import lightning.pytorch as pl
import pytest

from lightning_bsscale import GradientNoiseScaleMonitor
from lightning_bsscale.callbacks.actuator import Actuator, TrainerActuator
from lightning_bsscale.callbacks.gradient_watch import GradientWatch
from lightning_bsscale.callbacks.output.journal import RunJournal
from lightning_bsscale.callbacks.output.reports import Reports
from lightning_bsscale.callbacks.window_loop import WindowLoop
from lightning_bsscale.theory import run
from lightning_bsscale.theory.micro_batches import Layout
from lightning_bsscale.theory.policies import Decision
from tests.helpers.simulated_run import stored_again
from tests.helpers.training import QUIET, Broken, KeepSteps, Scripted, Watched, fit, regression_loader, run_of, scripted

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*noise scale cannot be measured.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:.*lr_scheduler_step is overridden.*"),
]

WATCHED = {
    run: ["start_epoch", "open_window", "close_window", "ask_policy", "drop_window", "take_arrived"],
    Actuator: ["begin_window", "before_step", "end_step", "release"],
    TrainerActuator: ["place_window", "scale_learning_rate", "before_step", "step_schedulers", "stop"],
    GradientWatch: ["open", "before_backward", "after_backward", "before_step", "receive", "end_window", "stop"],
    Reports: ["epoch_started", "window_opened", "window_closed", "decided", "log"],
    RunJournal: ["end"],
}
NAMES = dict(zip(WATCHED, ["run", "actuator", "actuator", "watch", "reports", "journal"], strict=True))

OPENS = "run.open_window reports.window_opened actuator.place_window actuator.begin_window actuator.scale_learning_rate"
OPENS += " watch.open"
BACKWARD = "watch.before_backward watch.after_backward"
STEPS = "watch.before_step actuator.before_step"
CLOSES = "actuator.end_step watch.receive run.close_window run.take_arrived watch.end_window reports.window_closed"
CLOSES += " actuator.step_schedulers run.ask_policy reports.decided"
ENDS = "run.drop_window actuator.release watch.stop actuator.end_step watch.receive run.take_arrived journal.end"
# An epoch of three loader batches: one alone, then two, with which the budget ends.
STORY = f"""
    run.start_epoch run.drop_window reports.epoch_started {OPENS} {BACKWARD} {STEPS} {CLOSES} reports.log
    {OPENS} {BACKWARD} {BACKWARD} {STEPS} {CLOSES} actuator.stop reports.log
    {ENDS}
""".split()


@pytest.fixture
def story(monkeypatch):
    """What is called, and in which order; a call within another of the same name is the same one."""
    calls = []

    def recorded(name, function):
        def called(*args, **kwargs):
            if calls[-1:] != [name] or name.endswith("_backward"):
                calls.append(name)
            return function(*args, **kwargs)

        return called

    for owner, functions in WATCHED.items():
        for name in functions:
            monkeypatch.setattr(owner, name, recorded(f"{NAMES[owner]}.{name}", getattr(owner, name)))
    return calls


def folded(story):
    """`watch.stop` is called within others: only the one that follows the release is the loop's own."""
    return [name for place, name in enumerate(story) if name != "watch.stop" or story[place - 1] == "actuator.release"]


class Hasty(WindowLoop):
    def _open_window(self, batch_idx):
        self.actuator.begin_window(Layout())
        return super()._open_window(batch_idx)


@pytest.mark.parametrize("loop", [WindowLoop, Hasty])
def test_a_windows_life(story, monkeypatch, loop):
    """The twin: another order is found."""
    monkeypatch.setattr("lightning_bsscale.callbacks.start_run.WindowLoop", loop)
    fit(Watched(), regression_loader(12), [scripted(8)], max_epochs=1, log_every_n_steps=1, max_steps=3)
    assert (folded(story) == STORY) == (loop is WindowLoop)


@pytest.mark.parametrize("made", [lambda: scripted(dry_run=True), GradientNoiseScaleMonitor])
def test_a_dry_run_and_a_monitor_are_the_same_loop(story, made):
    def story_of(callback):
        story.clear()
        fit(Watched(), regression_loader(24), [callback], max_epochs=1, accumulate_grad_batches=2)
        acts = ("place_window", "scale_learning_rate", "step_schedulers", "drop_window", "stop")
        return [name for name in folded(story) if not name.endswith(acts)]

    assert story_of(made()) == story_of(scripted())


class BreakingPolicy(Scripted):
    def decide(self, situation, limits):
        if situation.optimizer_steps == 2:
            raise Broken
        return Decision(batch_size=8, reason="two")


class BreakingLogger(KeepSteps):
    def log_metrics(self, metrics, step=None):
        if step == 1:
            raise Broken


class Breaks(pl.Callback):
    """Breaks in a hook once two steps were made."""

    def __init__(self, hook):
        setattr(self, hook, self._break)

    @staticmethod
    def _break(trainer, *args, **kwargs):
        if trainer.global_step == 2:
            raise Broken


class BreaksItself(Watched):
    where = None

    def _break(self, where):
        if where == self.where and self.trainer.global_step == 2:
            raise Broken

    def training_step(self, batch, batch_idx):
        self._break(("training_step", "second training_step")[batch_idx % 2])
        return super().training_step(batch, batch_idx)

    def lr_scheduler_step(self, scheduler, metric):
        self._break("lr_scheduler_step")
        super().lr_scheduler_step(scheduler, metric)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self._break("on_train_batch_end")


CALLBACKS = {
    "scaler": lambda **options: scripted(8, 8, 8, measure_every=1, **options),
    "dry run": lambda **options: scripted(8, 8, 8, measure_every=1, dry_run=True, **options),
    "monitor": lambda: GradientNoiseScaleMonitor(measure_every=1),
}


@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.parametrize(
    "where",
    [
        *("training_step", "second training_step", "lr_scheduler_step", "on_train_batch_end", "policy", "logger"),
        *("before: on_train_batch_end", "after: on_train_batch_end", "before: on_train_batch_start"),
    ],
)
def test_after_a_break_at_an_odd_moment_the_counts_are_those_of_the_steps(name, where):
    check_after_a_break(name, where)


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_loop_that_forgets_a_window_that_was_stepped_is_found(name, monkeypatch):
    monkeypatch.setattr(WindowLoop, "close_stepped", lambda loop: None)
    with pytest.raises(AssertionError):
        check_after_a_break(name, "before: on_train_batch_end")


def check_after_a_break(name, where):
    module, callbacks, settings, options = BreaksItself(), [], {}, {}
    order, _, hook = where.partition(": ")
    if hook:
        callbacks = [Breaks(hook)]
    elif where == "policy":
        options = {} if name == "monitor" else dict(policy=BreakingPolicy([]))
    elif where == "logger":
        settings = dict(logger=BreakingLogger(), log_every_n_steps=1)
    else:
        module.where = where
    callback = CALLBACKS[name](**options)
    callbacks = [callback, *callbacks] if order == "after" else [*callbacks, callback]
    trainer = pl.Trainer(**{**QUIET, **settings}, max_epochs=1, accumulate_grad_batches=2, callbacks=callbacks)
    is_broken = name != "monitor" or where != "policy"
    with pytest.raises(Broken) if is_broken else nullcontext():
        trainer.fit(module, regression_loader(40))
    state = run_of(callback)
    assert state == stored_again(state)
    assert state.windows == trainer.global_step == (2 if is_broken else 5)
    assert state.examples.total == module.examples_at[trainer.global_step]
    assert callback.history[-1].examples_seen == state.examples.total  # also what was on its way
    assert state.planned_steps == state.windows
    within = {"training_step": (1, 0), "second training_step": (2, 1)}
    assert within.get(where) == (None if state.window is None else (state.window.begun, state.window.ended))
    again = CALLBACKS[name](**options)
    again.load_state_dict(callback.state_dict())
    assert run_of(again) == state
