"""The user's schedulers on the example clock: each goes its own way under the plan, to the last digit."""

import inspect
import math

import lightning.pytorch as pl
import pytest
import torch
from torch.optim import SGD, lr_scheduler, swa_utils
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from tests.helpers.expected_warnings import CANNOT_MEASURE, WITHOUT_VALIDATION
from tests.helpers.training import KeepsRates, Regression, fit, regression_loader, scripted

pytestmark = [
    CANNOT_MEASURE,
    WITHOUT_VALIDATION,
    # These modules look at each step of a scheduler, and then step it as Lightning does.
    pytest.mark.filterwarnings("ignore:.*lr_scheduler_step is overridden.*"),
    # SequentialLR of torch 2.7 steps its schedulers in the way that it warns of.
    pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step"),
]


# ---------------------------------------------------------------- every scheduler of torch, step by step

MAKERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, [lambda n: 0.95**n, lambda n: 1 / (1 + n)]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda n: 0.9 if n % 3 else 1.05),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 7, 0.3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 3, 9, 30, 44], 0.3),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.25, 11),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 45),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.97),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 50, 1.7),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 40, 1e-4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, [0.01, 0.02], [0.1, 0.2], 5, 8, mode="exp_range", gamma=0.99),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [0.1, 0.4], total_steps=62, three_phase=True),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 6), lr_scheduler.ExponentialLR(o, 0.95)], [6]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 6), lr_scheduler.CosineAnnealingLR(o, 62)]
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, [0.02, 0.2], anneal_epochs=17),
}


def test_no_scheduler_of_torch_is_forgotten():
    found = {
        name
        for module in (lr_scheduler, swa_utils)
        for name, cls in vars(module).items()
        if inspect.isclass(cls) and issubclass(cls, LRScheduler) and not name.startswith("_")
    }
    assert found - {"LRScheduler", "ReduceLROnPlateau"} == set(MAKERS)


def two_groups(parameters):
    weight, bias = parameters
    return KeepsRates([{"params": [weight]}, {"params": [bias], "lr": 0.4}], lr=0.1, momentum=0.9)


class Traced(Regression):
    """Keeps what the user sees of the rate: at each loader batch, before each step, and after a scheduler's."""

    def __init__(self, scheduler, optimizer=two_groups):
        super().__init__(optimizer, scheduler)
        self.seen, self.path, self.starts, self.before_steps = [], [], {}, []

    def rates(self):
        return [(group["lr"], group["momentum"]) for group in self.trainer.optimizers[0].param_groups]

    def on_train_batch_start(self, batch, batch_idx):
        self.starts.setdefault(self.global_step, len(self.seen))
        self.seen.append(self.rates())

    def on_before_optimizer_step(self, optimizer):
        self.before_steps.append(self.rates())

    def lr_scheduler_step(self, scheduler, metric):
        super().lr_scheduler_step(scheduler, metric)
        self.path.append(self.rates())


# 2 epochs of 31 loader batches of 4. Windows of 1, 2, 2, 4, 4, 8, 8 and the 2 that are left; then 8, 8, 8 and 7.
WINDOWS = [1, 2, 2, 4, 4, 8, 8, 2, 8, 8, 8, 7]
STARTS = [sum(WINDOWS[:number]) for number in range(len(WINDOWS))]
BATCHES = [8, 8, 16, 16, 32]


def compare_with_plan(make, config, *, accumulate=1, **options):
    """Trains as planned and with growing windows: wherever a window begins, the user's rate is the plan's."""

    def scheduler(optimizer, trainer):
        return {"scheduler": make(optimizer), **config}

    plan, ours = Traced(scheduler), Traced(scheduler)
    settings = dict(max_epochs=2, accumulate_grad_batches=accumulate)
    fit(plan, regression_loader(124), **settings)
    trainer = fit(ours, regression_loader(124), [scripted(*BATCHES, **options)], **settings)
    assert trainer.global_step < 62 / accumulate or options
    assert ours.path == plan.path
    assert ours.rates() == plan.rates()
    for start in ours.starts.values():
        assert ours.seen[start] == plan.seen[start]
    return plan, ours, trainer


@pytest.mark.parametrize("name", MAKERS)
def test_a_scheduler_goes_its_own_way_to_the_last_digit(name):
    plan, ours, trainer = compare_with_plan(MAKERS[name], {"interval": "step"})
    assert len(ours.path) == 62
    assert len({rates[0] for rates in ours.path}) > 1 or name == "ConstantLR"
    assert list(ours.starts.values()) == STARTS
    # In the update the rate is the user's at the window's start times the factor, and nobody sees it elsewhere.
    expected = [[rate * window for rate, _ in plan.seen[start]] for start, window in zip(STARTS, WINDOWS, strict=True)]
    assert trainer.optimizers[0].used == expected
    assert ours.before_steps == [plan.seen[start] for start in STARTS]
    for start, window in zip(STARTS, WINDOWS, strict=True):
        assert ours.seen[start : start + window] == [plan.seen[start]] * window


@pytest.mark.parametrize(
    ("name", "frequency", "accumulate"),
    [("LambdaLR", 2, 1), ("ExponentialLR", 3, 2), ("CyclicLR", 2, 3), ("SequentialLR", 5, 2), ("LambdaLR", 5, 2)],
)
def test_a_scheduler_with_a_frequency_goes_where_the_plan_takes_it(name, frequency, accumulate):
    """Lightning counts the frequency in loader batches; so does the plan."""
    config = {"interval": "step", "frequency": frequency}
    plan, _, _ = compare_with_plan(MAKERS[name], config, accumulate=accumulate)
    assert 0 < len(plan.path) < 62 / accumulate


@pytest.mark.parametrize("frequency", [1, 2])
def test_a_scheduler_on_epochs_stays_with_lightning(frequency):
    plan, ours, _ = compare_with_plan(MAKERS["ExponentialLR"], {"interval": "epoch", "frequency": frequency})
    assert len(plan.path) == 2 // frequency
    assert ours.seen == plan.seen


def test_dry_run_leaves_the_clock_alone():
    config = {"interval": "step", "frequency": 2}
    plan, dry, _ = compare_with_plan(MAKERS["LinearLR"], config, dry_run=True)
    assert dry.seen == plan.seen


# ---------------------------------------------------------------- schedulers with a metric


class WithSchedulers(Regression):
    """A module whose schedulers the test gives, which logs a loss in training and validation and keeps each step."""

    def __init__(self, *makers):
        super().__init__()
        self.makers, self.stepped = makers, []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", super().training_step(batch, batch_idx))

    def configure_optimizers(self):
        optimizer = SGD(self.parameters(), lr=0.1)
        return [optimizer], [make(optimizer) for make in self.makers]

    def lr_scheduler_step(self, scheduler, metric):
        self.stepped.append((self.global_step, type(scheduler).__name__, metric))
        super().lr_scheduler_step(scheduler, metric)


def plateau(interval, monitor, **config):
    # Patience 0 and a bar that no loss reaches: every step but the first lowers the rate.
    return lambda o: {
        "scheduler": ReduceLROnPlateau(o, factor=0.9, patience=0, threshold=0.999),
        "interval": interval,
        "monitor": monitor,
        **config,
    }


def step_lr():
    return lambda o: {"scheduler": lr_scheduler.StepLR(o, 5, 0.5), "interval": "step"}


def count(module, name):
    return [(step, metric) for step, stepped, metric in module.stepped if stepped == name]


ENDS = [1, 2, 4, 6, 9, 12, 15, 18, 20]  # of the windows, in loader batches of the plan's 20 steps


class Looks(pl.Callback):
    """Keeps each loader batch's loss."""

    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(trainer.callback_metrics["loss"])


@pytest.mark.parametrize("frequency", [1, 2, 5])
def test_plateau_on_steps_is_stepped_with_its_windows_loss_as_often_as_the_plan_reaches_its_frequency(frequency):
    """A window end is a step; of several planned ones within a window, one metric value makes one."""
    module, looks = WithSchedulers(plateau("step", "loss", frequency=frequency)), Looks()
    scaler = scripted(4, 8, 8, 12, lr_rule="none")
    trainer = fit(module, regression_loader(80), [scaler, looks], max_epochs=1)
    windows = enumerate(zip([0, *ENDS], ENDS, strict=False), 1)
    due = [number for number, (start, end) in windows if end // frequency > start // frequency]
    assert [step for step, _, _ in module.stepped] == due
    assert [metric for _, _, metric in module.stepped] == [looks.losses[ENDS[step - 1] - 1] for step in due]
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.9 ** (len(due) - 1))
    assert trainer.lr_scheduler_configs[0].frequency == frequency


def test_two_schedulers_keep_their_own_clocks():
    """One on steps, one on every third loader batch of the plan, one on epochs, one with a metric."""
    makers = (
        step_lr(),
        lambda o: {"scheduler": lr_scheduler.ExponentialLR(o, 0.99), "interval": "step", "frequency": 3},
        lambda o: {"scheduler": lr_scheduler.MultiplicativeLR(o, lambda n: 0.5), "interval": "epoch"},
        plateau("epoch", "val_loss"),
    )
    plan, ours = WithSchedulers(*makers), WithSchedulers(*makers)
    rates = []
    for module, callbacks in ((plan, []), (ours, [scripted(8, 16)])):
        trainer = fit(module, regression_loader(64), callbacks, val=regression_loader(8), max_epochs=3)
        rates.append(trainer.optimizers[0].param_groups[0]["lr"])
    for name, times in {"StepLR": 48, "ExponentialLR": 15, "MultiplicativeLR": 3, "ReduceLROnPlateau": 3}.items():
        assert len(count(ours, name)) == len(count(plan, name)) == times
    # The factors are multiplied in another order.
    assert rates[0] == pytest.approx(rates[1], rel=1e-12)


def test_a_scheduler_step_of_the_users_own_gets_scheduler_and_metric():
    class NoTorchScheduler:
        """What Lightning allows with `lr_scheduler_step` overridden: any object with a state."""

        def __init__(self, optimizer):
            self.optimizer, self.updates = optimizer, []

        def step_update(self, num_updates, metric):
            self.updates.append((num_updates, metric))

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    class Own(WithSchedulers):
        def lr_scheduler_step(self, scheduler, metric):
            if isinstance(scheduler, NoTorchScheduler):
                scheduler.step_update(len(scheduler.updates) + 1, metric)
            else:
                super().lr_scheduler_step(scheduler, metric)

    def own(**config):
        return lambda o: {"scheduler": NoTorchScheduler(o), "interval": "step", "monitor": "loss", **config}

    module = Own(own(), own(reduce_on_plateau=True), step_lr(), plateau("step", "loss"))
    trainer = fit(module, regression_loader(80), [scripted(4, 8, 8, 12)], max_epochs=1)
    plain, on_metric = (config.scheduler.updates for config in trainer.lr_scheduler_configs[:2])
    # Without reduce_on_plateau Lightning hands over no metric, whatever `monitor` says.
    assert plain == [(number, None) for number in range(1, 21)]
    assert [number for number, _ in on_metric] == list(range(1, 10))
    assert [metric for _, metric in on_metric] == [metric for _, metric in count(module, "ReduceLROnPlateau")]
    assert all(math.isfinite(metric) and torch.is_tensor(metric) for _, metric in on_metric)
    assert len(count(module, "StepLR")) == 20
