"""Every combination that is refused, before the first step, with the way out."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy, SingleDeviceStrategy, XLAStrategy
from torch.utils.data import DataLoader, IterableDataset

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor, NoiseScalePolicy
from lightning_bsscale.callbacks.checks.preflight import check_measurable
from tests.helpers.training import QUIET, Regression, assert_nothing_left, fit, regression_loader


class Counts(Regression):
    """Counts training steps: a refusal comes before the first."""

    trained = 0

    def training_step(self, batch, batch_idx):
        self.trained += 1
        return super().training_step(batch, batch_idx)


def refused(match, callbacks, *, module=None, loader=None, error=MisconfigurationException, **settings):
    module = module or Counts()
    trainer = pl.Trainer(**{**QUIET, "max_epochs": 1, **settings}, callbacks=callbacks)
    accumulate = trainer.accumulate_grad_batches
    with pytest.raises(error, match=match):
        trainer.fit(module, regression_loader(40) if loader is None else loader)
    assert module.trained == 0
    assert_nothing_left(trainer, module, accumulate)


@pytest.mark.parametrize("callback", [BatchSizeScaler, GradientNoiseScaleMonitor])
def test_manual_optimization(callback):
    module = Counts()
    module.automatic_optimization = False
    refused("needs automatic optimization, and Counts sets automatic_optimization = False", [callback()], module=module)


@pytest.mark.parametrize("other", [GradientAccumulationScheduler({0: 2}), StochasticWeightAveraging(swa_lrs=0.1)])
def test_other_writers_of_the_window(other):
    refused(f"cannot work beside {type(other).__name__}.*Remove one", [BatchSizeScaler(), other])


@pytest.mark.parametrize("order", [1, -1])
def test_a_monitor_beside_a_scaler(order):
    refused("cannot work beside GradientNoiseScaleMonitor", [BatchSizeScaler(), GradientNoiseScaleMonitor()][::order])


class Accumulates(SingleDeviceStrategy):
    """As DeepSpeed's strategy answers."""

    handles_gradient_accumulation = True


class MyDeepSpeedStrategy(SingleDeviceStrategy):
    """By its name one of DeepSpeed's, also where it answers otherwise."""


class OnTwoDevices(SingleDeviceStrategy):
    """Of which nothing is known."""

    def __init__(self, device):
        super().__init__(device)
        self.world_size = 2


OWN_LOOP = "feed lightning_bsscale.GradientNoiseScale in a loop of your own"


@pytest.mark.parametrize("callback", [BatchSizeScaler, GradientNoiseScaleMonitor])
@pytest.mark.parametrize("strategy", [Accumulates, MyDeepSpeedStrategy])
def test_a_strategy_that_accumulates_by_itself(callback, strategy):
    why = f"cannot work with {strategy.__name__}: it accumulates gradients by itself.*{OWN_LOOP}"
    refused(why, [callback()], strategy=strategy(device="cpu"))


@pytest.mark.parametrize("callback", [BatchSizeScaler, GradientNoiseScaleMonitor])
@pytest.mark.parametrize(
    ("strategy", "why"),
    [(DeepSpeedStrategy, "cannot work with DeepSpeedStrategy: it accumulates"), (XLAStrategy, "2 devices with XLA")],
)
def test_strategies_that_are_ddp_by_descent_only(callback, strategy, why):
    """Their constructors need packages that are not installed."""
    trainer = SimpleNamespace(strategy=strategy.__new__(strategy), world_size=2)
    with pytest.raises(MisconfigurationException, match=f"{why}.*{OWN_LOOP}"):
        check_measurable(trainer, Counts(), callback.__name__)


@pytest.mark.parametrize("callback", [BatchSizeScaler, GradientNoiseScaleMonitor])
def test_an_unknown_strategy_on_several_devices(callback):
    why = f"works on one device, with DDP and with FSDP .*, and the Trainer has 2 devices with OnTwo.*{OWN_LOOP}"
    refused(why, [callback()], strategy=OnTwoDevices(device="cpu"))


def test_an_unknown_strategy_on_one_device_is_welcome():
    class Unheard(SingleDeviceStrategy):
        pass

    scaler = BatchSizeScaler()
    fit(Regression(), regression_loader(40), [scaler], max_epochs=1, strategy=Unheard(device="cpu"))
    assert scaler.examples_seen == 40


class Odd(torch.optim.Optimizer):
    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    def step(self, closure=None):
        return closure() if closure is not None else None


def test_an_optimizer_that_auto_does_not_know():
    refused(r"does not know the optimizer Odd.*'sqrt'", [BatchSizeScaler()], module=Counts(Odd))


def test_an_unknown_optimizer_with_a_rule_is_welcome():
    scaler = BatchSizeScaler(lr_rule="sqrt")
    fit(Regression(Odd), regression_loader(40), [scaler], max_epochs=1)
    assert scaler.examples_seen == 40


def test_a_subclass_of_a_known_optimizer_is_known():
    class Mine(torch.optim.AdamW):
        pass

    fit(Regression(lambda p: Mine(p, lr=0.01)), regression_loader(40), [BatchSizeScaler()], max_epochs=1)


class Stream(IterableDataset):
    def __iter__(self):
        return ((torch.zeros(8), torch.zeros(2)) for _ in range(40))


def test_an_unknown_budget_where_one_is_needed():
    unsized = DataLoader(Stream(), batch_size=4)
    refused(
        r"unknown.*warmup=0.05, memory=0.05, policy=NoiseScalePolicy are shares of it.*total_examples",
        [BatchSizeScaler()],
        loader=unsized,
    )
    refused("unknown", [BatchSizeScaler()], max_epochs=-1)
    refused("unknown.*schedule=WarmupCosine is a share", [free_of_shares(schedule="cosine")], loader=unsized)


def free_of_shares(**options):
    return BatchSizeScaler(warmup=8, memory=1.0, policy=NoiseScalePolicy(cooldown=0), **options)


@pytest.mark.parametrize("scaler", [free_of_shares(), BatchSizeScaler(total_examples=1000)])
def test_an_unknown_budget_where_none_is_needed(scaler):
    fit(Regression(), DataLoader(Stream(), batch_size=4), [scaler], max_epochs=1)
    assert scaler.examples_seen == 40


def test_a_maximum_below_the_start():
    refused(
        "max_batch_size=7 is below the starting batch of 8 examples",
        [BatchSizeScaler(max_batch_size=7)],
        accumulate_grad_batches=2,
    )


def test_two_owners_of_the_rate():
    def make(optimizer, trainer):
        return {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1), "interval": "step"}

    refused(
        r"configure_optimizers returns a scheduler \(StepLR\)",
        [BatchSizeScaler(schedule="cosine")],
        module=Counts(scheduler=make),
    )


def test_min_steps():
    refused(r"min_steps=5\) counts optimizer steps", [BatchSizeScaler()], min_steps=5)


def test_min_epochs_beyond_the_budget():
    refused(
        r"min_epochs=2\) asks for 80 examples, and the budget .* ends after 40",
        [BatchSizeScaler()],
        max_steps=10,
        min_epochs=2,
        max_epochs=5,
    )
    refused("asks for 80 examples", [BatchSizeScaler(total_examples=44)], min_epochs=2, max_epochs=5)
    scaler = BatchSizeScaler()
    fit(Regression(), regression_loader(40), [scaler], max_steps=20, min_epochs=2, max_epochs=5)
    assert scaler.examples_seen == 80


@pytest.mark.filterwarnings("ignore:.*dataloader_iter.*")
def test_a_step_that_takes_the_iterator():
    class Takes(Counts):
        def training_step(self, dataloader_iter):
            self.trained += 1

    refused("Let training_step take the batch", [BatchSizeScaler()], module=Takes())


def test_a_batch_without_a_size():
    loader = DataLoader([object()] * 4, batch_size=2, collate_fn=lambda items: {"text": "no tensor"})
    refused(
        "number of examples in a batch of type dict cannot be found.*batch_size_fn=len",
        [BatchSizeScaler()],
        loader=loader,
    )


@pytest.mark.parametrize("answer", [0, -1, 2.5, float("nan"), float("inf"), None, "4", True])
def test_a_batch_size_fn_that_counts_nothing(answer):
    refused("batch_size_fn returned .* a positive whole number", [BatchSizeScaler(batch_size_fn=lambda batch: answer)])


def test_several_optimizers_are_refused_by_lightning():
    class Two(Counts):
        def configure_optimizers(self):
            return [torch.optim.SGD(self.parameters(), lr=0.1), torch.optim.SGD(self.parameters(), lr=0.1)]

    refused(
        "multiple optimizers is only supported with manual optimization",
        [BatchSizeScaler()],
        module=Two(),
        error=RuntimeError,
    )


def test_two_scalers_are_refused_by_lightning():
    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        pl.Trainer(**QUIET, callbacks=[BatchSizeScaler(), BatchSizeScaler()])


@pytest.mark.parametrize("callback", [BatchSizeScaler, GradientNoiseScaleMonitor])
@pytest.mark.filterwarnings("ignore:.*at least two micro-batches.*")
def test_batch_norm_warns_once(callback):
    module = Regression()
    module.net = torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2), torch.nn.BatchNorm1d(2))
    with pytest.warns(UserWarning, match="The model has BatchNorm1d: its output depends on the micro-batch") as caught:
        fit(module, regression_loader(40), [callback()], max_epochs=2)
    assert sum("BatchNorm1d" in str(warning.message) for warning in caught) == 1


BAD_OPTIONS = [
    (dict(policy="grow"), ValueError, "policy must be one of 'noise_scale'.*got 'grow'"),
    (dict(policy=3), TypeError, "policy must be"),
    (dict(lr_rule="quadratic"), ValueError, "lr_rule must be one of 'linear', 'sqrt'.*got 'quadratic'"),
    (dict(lr_rule=None), TypeError, "lr_rule must be"),
    (dict(lr_cap=0.5), ValueError, "cap must be .* at least 1, got 0.5"),
    (dict(schedule="triangle"), ValueError, "schedule must be one of 'cosine'.*got 'triangle'"),
    (dict(warmup=1.0), ValueError, "warmup .* below 1, got 1.0"),
    (dict(warmup=-3), ValueError, "warmup .*number of examples.* at least 0, got -3"),
    (dict(warmup=True), TypeError, "warmup .*got True"),
    (dict(warmup=float("nan")), ValueError, "warmup"),
    (dict(total_examples=0), ValueError, "total_examples must be an integer of at least 1, got 0"),
    (dict(total_examples=1e6), TypeError, "total_examples must be an integer"),
    (dict(max_batch_size=0), ValueError, "max_batch_size must be an integer of at least 1, got 0"),
    (dict(measure_every=0), ValueError, "measure_every must be an integer of at least 1, got 0"),
    (dict(probe_every=-1), ValueError, "probe_every must be an integer of at least 0, got -1"),
    (dict(memory=0), ValueError, "memory .* above 0 and at most 1, got 0"),
    (dict(memory="all"), TypeError, "memory .*got 'all'"),
    (dict(batch_size_fn=4), TypeError, "batch_size_fn must be a function"),
    (dict(dry_run="yes"), TypeError, "dry_run must be True or False, got 'yes'"),
    (dict(log_prefix=None), TypeError, "log_prefix must be a string"),
    (dict(record=3), TypeError, "record must be True, False or a path"),
    (dict(progress_bar=1), TypeError, "progress_bar must be True or False"),
    (dict(verbose=None), TypeError, "verbose must be True or False"),
]


@pytest.mark.parametrize(("options", "error", "match"), BAD_OPTIONS)
def test_wrong_options_say_what_was_found_and_what_is_allowed(options, error, match):
    with pytest.raises(error, match=match):
        BatchSizeScaler(**options)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (o, e)
        for o, e, _ in BAD_OPTIONS
        if set(o) <= {"measure_every", "memory", "batch_size_fn", "log_prefix", "record"}
    ],
)
def test_wrong_options_of_the_monitor(options, error):
    with pytest.raises(error):
        GradientNoiseScaleMonitor(**options)
