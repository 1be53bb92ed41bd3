"""Schedulers that are stepped with a number of updates: the scaler says how many the user's plan would have made."""

import math
import pickle

import lightning.pytorch as pl
import pytest
import torch

from lightning_bsscale import BatchSizeScaler
from tests.helpers.expected_warnings import CANNOT_MEASURE, MID_EPOCH, hearing
from tests.helpers.training import Regression, Saves, fit, regression_loader, scripted

pytestmark = CANNOT_MEASURE


class StepsByNumber:
    """As timm's schedulers: a cosine over `total` updates, in the value that `step_update` is given; no torch class."""

    def __init__(self, optimizer, total, base=0.1):
        self.optimizer, self.total, self.base = optimizer, total, base
        self.numbers = []
        self.step_update(0)

    def step_update(self, num_updates):
        self.numbers.append(num_updates)
        for group in self.optimizer.param_groups:
            group["lr"] = self.base * (1 + math.cos(math.pi * num_updates / self.total)) / 2

    def state_dict(self):
        return {"numbers": self.numbers}

    def load_state_dict(self, state):
        self.numbers = state["numbers"]


class Timm(Regression):
    """Steps its scheduler with `global_step`, or with the scaler's `planned_steps` where there is a scaler to ask."""

    def __init__(self, asks, frequency=1, interval="step"):
        super().__init__(
            lambda p: torch.optim.SGD(p, lr=0.1),
            lambda o, t: {
                "scheduler": StepsByNumber(o, t.estimated_stepping_batches),
                "interval": interval,
                "frequency": frequency,
            },
        )
        self.asks = asks

    @property
    def scaler(self):
        return next((one for one in self.trainer.callbacks if isinstance(one, BatchSizeScaler)), None)

    def lr_scheduler_step(self, scheduler, metric):
        asked = self.asks and self.scaler is not None
        scheduler.step_update(self.scaler.planned_steps if asked else self.global_step)


def train(module, *callbacks, **settings):
    """Two epochs of 31 loader batches: the numbers of updates that the scheduler got, and the last learning rate."""
    settings = {"max_epochs": 2, **settings}
    trainer = fit(module, regression_loader(124), callbacks, **settings)
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    return scheduler.numbers, trainer.optimizers[0].param_groups[0]["lr"]


GROWS = (8, 8, 16, 16, 32)


@pytest.mark.parametrize(
    "settings",
    [{}, {"accumulate_grad_batches": 2}, {"max_steps": 40, "max_epochs": -1}, {"max_steps": 500}, {"max_steps": 40}],
)
@pytest.mark.parametrize("frequency", [1, 3])
def test_planned_steps_take_the_schedule_where_plain_training_takes_it(settings, frequency):
    plan = train(Timm(asks=False, frequency=frequency), **settings)
    scaler = scripted(*GROWS)
    module = Timm(asks=True, frequency=frequency)
    # Nothing is said to whom has asked.
    assert train(module, scaler, **settings) == plan
    total = module.trainer.lr_scheduler_configs[0].scheduler.total
    assert scaler.planned_steps == total > module.global_step
    if frequency == 1:
        assert plan[0] == list(range(total + 1))
        assert plan[1] == pytest.approx(0.0, abs=1e-12)


def test_global_step_does_not_and_that_is_said_once():
    with hearing("lr_scheduler_step is overridden") as said:
        numbers, last = train(Timm(asks=False), scripted(*GROWS))
    (sentence,) = said
    assert "Timm.lr_scheduler_step" in sentence
    assert "planned_steps" in sentence
    assert max(numbers) < 20  # of 62
    assert last > 0.05


@pytest.mark.parametrize("options", [{"dry_run": True}, {"max_batch_size": 4}])
def test_nothing_is_said_where_the_batch_cannot_grow(options):
    plan = train(Timm(asks=False), accumulate_grad_batches=1)
    assert train(Timm(asks=False), scripted(*GROWS, **options)) == plan


@pytest.mark.parametrize("accumulate", [1, 2])
def test_in_a_dry_run_planned_steps_are_the_steps(accumulate):
    class Looks(Timm):
        seen = ()

        def look(self, *args):
            self.seen = (*self.seen, (self.scaler.planned_steps, self.global_step))

        on_train_batch_start = on_train_batch_end = on_train_epoch_end = look

        def training_step(self, batch, batch_idx):
            self.look()
            return super().training_step(batch, batch_idx)

        def lr_scheduler_step(self, scheduler, metric):
            self.look()
            super().lr_scheduler_step(scheduler, metric)

    module = Looks(asks=True)
    scaler = scripted(*GROWS, dry_run=True)
    plan = train(Timm(asks=False), accumulate_grad_batches=accumulate)
    assert train(module, scaler, accumulate_grad_batches=accumulate) == plan
    assert all(planned == made for planned, made in module.seen)
    assert len(module.seen) > 62


def test_before_within_and_after_training_and_in_a_copy(tmp_path):
    seen = []

    class Looks(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(scaler.planned_steps)

    scaler = scripted(*GROWS, lr_rule="none")
    assert scaler.planned_steps == 0
    callbacks = [scaler, Looks(), Saves(tmp_path / "saved.ckpt", 40 - 31, 1)]
    fit(Regression(), regression_loader(124), callbacks, max_epochs=2)
    # Windows of 1, 2, 2, 4, 4, 8, 8 and the 2 that are left; then 8, 8, 8 and 7.
    starts = [0, 1, 3, 5, 9, 13, 21, 29, 31, 39, 47, 55, 62]
    assert seen == [max(start for start in starts if start <= index) for index in range(62)]
    assert scaler.planned_steps == 62
    assert pickle.loads(pickle.dumps(BatchSizeScaler())).planned_steps == 0
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)["callbacks"]["BatchSizeScaler"]
    loaded = BatchSizeScaler()
    loaded.load_state_dict(saved)
    assert loaded.planned_steps == 39
    with pytest.raises(AttributeError):
        scaler.planned_steps = 3


@MID_EPOCH
@pytest.mark.parametrize("after", [5, 31])
def test_a_resumed_run_counts_on(tmp_path, after):
    path, plan = tmp_path / "saved.ckpt", train(Timm(asks=False))
    train(Timm(asks=True), scripted(*GROWS), Saves(path, after - 1))
    assert train(Timm(asks=True), scripted(16, 32), ckpt_path=path) == plan
