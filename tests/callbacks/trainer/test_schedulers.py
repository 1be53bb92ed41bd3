"""Schedulers that follow the user's plan, not the steps that were made."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from lightning_bsscale.callbacks.trainer.schedulers import ExampleClock
from tests.helpers.training import QUIET

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")


class Module(pl.LightningModule):
    """Keeps the planned step for which each scheduler step was made, and may break in one."""

    clock = None

    def __init__(self, asks=True, breaks_at=None):
        super().__init__()
        self.asks, self.breaks_at, self.stepped = asks, breaks_at, []

    def lr_scheduler_step(self, scheduler, metric):
        if len(self.stepped) == self.breaks_at:
            self.breaks_at = None
            raise RuntimeError("on purpose")
        self.stepped.append((scheduler.step_size, self.clock.read_planned_step() if self.asks else None))
        super().lr_scheduler_step(scheduler, metric)


def clock_of(module, *frequencies, plateau=False):
    """A Trainer with a scheduler of each frequency, and one that is stepped by the epoch."""
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    configs = [
        LRSchedulerConfig(StepLR(optimizer, frequency), interval="step", frequency=frequency)
        for frequency in frequencies
    ]
    configs.append(LRSchedulerConfig(StepLR(optimizer, 99), interval="epoch", frequency=1))
    if plateau:
        configs.append(LRSchedulerConfig(ReduceLROnPlateau(optimizer), interval="step", reduce_on_plateau=True))
    trainer = pl.Trainer(**QUIET)
    trainer.strategy.lr_scheduler_configs = configs
    module.clock = ExampleClock(trainer, module)
    return module.clock, trainer


def advance(clock, loader_batches):
    return clock.advance(lambda frequency: loader_batches // frequency, lambda frequency, number: number * frequency)


def test_each_is_stepped_as_often_as_planned_and_knows_for_which_step():
    module = Module()
    clock, trainer = clock_of(module, 1, 3)
    assert clock.frequencies == [1, 3]
    assert [config.frequency for config in trainer.lr_scheduler_configs[:2]] != [1, 3]
    clock.start_at(lambda frequency: 2 // frequency)
    assert not advance(clock, 2)
    assert not module.stepped
    assert not advance(clock, 7)  # the module asked
    assert module.stepped == [(1, 3), (1, 4), (1, 5), (1, 6), (1, 7), (3, 3), (3, 6)]
    assert not advance(clock, 7)
    assert len(module.stepped) == 7
    assert clock.read_planned_step() is None
    clock.release()
    assert [config.frequency for config in trainer.lr_scheduler_configs] == [1, 3, 1]
    assert not advance(clock, 100)


def test_it_says_when_nobody_asked():
    assert advance(clock_of(Module(asks=False), 1)[0], 1)
    assert not advance(clock_of(Module(asks=False), 1)[0], 0)


def test_a_step_that_broke_is_not_made_again():
    module = Module(breaks_at=1)
    clock, _ = clock_of(module, 1)
    with pytest.raises(RuntimeError, match="on purpose"):
        advance(clock, 3)
    assert clock.read_planned_step() is None
    advance(clock, 3)
    assert module.stepped == [(1, 1), (1, 3)]


def test_a_plateau_stays_with_lightning_and_is_let_through_where_it_is_due():
    clock, trainer = clock_of(Module(), plateau=True)
    plateau = trainer.lr_scheduler_configs[-1]
    for loader_batches, is_due in [(0, False), (1, True), (1, False), (4, True)]:
        advance(clock, loader_batches)
        assert (plateau.frequency == 1) is is_due
    clock.release()
    assert plateau.frequency == 1


@pytest.mark.parametrize("change", ["none", "replaced", "one more", "one less"])
def test_others_that_were_set_up_since_are_noticed(change):
    clock, trainer = clock_of(Module(), 1, 2)
    configs = trainer.strategy.lr_scheduler_configs
    another = LRSchedulerConfig(configs[0].scheduler, interval="step")
    trainer.strategy.lr_scheduler_configs = {
        "none": configs,
        "replaced": [another, *configs[1:]],
        "one more": [*configs, another],
        "one less": configs[1:],
    }[change]
    assert clock.matches(trainer) is (change == "none")
