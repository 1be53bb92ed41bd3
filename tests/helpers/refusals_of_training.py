"""Everything that can be wrong in a training, and what brings it about."""

from __future__ import annotations

import contextlib
import functools
import pickle
import sys
import tempfile
import warnings
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, SingleDeviceStrategy, XLAStrategy
from torch.utils.data import DataLoader

from lightning_bsscale import BatchSizeScaler, Decision, GradientNoiseScaleMonitor, HoldIfWorse, NoiseScalePolicy
from lightning_bsscale.callbacks.checks import cautions, preflight
from lightning_bsscale.callbacks.state.spawn import Outcome, _SentOutcome
from lightning_bsscale.callbacks.trainer import accumulation, loaders
from lightning_bsscale.callbacks.trainer.micro_batches import MicroBatches
from lightning_bsscale.gradients.parameter_hooks import ParameterHooks
from lightning_bsscale.gradients.shard_differences import UnsupportedSharding
from lightning_bsscale.journal import Journal
from lightning_bsscale.theory.schedules import Schedule
from tests.helpers.refusals import CASES, Case, case
from tests.helpers.training import (
    QUIET,
    KeepSteps,
    Regression,
    Saves,
    Unsized,
    assert_nothing_left,
    regression_loader,
    scripted,
)


def train(callback=None, *, module=None, loader=None, others=(), ckpt_path=None, at_once=True, **settings):
    """One training; what is raised comes through, a refusal before the first step, and nothing is left behind."""
    module = module or Regression()
    callback = callback or BatchSizeScaler()
    trainer = pl.Trainer(**{**QUIET, "max_epochs": 1, **settings}, callbacks=[callback, *others])
    accumulate = trainer.accumulate_grad_batches
    try:
        trainer.fit(module, regression_loader(40) if loader is None else loader, ckpt_path=ckpt_path)
    except MisconfigurationException:
        assert not at_once or trainer.fit_loop.epoch_loop.batch_progress.total.started == 0
        raise
    finally:
        assert_nothing_left(trainer, module, accumulate)
    return trainer


def of_both(run, words=""):
    """Adds a case for each of the callbacks."""
    CASES.extend(Case(functools.partial(run, cls), f"{cls.__name__} {words}") for cls in CALLBACKS)


CALLBACKS = (BatchSizeScaler, GradientNoiseScaleMonitor)

# ---------------------------------------------------------------- when training is set up


class Mine(torch.optim.LBFGS):
    pass


class FullBatchLbfgsNew(torch.optim.SGD):
    """Some other library's, which is known by its name alone."""


class Unknown(torch.optim.Optimizer):
    def __init__(self, parameters, **defaults):
        super().__init__(parameters, defaults)

    def step(self, closure=None):
        return closure()


class StepIsAProperty(torch.optim.SGD):
    @property
    def step(self):
        return super().step

    step.fget.hooked = True

    def _patch_step_function(self):
        pass


class CopiesItsGroups(torch.optim.SGD):
    @property
    def param_groups(self):
        return [dict(group) for group in self.groups]

    @param_groups.setter
    def param_groups(self, groups):
        self.groups = groups

    def add_param_group(self, group):
        self.groups.append({**self.defaults, **group, "params": list(group["params"])})


class FindsLate(LearningRateFinder):
    def on_train_epoch_start(self, trainer, pl_module):
        pass


def by_hand():
    module = Regression()
    module.automatic_optimization = False
    return module


def with_scheduler(optimizer, trainer):
    return {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1), "interval": "step"}


def normalised():
    module = Regression()
    module.net = torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2), torch.nn.BatchNorm1d(2))
    return module


class Accumulates(SingleDeviceStrategy):
    """As DeepSpeed's strategy answers."""

    handles_gradient_accumulation = True


class MyDeepSpeedStrategy(SingleDeviceStrategy):
    """By its name one of DeepSpeed's, also where it answers otherwise."""


class OnTwoDevices(SingleDeviceStrategy):
    """Of which nothing is known."""

    def __init__(self):
        super().__init__("cpu")
        self.world_size = 2


def check_strategy(strategy, cls):
    """For strategies whose constructors need packages that are not installed."""
    trainer = SimpleNamespace(strategy=strategy.__new__(strategy), world_size=2)
    preflight.check_measurable(trainer, Regression(), cls.__name__)


OWN_LOOP = "lightning_bsscale.GradientNoiseScale"
of_both(lambda cls: train(cls(), strategy=Accumulates("cpu")), f"Accumulates {OWN_LOOP}")
of_both(lambda cls: train(cls(), strategy=MyDeepSpeedStrategy("cpu")), f"MyDeepSpeedStrategy {OWN_LOOP}")
of_both(lambda cls: train(cls(), strategy=OnTwoDevices()), f"2 DDP FSDP OnTwoDevices {OWN_LOOP}")
of_both(functools.partial(check_strategy, DeepSpeedStrategy), f"DeepSpeedStrategy {OWN_LOOP}")
of_both(functools.partial(check_strategy, XLAStrategy), f"2 XLAStrategy {OWN_LOOP}")


@case
def tensor_parallelism():
    mesh = {"tensor_parallel": SimpleNamespace(size=lambda: 2)}
    with (
        mock.patch.object(preflight, "ModelParallelStrategy", SingleDeviceStrategy),
        mock.patch.object(SingleDeviceStrategy, "device_mesh", mesh, create=True),
    ):
        train()


def train_where(owner, name, *value, settings=None, **options):
    """A training while something is replaced, with what mock.patch takes."""
    with mock.patch.object(owner, name, *value, **options):
        train(**(settings or {}))


def train_deterministic(policy):
    """A training in which no clock may decide."""
    with mock.patch.object(torch, "are_deterministic_algorithms_enabled", return_value=True):
        train(BatchSizeScaler(policy=policy))


CASES += [
    Case(lambda: train_where(SingleDeviceStrategy, "_ddp_kwargs", {"static_graph": True}, create=True)),
    Case(lambda: train_where(SingleDeviceStrategy, "_model_averaging_period", 4, create=True)),
    Case(lambda: train_where(preflight, "FSDPStrategy", SingleDeviceStrategy, settings={"gradient_clip_val": 1.0})),
    Case(lambda: train_where(loaders, "extremes", return_value=([10.0], [12.0]))),
    Case(lambda: loaders.SizeCheck(4).add(400, 50), "4 8 50"),
    Case(lambda: train_where(ParameterHooks, "__init__", side_effect=UnsupportedSharding("why"))),
    Case(lambda: cautions.warn_batch_norm(torch.nn.SyncBatchNorm(2), world_size=2)),  # torch runs it on GPUs only
    # test_compatibility.py does it with the other package's own Trainer, where that is installed.
    Case(lambda: BatchSizeScaler().setup(SimpleNamespace(), Regression(), "fit")),
    Case(
        lambda: preflight.check_micro_batches(SimpleNamespace(strategy=FSDPStrategy.__new__(FSDPStrategy)), 2, 8),
        "max_micro_batch_size=2 FSDPStrategy 8",
    ),
    Case(lambda: train(others=[GradientNoiseScaleMonitor()]), "GradientNoiseScaleMonitor"),
    Case(lambda: train(others=[FindsLate()])),
    Case(lambda: train(BatchSizeScaler(policy="seesaw", lr_rule="none")), "Seesaw 'sqrt' 'surge' 'none'"),
    Case(lambda: train_deterministic(NoiseScalePolicy(step_price="measured", example_price="measured"))),
    Case(lambda: train(BatchSizeScaler(policy=HoldIfWorse(NoiseScalePolicy())), at_once=False), "'val_loss'"),
    Case(lambda: train(min_steps=5), "min_steps=5"),
    Case(lambda: train(BatchSizeScaler(also_scale="beta2")), "Beta2 'betas' SGD None"),
    Case(lambda: train(BatchSizeScaler(lr_rule="sqrt"), module=Regression(StepIsAProperty))),
    Case(lambda: train(BatchSizeScaler(lr_rule="sqrt"), module=Regression(CopiesItsGroups))),
    Case(lambda: train(module=Regression(lambda p: Unknown(p, lr=0.1))), "lr_rule Unknown 'sqrt'"),
    Case(
        lambda: train(scripted(schedule="cosine"), module=Regression(scheduler=with_scheduler)),
        "schedule configure_optimizers StepLR",
    ),
    Case(lambda: train(BatchSizeScaler(dry_run=True, schedule="cosine"))),
    *(
        Case(lambda cls=cls: train(cls(), module=normalised(), max_epochs=2, accumulate_grad_batches=2), "BatchNorm1d")
        for cls in CALLBACKS
    ),
]


def watched_by(cls, module):
    """A training of a module in which each window can be measured."""
    options = dict(lr_rule="sqrt") if cls is BatchSizeScaler else {}
    train(cls(**options), module=module, accumulate_grad_batches=2)


def one_of_two(parameters):
    first, second = parameters
    return Unknown([{"params": [first], "lr": 0.1}, {"params": [second]}])


of_both(lambda cls: train(cls(), module=by_hand()), "automatic_optimization Regression")
of_both(lambda cls: watched_by(cls, Regression(lambda p: [])), "configure_optimizers")
of_both(lambda cls: watched_by(cls, Regression(lambda p: None)), "configure_optimizers")
of_both(lambda cls: watched_by(cls, Regression(torch.optim.LBFGS)), "LBFGS closure")
of_both(lambda cls: watched_by(cls, Regression(Mine)), "Mine closure")
of_both(lambda cls: watched_by(cls, Regression(lambda p: FullBatchLbfgsNew(p, lr=0.1))), "FullBatchLbfgsNew closure")
of_both(lambda cls: watched_by(cls, Regression(Unknown)), "Unknown group")
of_both(lambda cls: watched_by(cls, Regression(lambda p: Unknown(p, lr=None))), "Unknown group")
of_both(lambda cls: watched_by(cls, Regression(one_of_two)), "Unknown group")


def free_of_shares(**options):
    """A scaler that needs no number of examples."""
    return BatchSizeScaler(warmup=8, memory=1.0, policy=NoiseScalePolicy(cooldown=0), **options)


class FitsWithin(pl.Callback):
    def on_train_start(self, trainer, pl_module):
        train(trainer.callbacks[0])


# ---------------------------------------------------------------- at the first loader batch


class TakesTheIterator(Regression):
    def training_step(self, dataloader_iter):
        raise AssertionError("not reached")


class FirstTensorIsOther(Regression):
    def training_step(self, batch, batch_idx):
        return super().training_step((batch["x"], batch["y"]), batch_idx)


def other_first(items):
    return {"ends": torch.zeros(len(items) + 1), "x": torch.ones(len(items), 8), "y": torch.ones(len(items), 2)}


def holding(*batches):
    """A loader that gives these batches as they are."""
    return DataLoader(list(batches), batch_size=None)


@case
def journal_where_another_file_is():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "notes.txt")
        path.write_text("mine\n")
        train(BatchSizeScaler(record=path / "run.jsonl"))


@case
def journal_that_another_process_writes():
    with tempfile.TemporaryDirectory() as folder:
        path, saved = Path(folder, "run.jsonl"), Path(folder, "run.ckpt")
        scaler = BatchSizeScaler(record=path)
        train(scaler).save_checkpoint(saved)
        with contextlib.closing(Journal(path, {}, resumes=scaler.state_dict()["journal"])):
            train(BatchSizeScaler(record=path), ckpt_path=saved, max_epochs=2)


CASES += [
    Case(lambda: train(others=[FitsWithin()])),
    Case(lambda: train_where(accumulation._Window, "__rmod__", lambda self, other: int(other) % int(self))),
    Case(lambda: train(BatchSizeScaler(record=True), default_root_dir="memory://runs")),
    Case(lambda: train(module=TakesTheIterator()), "training_step"),
    Case(lambda: train(loader=holding({"text": "none"})), "dict batch_size_fn=len"),
    Case(lambda: train(BatchSizeScaler(batch_size_fn=lambda batch: 0)), "batch_size_fn 0"),
    Case(lambda: train(loader=holding((torch.zeros(0, 8), torch.zeros(0, 2)))), "0"),
    Case(
        lambda: train(loader=DataLoader(Unsized(range(40)))),
        "warmup=0.05 memory=0.05 policy=NoiseScalePolicy total_examples",
    ),
    Case(lambda: train(max_epochs=-1), "total_examples"),
    Case(
        lambda: train(free_of_shares(schedule="cosine"), loader=DataLoader(Unsized(range(40)))), "schedule=WarmupCosine"
    ),
    Case(lambda: train(BatchSizeScaler(max_batch_size=7), accumulate_grad_batches=2), "max_batch_size=7 8"),
    Case(lambda: train(BatchSizeScaler(total_examples=7), accumulate_grad_batches=2), "total_examples=7 8"),
    Case(lambda: train(BatchSizeScaler(total_examples=44), min_epochs=2, max_epochs=5), "min_epochs=2 80 44"),
    Case(lambda: train(max_steps=10, min_epochs=2, max_epochs=5), "min_epochs=2 80 40"),
    *(Case(lambda cls=cls: train(cls(split=False)), "split=False") for cls in CALLBACKS),
    *(
        Case(
            lambda cls=cls: train(cls(measure_every=1), module=WithExtra(), loader=WithExtra.loader(7)),
            "split batch[2] 7 4 split_fn",
        )
        for cls in CALLBACKS
    ),
    Case(
        lambda: train(
            scripted(max_micro_batch_size=64), module=WithExtra(), loader=WithExtra.loader(7), accumulate_grad_batches=4
        ),
        "gathered batch[2] 7 4 merge_fn",
    ),
    Case(lambda: train(module=HoldsOne()), "4 1 max_micro_batch_size=1"),
    Case(lambda: none_on_several_devices(), "None several"),
    Case(lambda: train(BatchSizeScaler(warmup=40))),
    Case(lambda: train(BatchSizeScaler(memory=0.005), max_epochs=15)),
]


@case
def tensors_of_several_lengths():
    loader = DataLoader(range(8), batch_size=4, collate_fn=other_first)
    train_where(loaders, "_warned_types", set(), settings=dict(module=FirstTensorIsOther(), loader=loader))  # said once


# ---------------------------------------------------------------- while training


class Answers:
    """A policy, a rule or a schedule that answers what the test chooses."""

    def __init__(self, answer, applied=None):
        self.answer = answer
        self._applied = applied

    def decide(self, situation, limits):
        return self.answer

    def ratio(self, old_batch, new_batch, noise):
        return self.answer

    def applied(self, path_factor):
        return path_factor if self._applied is None else self._applied


class Factor(Answers, Schedule):
    def factor(self, examples_seen, total_examples, warmup_examples):
        return self.answer


class WithExtra(Regression):
    """Its batches hold something else beside the examples."""

    @staticmethod
    def loader(*rows):
        made = [(x, y, torch.ones(number, 2)) for (x, y), number in zip(regression_loader(40), rows * 5, strict=False)]
        return DataLoader(made, batch_size=None)

    def training_step(self, batch, batch_idx):
        return super().training_step(batch[:2], batch_idx)


class HoldsOne(Regression):
    """A model of which the device holds one example at a time."""

    def training_step(self, batch, batch_idx):
        if len(batch[0]) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return super().training_step(batch, batch_idx)


def none_on_several_devices():
    micro_batches = MicroBatches(
        SimpleNamespace(
            strategy=SimpleNamespace(training_step=lambda *batch: None, backward=None, root_device=torch.device("cpu")),
            world_size=2,
        )
    )
    micro_batches._check_none()


class NotFinite(Regression):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * float("nan")


class StepsByItself(Regression):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        optimizer_closure()


class ComputesItsOwn(torch.optim.SGD):
    def step(self, closure=None):
        loss = super().step(closure)
        self.param_groups[0]["lr"] = 0.1
        return loss


class StepsItsScheduler(Regression):
    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step()


class AddsNoise(Regression):
    def on_after_backward(self):
        for parameter in self.parameters():
            parameter.grad += torch.randn_like(parameter.grad)


class Claims(torch.utils.data.Dataset):
    """Says that it has twice the batches that it gives."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if index >= 6:
            raise StopIteration
        return torch.ones(4, 8), torch.ones(4, 2)


CASES += [
    Case(lambda: train(module=AddsNoise(), accumulate_grad_batches=2)),
    Case(lambda: train(scripted(8, lr_rule=Answers(0.0)))),
    Case(lambda: train(scripted(8, lr_rule=Answers(1.0, applied=float("nan"))))),
    Case(lambda: train(BatchSizeScaler(schedule=Factor(-1.0)))),
    Case(lambda: train(BatchSizeScaler(policy=Answers(Decision(batch_size="8", reason="as a word"))))),
    Case(lambda: train(loader=holding(*[(torch.ones(n, 8), torch.ones(n, 2)) for n in [1] + 60 * [4]]))),
    Case(lambda: train(scripted(8, max_batch_size=8), module=StepsByItself(), max_epochs=6, at_once=False)),
    Case(lambda: train(scripted(8, 16, 8), module=Regression(lambda p: ComputesItsOwn(p, lr=0.1)))),
    Case(lambda: train(BatchSizeScaler(max_batch_size=8), module=StepsItsScheduler(scheduler=with_scheduler))),
    Case(lambda: train(scripted(measure_every=1), module=NotFinite(), accumulate_grad_batches=2, max_epochs=3)),
    Case(lambda: train(loader=DataLoader(Claims(), batch_size=None), accumulate_grad_batches=4)),
]


class Unreachable(KeepSteps):
    """A logger whose service is out of reach."""

    experiment = SimpleNamespace(add_figure=mock.Mock(side_effect=ConnectionError("no route to host")))


def no_picture():
    train(scripted(8, log_figure=True), logger=Unreachable())


def no_matplotlib():
    with mock.patch.dict(sys.modules, {"matplotlib": None}):
        train(scripted(8, log_figure=True))


CASES += [Case(no_picture, "Unreachable ConnectionError"), Case(no_matplotlib, "pip install lightning-bsscale[plot]")]


def sent_home(folder):
    """What a callback has to show, as another process sends it, and the callback."""
    scaler = BatchSizeScaler()
    with mock.patch.object(tempfile, "tempdir", folder):
        return ForkingPickler.dumps(_SentOutcome(scaler._channel._name, Outcome(), folder)), scaler


@case
def nothing_to_read_for_the_caller():
    with tempfile.TemporaryDirectory() as folder:
        sent, _scaler = sent_home(folder)
    pickle.loads(sent)


# ---------------------------------------------------------------- resumed runs


def go_on(change=lambda state: None, *, stop_after=8, batch_size=4, **settings):
    """A run that is saved after so many examples, its state changed, and the resumed run."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "saved.ckpt"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is looked for is what the second run says
            train(others=[Saves(path, stop_after // 4 - 1)], **settings)
        saved = torch.load(path, weights_only=True)
        change(saved["callbacks"]["BatchSizeScaler"])
        torch.save(saved, path)
        train(loader=regression_loader(40, batch_size=batch_size), ckpt_path=path, **settings)


CASES += [
    Case(lambda: sent_home("/nowhere")),
    Case(lambda: go_on(lambda state: state.update(schema=99))),
    Case(lambda: go_on(lambda state: state["run"]["measured"]["averages"]["sums"].pop("weight"))),
    Case(lambda: go_on(batch_size=2)),
    Case(lambda: go_on(stop_after=32, batch_size=8)),
    Case(lambda: go_on(stop_after=12, accumulate_grad_batches=2)),
]
