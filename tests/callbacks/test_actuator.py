"""The only way to touch the Trainer: everything is given back, and the null one touches nothing."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from lightning_bsscale import WeightDecay
from lightning_bsscale.callbacks.actuator import NullActuator, TrainerActuator
from lightning_bsscale.callbacks.trainer.micro_batches import MicroBatches
from lightning_bsscale.theory.micro_batches import Layout
from tests.helpers.simulated_run import user_plan
from tests.helpers.training import QUIET, Broken, Regression, regression_loader

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step"),  # no optimizer steps here
]

PLAN = user_plan(2, size=4)
POSITION = PLAN.begin(epoch_batches=5, epoch_examples=20, frequencies=[2])


armed: set[str] = set()  # names of what breaks when it is written to


def write(thing, name, value):
    if name in armed:
        raise Broken(name)
    vars(thing)[name] = value


def breakable(name):
    return property(lambda self: vars(self)[name], lambda self, value: write(self, name, value))


class Trainer(pl.Trainer):
    accumulate_grad_batches = breakable("accumulate_grad_batches")
    should_stop = breakable("should_stop")


class Config(LRSchedulerConfig):
    __setattr__ = write


class Group(dict):
    def __setitem__(self, name, value):
        if name in armed:
            raise Broken(name)
        super().__setitem__(name, value)


def step_config(optimizer, trainer):
    return {"scheduler": StepLR(optimizer, 1, 0.5), "interval": "step", "frequency": 2}


class Inside(pl.Callback):
    """Runs a test where an actuator lives, from a training's start on."""

    def __init__(self, test):
        self.test = test

    def on_train_start(self, trainer, pl_module):
        self.test(trainer, pl_module)


def within_a_training(test):
    trainer = Trainer(**QUIET, max_steps=1, accumulate_grad_batches=2, callbacks=[Inside(test)])
    trainer.fit(Regression(lambda p: SGD(p, lr=0.5, weight_decay=0.1), step_config), regression_loader(40))


def found(trainer):
    """What an actuator may write to, and what it hooks into."""
    (optimizer,), (config,) = trainer.optimizers, trainer.lr_scheduler_configs
    return {
        "accumulate": (type(trainer.accumulate_grad_batches), trainer.accumulate_grad_batches),
        "should_stop": trainer.should_stop,
        "frequency": config.frequency,
        "steps of the scheduler": config.scheduler.last_epoch,
        "lr": [group["lr"] for group in optimizer.param_groups],
        "weight_decay": [group["weight_decay"] for group in optimizer.param_groups],
        "step": optimizer.step.__code__,
        "of the strategy": {"training_step", "backward"} & vars(trainer.strategy).keys(),
        "hooks": (len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)),
        "gradients": [None if p.grad is None else p.grad.tolist() for p in trainer.lightning_module.parameters()],
        "weights": [p.tolist() for p in trainer.lightning_module.parameters()],
    }


def call_everything(actuator, trainer, *, loader_batches=4):
    """Call every method that may write, and leave it in the middle of an update."""
    for parameter in trainer.lightning_module.parameters():
        parameter.grad = torch.ones_like(parameter)
    actuator.attach(trainer.optimizers[0], PLAN, POSITION)
    actuator.place_window(3, 4)
    actuator.begin_window(Layout())
    actuator.scale_learning_rate(4.0, 0.5, 16.0)
    actuator.rescale_cut_window(4, 2)
    actuator.skip(1, is_open=True)
    actuator.step_schedulers(PLAN, PLAN.advance(POSITION, loader_batches, is_last=False))
    actuator.stop()
    actuator.before_step(is_late=True)


def test_the_one_acts_and_the_other_does_not():
    def test(trainer, module):
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        before, hooks = found(trainer), ("step", "hooks", "of the strategy")
        actuator = NullActuator(trainer, "test", MicroBatches(trainer))
        call_everything(actuator, trainer)
        now = found(trainer)
        assert {name for name in now if now[name] != before[name]} == set(hooks)  # it looks at the step
        assert (actuator.accumulate, actuator.lr, actuator.lr_scale) == (2, 0.5, 1.0)
        assert (actuator.shown_lr_scale(3.0), actuator.frequencies) == (3.0, [])
        actuator.release()
        assert found(trainer) == before

        actuator = TrainerActuator(
            trainer, module, "test", MicroBatches(trainer), None, lambda optimizer: [WeightDecay(0.5)]
        )
        call_everything(actuator, trainer)
        now = found(trainer)
        assert {name for name in now if now[name] == before[name]} == {"weights"}
        assert now["accumulate"][1] == 4
        assert (now["steps of the scheduler"], now["lr"]) == (2, [0.5 * 0.25 * 2])  # two planned steps, and the factors
        assert now["weight_decay"] == [0.4]
        assert now["gradients"] != before["gradients"]
        assert (actuator.accumulate, actuator.lr, actuator.lr_scale) == (2, 0.25, 4.0)
        assert (actuator.shown_lr_scale(3.0), actuator.frequencies) == (4.0, [2])
        actuator.end_step()
        assert trainer.optimizers[0].param_groups[0]["lr"] == 0.125

    within_a_training(test)


def one_after_the_other(actuator):
    """Give everything back, as a list of calls would."""
    while actuator._held._exit_callbacks:
        actuator._held._exit_callbacks.pop()[1](None, None, None)


@pytest.mark.parametrize("give_back", [TrainerActuator.release, one_after_the_other])
@pytest.mark.parametrize("broken", ["accumulate_grad_batches", "should_stop", "frequency", "lr", "weight_decay"])
def test_everything_is_given_back_whatever_happens_to_one_of_it(broken, give_back):
    def test(trainer, module):
        (optimizer,), (config,) = trainer.optimizers, trainer.lr_scheduler_configs
        trainer.strategy.lr_scheduler_configs = [Config(config.scheduler, interval="step", frequency=2)]
        optimizer.param_groups = [Group(group) for group in optimizer.param_groups]
        before = found(trainer)
        actuator = TrainerActuator(
            trainer, module, "test", MicroBatches(trainer), None, lambda optimizer: [WeightDecay(0.5)]
        )
        call_everything(actuator, trainer, loader_batches=0)
        armed.add(broken)
        with pytest.raises(Broken, match=broken):
            give_back(actuator)
        armed.clear()
        now = found(trainer)
        left = {name for name in now if now[name] != before[name]} - {"gradients"}
        own = {"accumulate_grad_batches": "accumulate"}.get(broken, broken)
        # A list of calls ends at the one that breaks; what was taken hold of first would be given back last.
        assert left == {own} if give_back is TrainerActuator.release else left > {own}
        actuator.release()
        trainer.accumulate_grad_batches, trainer.should_stop = 2, False

    try:
        within_a_training(test)
    finally:
        armed.clear()


def test_a_second_release_does_nothing_and_a_stop_of_another_stays():
    def test(trainer, module):
        trainer.should_stop = True
        actuator = TrainerActuator(trainer, module, "test", MicroBatches(trainer), None, lambda optimizer: ())
        actuator.stop()
        actuator.release()
        trainer.accumulate_grad_batches = 7
        actuator.release()
        assert (trainer.accumulate_grad_batches, trainer.should_stop) == (7, True)
        trainer.accumulate_grad_batches = 2

    within_a_training(test)


def test_schedulers_that_were_set_up_anew_are_followed():
    def test(trainer, module):
        actuator = TrainerActuator(trainer, module, "test", MicroBatches(trainer), None, lambda optimizer: ())
        actuator.attach(trainer.optimizers[0], PLAN, POSITION)
        assert actuator.follow_schedulers(PLAN, POSITION) is POSITION
        old = trainer.lr_scheduler_configs[0]
        trainer.strategy.lr_scheduler_configs = [
            LRSchedulerConfig(StepLR(trainer.optimizers[0], 1), interval="step", frequency=3)
        ]
        position = actuator.follow_schedulers(PLAN, POSITION)
        assert (old.frequency, actuator.frequencies) == (2, [3])
        assert dict(position.before) == {1: 0, 2: 0, 3: 0}
        assert trainer.lr_scheduler_configs[0].frequency > 10**6
        actuator.release()
        assert trainer.lr_scheduler_configs[0].frequency == 3

    within_a_training(test)
