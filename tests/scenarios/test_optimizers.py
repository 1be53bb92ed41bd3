"""Optimizers that are not torch's own: the factor reaches the update, and the log says what it was."""

import functools
import types
from collections import defaultdict

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_bsscale import GradientNoiseScaleMonitor
from lightning_bsscale.theory.schedules import WarmupStep
from tests.helpers.expected_warnings import CANNOT_MEASURE, said_of
from tests.helpers.refusals_of_training import CopiesItsGroups, with_scheduler
from tests.helpers.training import (
    QUIET,
    KeepsRates,
    KeepSteps,
    Regression,
    assert_same_weights,
    fit,
    gradient_scaler,
    regression_loader,
    scripted,
)

pytestmark = CANNOT_MEASURE

LR = 0.05
# Windows of 1, 2, 2, 4, 4 and 3 loader batches of 4, each with its own factor (the linear rule).
FACTORS = [1, 2, 2, 4, 4, 3]


def logged_by(logger):
    return [(values["bsscale/lr"], values["bsscale/lr_scale"]) for _, values in logger.logged if "bsscale/lr" in values]


def train(module, callback=None, *, examples=64, **settings):
    """One epoch of loader batches of 4; what was logged of the learning rate and its factor, and the Trainer."""
    logger = KeepSteps()
    settings = {"max_epochs": 1, "log_every_n_steps": 1, "logger": logger, **settings}
    trainer = fit(module, regression_loader(examples), [callback or scripted(8, 8, 16)], **settings)
    return logged_by(logger), trainer


def assert_close_weights(module, plain):
    for ours, theirs in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def sgd(parameters):
    return SGD(parameters, lr=LR, momentum=0.9)


# ---------------------------------------------------------------- shapes of optimizers, each around the same SGD


class NoHooks(Optimizer):
    """As torch_optimizer.Lookahead: an Optimizer that never calls `Optimizer.__init__`, so without hook tables."""

    def __init__(self, inner):
        self.optimizer = inner
        self.param_groups = inner.param_groups
        self.defaults = inner.defaults
        self.state = defaultdict(dict)

    def step(self, closure=None):
        return self.optimizer.step(closure=closure)

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)


class LeavesZeroGradToTorch(NoHooks):
    """torch_optimizer.Lookahead itself: torch's `zero_grad` makes it fail from the second step on, without us."""

    zero_grad = Optimizer.zero_grad


class TablesThatNobodyReads(NoHooks):
    """As wrappers that make the tables for GradScaler's or a checkpoint's sake, and never patch their step."""

    def __init__(self, inner):
        super().__init__(inner)
        self._optimizer_step_pre_hooks = type(inner._optimizer_step_pre_hooks)()
        self._optimizer_step_post_hooks = type(inner._optimizer_step_post_hooks)()


class Duck:
    """No Optimizer at all, but all that Lightning asks of one; the rest is the inner one's."""

    def __init__(self, inner):
        self.inner = inner

    def step(self, closure=None, **kwargs):
        return self.inner.step(closure, **kwargs)

    def __getattr__(self, name):
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


class UpdatesAfterItsParent(SGD):
    """Makes the update a second time after `super().step()`, and so after the parent's hooks."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(parameter.grad, alpha=-group["lr"])
        return loss


class ReadsFirst(SGD):
    """Reads its learning rates before it calls the closure."""

    @torch.no_grad()
    def step(self, closure=None):
        rates = [group["lr"] for group in self.param_groups]
        loss = closure()
        for group, rate in zip(self.param_groups, rates, strict=True):
            for parameter in group["params"]:
                buffer = self.state[parameter].setdefault("buffer", torch.zeros_like(parameter))
                buffer.mul_(0.9).add_(parameter.grad)
                parameter.add_(buffer, alpha=-rate)
        return loss


def replaced_by_the_plain_code(parameters):
    """What speed-minded code does: the step without torch's profiling, and with it without hooks."""
    optimizer = sgd(parameters)
    optimizer.step = types.MethodType(type(optimizer).step.__wrapped__, optimizer)
    return optimizer


SHAPES = {
    "no hook tables": lambda p: NoHooks(sgd(p)),
    "tables that nobody reads": lambda p: TablesThatNobodyReads(sgd(p)),
    "duck": lambda p: Duck(sgd(p)),
    "wrapped for Lightning": lambda p: LightningOptimizer(sgd(p)),
    "reads before the closure": lambda p: ReadsFirst(p, lr=LR, momentum=0.9),
    "replaced by the plain code": replaced_by_the_plain_code,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_factor_reaches_the_update_of_every_shape(shape):
    plain, module = Regression(sgd), Regression(SHAPES[shape])
    expected, _ = train(plain)
    logged, trainer = train(module)
    assert [factor for _, factor in logged] == FACTORS
    assert logged == expected
    assert_close_weights(module, plain)
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [LR]


class StepIsAProperty(NoHooks):
    @property
    def step(self):
        return self.optimizer.step


# Whose learning rate can be read and not be scaled.
READ_ONLY = {
    "step is a property": lambda p: StepIsAProperty(sgd(p)),
    "copies its groups": lambda p: CopiesItsGroups(p, lr=LR),
}


@pytest.mark.parametrize("shape", [*SHAPES, *READ_ONLY])
def test_those_who_look_say_the_learning_rate_of_every_shape(shape):
    """And leave every weight as it is without them, to the bit."""
    make = {**SHAPES, **READ_ONLY}[shape]
    bare = Regression(make)
    fit(bare, regression_loader(64), max_epochs=1, accumulate_grad_batches=2)
    for callback in (GradientNoiseScaleMonitor(measure_every=1), scripted(8, dry_run=True, measure_every=1)):
        module = Regression(make)
        fit(module, regression_loader(64), [callback], max_epochs=1, accumulate_grad_batches=2)
        assert_same_weights(module, bare)
        assert [(made.lr, made.lr_scale) for made in callback.history] == [(LR, 1.0)] * 8


def test_an_optimizer_that_torch_breaks_is_not_broken_by_us():
    expected, _ = train(Regression(sgd))
    for callback in (None, scripted(8, 8, 16), GradientNoiseScaleMonitor()):
        logged, _ = train(Regression(lambda p: LeavesZeroGradToTorch(sgd(p))), callback, accumulate_grad_batches=1)
        assert logged == (expected if not isinstance(callback, GradientNoiseScaleMonitor) else [])


def test_all_of_an_update_is_made_with_the_factor_where_a_step_calls_its_parents():
    plain = Regression(lambda p: SGD(p, lr=2 * LR))
    module = Regression(lambda p: UpdatesAfterItsParent(p, lr=LR))
    for one in (plain, module):  # torch gives SGD.step its hooks only once an SGD was made
        train(one)
    assert_close_weights(module, plain)


@pytest.mark.parametrize("shape", ["replaced by a function", "wrapped like a counter", "wrapped by a scheduler"])
def test_a_step_that_is_replaced_in_mid_training_is_found_at_the_next_window(shape):
    class Replaces(Regression):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 3:  # the second window of two has begun, so this one is still made by the old one
                optimizer = self.trainer.optimizers[0]
                self.old = optimizer.step
                if shape == "replaced by a function":
                    optimizer.step = lambda closure=None: self.old(closure)
                elif shape == "wrapped like a counter":
                    optimizer.step = functools.wraps(self.old)(lambda *a, **k: self.old(*a, **k))
                else:
                    self.mine = LambdaLR(optimizer, lambda step: 1.0)

    module, plain = Replaces(sgd), Regression(sgd)
    expected, _ = train(plain)
    logger = KeepSteps()
    settings = {**QUIET, "logger": logger, "max_epochs": 1, "log_every_n_steps": 1}
    trainer = pl.Trainer(**settings, callbacks=[scripted(8, 8, 16)])
    trainer.fit(module, regression_loader(64))
    assert logged_by(logger) == expected
    assert_same_weights(module, plain)
    # What was put over our wrapper holds it, without effect: the step is that of the class.
    optimizer, before = trainer.optimizers[0], module.net.weight.detach().clone()
    module.net.weight.grad = torch.ones_like(module.net.weight)
    optimizer.step()
    assert not torch.equal(before, module.net.weight)
    assert optimizer.param_groups[0]["lr"] == LR


# ---------------------------------------------------------------- what cannot be supported is refused


class StepsByItself(Regression):
    """Updates without the optimizer's step, as a compiled step that was taken at the start would."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        optimizer_closure()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter -= optimizer.param_groups[0]["lr"] * parameter.grad


class LeavesStepsOut(Regression):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        if batch_idx % 8 == 2:
            optimizer.step(closure=optimizer_closure)
        else:
            optimizer_closure()


def test_weights_that_something_else_updates_are_refused_and_the_log_never_claims_a_factor():
    logger, module = KeepSteps(), StepsByItself(sgd)
    with pytest.raises(MisconfigurationException, match=r"StepsByItself.optimizer_step"):
        train(module, scripted(8, max_batch_size=8), examples=256, max_epochs=2, logger=logger)
    assert module.trainer.global_step == 21  # the first one had a factor of one
    assert set(logged_by(logger)) == {(LR, 1.0)}
    # Where there is no factor to apply, it is nobody's business.
    fit(StepsByItself(sgd), regression_loader(256), [scripted(8, lr_rule="none")], max_epochs=2)


def test_a_module_that_leaves_steps_out_on_purpose_is_no_error():
    # Windows of 1 and then 2 loader batches: a step is made at every fourth of them.
    fit(LeavesStepsOut(sgd), regression_loader(400), [scripted(8, max_batch_size=8)], max_epochs=1)


# ---------------------------------------------------------------- another optimizer in mid-training


class SetsUpAnew(Regression):
    """Sets its optimizers and schedulers up once more, at loader batch 6 of an epoch of 16, in the hook that is given.

    The windows are 1, 2, 4 and 4 loader batches, so that is within the third one.
    """

    def __init__(self, where, make=sgd, then=None):
        super().__init__(make)
        self.is_set_up, inner = False, getattr(self, where)

        def hook(*args):
            if args[-1] == 6:
                self.is_set_up, self.make_optimizer = True, then or make
                self.trainer.strategy.setup_optimizers(self.trainer)
            return inner(*args)

        setattr(self, where, hook)


@pytest.mark.parametrize("where", ["on_train_batch_start", "training_step", "on_train_batch_end"])
def test_another_optimizer_in_mid_training_gets_the_factor_too(where):
    """Also where it is set up in the last hook before the step, after the callbacks' own."""
    made = []

    def make(parameters):
        made.append(KeepsRates(parameters, lr=LR))
        return made[-1]

    module, plain = SetsUpAnew(where, make), Regression(lambda p: SGD(p, lr=LR))
    logged, trainer = train(module, scripted(8, 16, 16, measure_every=1))
    factors = [1, 2, 4, 4, 4, 1]
    used = [rates[0] for optimizer in made for rates in optimizer.used]
    assert used == pytest.approx([LR * factor for factor in factors])
    assert logged == list(zip(used, factors, strict=True))
    first, last = made
    assert last is trainer.optimizers[0]
    for optimizer in (first, last):
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks
        assert "step" not in vars(optimizer)
        assert optimizer.param_groups[0]["lr"] == LR
    train(plain, scripted(8, 16, 16))
    assert_same_weights(module, plain)


def test_the_rule_is_that_of_the_optimizer_that_steps():
    class LARS(SGD):
        pass

    module = SetsUpAnew("on_train_batch_end", lambda p: LARS(p, lr=LR), then=lambda p: AdamW(p, lr=LR))
    scaler = scripted(8, 16, 16, 32, lr_rule="auto")
    logged, _ = train(module, scaler)
    changes = [record.lr_rule for record in scaler.decisions if record.is_change]
    assert changes == ["linear"] * 2 + ["power"]
    assert scaler.lr_scale == pytest.approx(8**0.75)
    assert [factor for _, factor in logged][3:] == pytest.approx([4**0.75, 5**0.75])


def test_measuring_follows_another_optimizer():
    """The monitor's noise scale over both halves; the window in which it changed is not measured."""
    monitor, plain = (GradientNoiseScaleMonitor(measure_every=1) for _ in range(2))
    train(SetsUpAnew("on_train_batch_start", lambda p: SGD(p, lr=LR)), monitor, accumulate_grad_batches=4)
    train(Regression(lambda p: SGD(p, lr=LR)), plain, accumulate_grad_batches=4)
    assert [made.optimizer_steps for made in monitor.history] == [1, 3, 4]
    theirs = {made.optimizer_steps: made for made in plain.history}
    assert all(made.trace == theirs[made.optimizer_steps].trace for made in monitor.history)
    assert [made.lr for made in monitor.history] == [LR] * 3


def test_a_scheduler_beside_the_callbacks_own_schedule_is_refused_in_mid_training_too():
    class AddsAScheduler(SetsUpAnew):
        def configure_optimizers(self):
            self.make_scheduler = with_scheduler if self.is_set_up else None
            return super().configure_optimizers()

    module = AddsAScheduler("on_train_batch_end")
    with pytest.raises(MisconfigurationException, match="returns a scheduler"):
        train(module, scripted(8, schedule="cosine"))


# ---------------------------------------------------------------- a learning rate that is set within the step


class Bypasses(Regression):
    """Calls the class's function, so that only the hooks of the optimizer are left."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        SGD.step(optimizer.optimizer, optimizer_closure)


def test_a_step_around_the_instance_is_caught_by_the_hooks():
    plain, module = Regression(sgd), Bypasses(sgd)
    assert train(module)[0] == train(plain)[0]
    assert_same_weights(module, plain)


class DecaysItself(KeepsRates):
    """Multiplies its own learning rate in each step, after the update."""

    def __init__(self, parameters, lr=0.1):
        super().__init__(parameters, lr=lr)

    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            group["lr"] *= 0.9
        return loss


def two_groups(parameters):
    weight, bias = parameters
    return DecaysItself([{"params": [weight]}, {"params": [bias], "lr": 0.3}])


def tensor_lr(parameters):
    weight, bias = parameters
    return DecaysItself([{"params": [weight]}, {"params": [bias]}], lr=torch.tensor(0.1))


# The scaler's options, and the factors of the six windows.
DECAYED = {
    "linear": ({}, FACTORS),
    "none": (dict(lr_rule="none"), [1] * 6),
    # At its middle, as the schedule is asked, the fourth window is past 0.3 of the budget.
    "own schedule": (dict(schedule=WarmupStep(milestones=(0.3,))), [1, 2, 2, 0.4, 0.4, 0.3]),
}


@pytest.mark.parametrize("make", [DecaysItself, two_groups, tensor_lr])
@pytest.mark.parametrize("rule", DECAYED)
def test_an_optimizer_that_decays_its_own_learning_rate_decays_it(make, rule):
    """With the callback's own schedule its learning rate is the peak."""
    options, factors = DECAYED[rule]
    logged, trainer = train(Regression(make), scripted(8, 8, 16, **options))
    (optimizer,) = trainer.optimizers
    # Two groups with one tensor between them decay it twice.
    per_step = 0.9**2 if make is tensor_lr else 0.9
    expected = [0.1 * per_step**step * factor for step, factor in enumerate(factors)]
    assert [rates[0] for rates in optimizer.used] == pytest.approx(expected)
    assert [lr for lr, _ in logged] == pytest.approx(expected)
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.1 * per_step**6)
    if make is two_groups:
        assert optimizer.param_groups[1]["lr"] == pytest.approx(0.3 * 0.9**6)
    if make is tensor_lr:
        assert optimizer.param_groups[0]["lr"] is optimizer.param_groups[1]["lr"] is optimizer.defaults["lr"]


@pytest.mark.parametrize("settings", [{}, gradient_scaler()], ids=["plain", "scaled"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("rule", ["linear", "none"])
def test_step_hooks_of_the_users_see_and_set_the_users_learning_rate(when, rule, settings):
    """Registered before ours or after; with a gradient scaler too, where the closure is called before the step."""

    class Hooked(Regression):
        def on_fit_start(self):
            self.seen, self.before = [], []

        def hook(self, optimizer, args, kwargs):
            self.seen.append(optimizer.param_groups[0]["lr"])
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + len(self.seen))

        def register(self, optimizer):
            optimizer.register_step_pre_hook(lambda opt, *args: self.before.append(opt.param_groups[0]["lr"]))
            optimizer.register_step_post_hook(self.hook)

        def configure_optimizers(self):
            optimizer = SGD(self.parameters(), lr=0.1)
            if when == "before":
                self.register(optimizer)
            return optimizer

        def on_train_batch_start(self, batch, batch_idx):
            if when == "after" and batch_idx == 0:
                self.register(self.trainer.optimizers[0])

        def on_train_end(self):
            self.trainer.optimizers[0]._optimizer_step_pre_hooks.clear()
            self.trainer.optimizers[0]._optimizer_step_post_hooks.clear()

    module = Hooked()
    logged, trainer = train(module, scripted(8, 8, 16, lr_rule=rule), **settings)
    users = [0.1 / (1 + step) for step in range(7)]
    assert module.seen == module.before == pytest.approx(users[:6])
    if when == "before":  # after ours, the first step's factor is one, whatever the order
        factors = FACTORS if rule == "linear" else [1] * 6
        assert [lr for lr, _ in logged] == pytest.approx([a * b for a, b in zip(users[:6], factors, strict=True)])
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(users[6])


class ComputesItsOwn(SGD):
    """Sets its learning rate from a private counter, before or after its update; what was there does not matter."""

    def __init__(self, parameters, *, first):
        super().__init__(parameters, lr=0.1)
        self.first, self.count = first, 0

    def step(self, closure=None):
        loss = closure()
        if self.first:
            self.set_own()
        super().step()
        if not self.first:
            self.set_own()
        return loss

    def set_own(self):
        self.count += 1
        self.param_groups[0]["lr"] = 0.1 * 0.97**self.count


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("batches", [(8, 8, 16), (4, 4, 4, 8)])
def test_an_optimizer_on_which_the_factor_has_no_effect_is_told_of_and_trains_on(batches, first):
    """Once, and one change of the batch is enough: the log must not show a factor that never acted."""
    scaler, make = scripted(*batches), functools.partial(ComputesItsOwn, first=first)
    with pytest.warns(UserWarning, match="ComputesItsOwn") as said:
        logged, _ = train(Regression(make), scaler, examples=160)
    assert len(said_of("ComputesItsOwn", said)) == 1
    assert (scaler.batch_size, scaler.examples_seen) == (batches[-1], 160)
    factors = [factor for _, factor in logged]
    assert max(factors) > 1
    assert factors[-3:] == [1.0] * 3
    train(Regression(make), scripted(8, lr_rule="none"))  # where no factor is wanted, nothing is said


@pytest.mark.parametrize("decay", [0.5, 0.1])
def test_one_that_multiplies_is_not_taken_for_it(decay):
    """Also where it falls by as much as the factor rises."""

    class Falls(SGD):
        def step(self, closure=None):
            loss = super().step(closure)
            self.count = getattr(self, "count", 0) + 1
            if self.count == 2:
                self.param_groups[0]["lr"] *= decay
            return loss

    logged, trainer = train(Regression(lambda p: Falls(p, lr=0.1)))
    falls = [1, 1, *[decay] * 4]
    assert [lr for lr, _ in logged] == pytest.approx([0.1 * a * b for a, b in zip(falls, FACTORS, strict=True)])
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * decay)


def test_a_group_that_is_added_in_the_step_keeps_its_learning_rate():
    class Grows(SGD):
        def step(self, closure=None):
            loss = super().step(closure)
            if len(self.param_groups) < 3:
                self.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.7})
            return loss

    _, trainer = train(Regression(lambda p: Grows(p, lr=0.1)))
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [0.1, 0.7, 0.7]


def test_an_exception_in_an_update_keeps_what_the_optimizer_had_changed():
    class Breaks(SGD):
        def step(self, closure=None):
            loss = super().step(closure)
            self.param_groups[0]["lr"] *= 0.5
            if len(self.state) and self.param_groups[0]["lr"] < 0.1:
                raise RuntimeError("broken on purpose")
            return loss

    module = Regression(lambda p: Breaks(p, lr=0.1, momentum=0.9))
    with pytest.raises(RuntimeError, match="broken on purpose"):
        train(module, scripted(8))
    # The second window has two loader batches, and a factor of 2.
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05)
