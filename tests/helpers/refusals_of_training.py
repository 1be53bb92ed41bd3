"""What brings each message of docs/errors.md about that a training says: one trigger a row, keyed by its message."""

from __future__ import annotations

import contextlib
import pickle
import tempfile
import warnings
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader

from lightning_bsscale import BatchSizeScaler, Decision, GradientNoiseScaleMonitor
from lightning_bsscale.callbacks import gradient_watch
from lightning_bsscale.callbacks.checks import preflight
from lightning_bsscale.callbacks.state.spawn import Outcome, _SentOutcome
from lightning_bsscale.callbacks.trainer import accumulation, loaders
from lightning_bsscale.gradients.shard_differences import UnsupportedSharding
from lightning_bsscale.journal import Journal
from lightning_bsscale.theory.schedules import Schedule
from tests.helpers.refusals import TRIGGERS, trigger
from tests.helpers.training import QUIET, Regression, Scripted, UnsizedNumbers, assert_nothing_left, regression_loader


def train(callback=None, *, module=None, loader=None, others=(), ckpt_path=None, **settings):
    """One training; what is raised comes through, and nothing may be left behind by then."""
    module = module or Regression()
    callback = callback or BatchSizeScaler()
    trainer = pl.Trainer(**{**QUIET, "max_epochs": 1, **settings}, callbacks=[callback, *others])
    accumulate = trainer.accumulate_grad_batches
    try:
        trainer.fit(module, regression_loader(40) if loader is None else loader, ckpt_path=ckpt_path)
    finally:
        assert_nothing_left(trainer, module, accumulate)
    return trainer


# ---------------------------------------------------------------- when training is set up


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


class Returns(Regression):
    """Whose `configure_optimizers` returns what the test chooses."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def configure_optimizers(self):
        return self.answer


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
    module.net = torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
    return module


@trigger("… cannot work with …: it accumulates gradients by itself")
def _():
    # DeepSpeed is not there; test_preflight.py holds that its class answers so.
    with mock.patch.object(SingleDeviceStrategy, "handles_gradient_accumulation", property(lambda self: True)):
        train()


@trigger("… works on one device, with DDP and with FSDP")
def _():
    with mock.patch.object(pl.Trainer, "world_size", 2):
        train()


@trigger("… cannot work with tensor parallelism")
def _():
    mesh = {"tensor_parallel": SimpleNamespace(size=lambda: 2)}
    with (
        mock.patch.object(preflight, "ModelParallelStrategy", SingleDeviceStrategy),
        mock.patch.object(SingleDeviceStrategy, "device_mesh", mesh, create=True),
    ):
        train()


@trigger("… cannot work with DDPStrategy(static_graph=True)")
def _():
    with mock.patch.object(SingleDeviceStrategy, "_ddp_kwargs", {"static_graph": True}, create=True):
        train()


@trigger("… cannot work with post-local SGD (DDPStrategy(model_averaging_period=...))")
def _():
    with mock.patch.object(SingleDeviceStrategy, "_model_averaging_period", 4, create=True):
        train()


@trigger("The model has SyncBatchNorm: each rank's gradient depends on the other ranks' examples")
def _():
    preflight.warn_batch_norm(torch.nn.SyncBatchNorm(2), world_size=2)  # torch runs it on GPUs only


@trigger("Trainer(gradient_clip_val=…) clips by norm, which Lightning does not do with FSDPStrategy")
def _():
    with mock.patch.object(preflight, "FSDPStrategy", SingleDeviceStrategy):
        train(gradient_clip_val=1.0)


@trigger("The train dataloaders differ between the ranks")
def _():
    with mock.patch.object(loaders, "extremes", return_value=([10.0], [12.0])):
        train()


@trigger("The gradients cannot be measured with … here")
def _():
    with mock.patch.object(gradient_watch, "choose_watcher", mock.Mock(side_effect=UnsupportedSharding("why"))):
        train()


TRIGGERS |= {
    "… is a callback of lightning.pytorch, and was given to a Trainer of another package": lambda: (
        # test_neighbours.py does it with the other package's own Trainer, where that is installed.
        BatchSizeScaler().setup(SimpleNamespace(), Regression(), "fit")
    ),
    "… needs automatic optimization, and … sets automatic_optimization = False": lambda: train(module=by_hand()),
    "… cannot work beside …: …. Remove one of the two": lambda: train(others=[GradientNoiseScaleMonitor()]),
    "… cannot work beside …, a … with …: in mid-training …": lambda: train(others=[FindsLate()]),
    "Trainer(min_steps=…) counts optimizer steps, of which BatchSizeScaler makes fewer": lambda: train(min_steps=5),
    "… needs an optimizer, and configure_optimizers returns none": lambda: train(module=Returns([])),
    "… cannot work with …: in one step it calls its closure": lambda: train(
        module=Regression(torch.optim.LBFGS), callback=GradientNoiseScaleMonitor()
    ),
    "… needs the rate in every parameter group of the optimizer, and …": lambda: train(
        module=Regression(Unknown), callback=BatchSizeScaler(lr_rule="sqrt")
    ),
    "BatchSizeScaler applies the learning-rate factor within optimizer.step(), and the step of … cannot be wrapped": (
        lambda: train(BatchSizeScaler(lr_rule="sqrt"), module=Regression(StepIsAProperty))
    ),
    "BatchSizeScaler sets the learning rate in the optimizer's parameter groups, and ….param_groups makes new "
    "dictionaries": lambda: train(BatchSizeScaler(lr_rule="sqrt"), module=Regression(CopiesItsGroups)),
    "lr_rule='auto' does not know the optimizer …": lambda: train(module=Regression(lambda p: Unknown(p, lr=0.1))),
    "BatchSizeScaler(schedule=…) would own the rate, and configure_optimizers returns a scheduler": lambda: train(
        BatchSizeScaler(schedule="cosine"), module=Regression(scheduler=with_scheduler)
    ),
    "bsscale: dry_run=True changes nothing, so schedule=… is not applied": lambda: train(
        BatchSizeScaler(dry_run=True, schedule="cosine")
    ),
    "The model has …: its output depends on the micro-batch": lambda: train(module=normalised()),
}


class FitsWithin(pl.Callback):
    def on_train_start(self, trainer, pl_module):
        train(trainer.callbacks[0])


@trigger("This … is part of the fit of another Trainer, which has not ended")
def _():
    train(others=[FitsWithin()])


# ---------------------------------------------------------------- at the first micro-batch


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


@trigger("This Python does not compute")
def _():
    with mock.patch.object(accumulation._Window, "__rmod__", lambda self, other: int(other) % int(self)):
        train()


@trigger("The journal … cannot be created (…)")
def _():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "notes.txt")
        path.write_text("mine\n")
        train(BatchSizeScaler(record=path / "run.jsonl"))


@trigger("record=True writes into the log folder, and a journal is a local file; the log folder is …")
def _():
    train(BatchSizeScaler(record=True), default_root_dir="memory://runs")


@trigger("bsscale: another process is writing to the journal … of the resumed run")
def _():
    with tempfile.TemporaryDirectory() as folder:
        path, saved = Path(folder, "run.jsonl"), Path(folder, "run.ckpt")
        scaler = BatchSizeScaler(record=path)
        train(scaler).save_checkpoint(saved)
        with contextlib.closing(Journal(path, {}, resumes=scaler.state_dict()["journal"])):
            train(BatchSizeScaler(record=path), ckpt_path=saved, max_epochs=2)


TRIGGERS |= {
    "The number of examples in a batch must be known before the training step, and Lightning shows no batch": lambda: (
        train(module=TakesTheIterator())
    ),
    "The number of examples in a batch of type … cannot be found": lambda: train(loader=holding({"text": "none"})),
    "batch_size_fn returned … examples; a positive whole number is needed": lambda: train(
        BatchSizeScaler(batch_size_fn=lambda batch: 0)
    ),
    "The loader gave a batch of … examples; a positive whole number is needed": lambda: train(
        loader=holding((torch.zeros(0, 8), torch.zeros(0, 2)))
    ),
    "The number of examples of this training is unknown": lambda: train(loader=DataLoader(UnsizedNumbers(40))),
    "max_batch_size=… is below the starting batch of … examples": lambda: train(BatchSizeScaler(max_batch_size=3)),
    "total_examples=… is less than one starting batch of … examples": lambda: train(BatchSizeScaler(total_examples=3)),
    "Trainer(min_epochs=…) asks for … examples, and the budget": lambda: train(
        BatchSizeScaler(total_examples=44), min_epochs=2, max_epochs=2
    ),
    "bsscale: while a step has one micro-batch on one device, the noise scale cannot be measured": lambda: train(
        BatchSizeScaler(dry_run=True)
    ),
    "GradientNoiseScaleMonitor needs at least two micro-batches a step to measure, and with": lambda: train(
        GradientNoiseScaleMonitor()
    ),
    "GradientNoiseScaleMonitor needs at least two micro-batches a step to measure, and an epoch": lambda: train(
        GradientNoiseScaleMonitor(), accumulate_grad_batches=2, limit_train_batches=1
    ),
    "bsscale: warmup=… examples is all of this training": lambda: train(BatchSizeScaler(warmup=40)),
    "bsscale: the noise scale can hardly be resolved in this training": lambda: train(
        BatchSizeScaler(memory=0.005), max_epochs=15
    ),
}


@trigger("bsscale: the tensors in a batch of type … differ in their first dimension")
def _():
    with mock.patch.object(loaders, "_warned_types", set()):  # said once in a process
        train(module=FirstTensorIsOther(), loader=DataLoader(range(8), batch_size=4, collate_fn=other_first))


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


TRIGGERS |= {
    "bsscale: the gradient in .grad at the step… is not the mean of what the backward passes": lambda: train(
        module=AddsNoise(), accumulate_grad_batches=2
    ),
    "the ratio of the rule … must be a finite number above 0, got …": lambda: train(
        BatchSizeScaler(policy=Scripted([8]), lr_rule=Answers(0.0))
    ),
    "the factor that the rule … applies must be a finite number above 0, got …": lambda: train(
        BatchSizeScaler(policy=Scripted([8]), lr_rule=Answers(1.0, applied=float("nan")))
    ),
    "the factor of the schedule … must be a finite number at least 0, got …": lambda: train(
        BatchSizeScaler(schedule=Factor(-1.0))
    ),
    "….decide answered …; a Decision with a finite positive batch_size is needed": lambda: train(
        BatchSizeScaler(policy=Answers(Decision(batch_size="8", reason="as a word")))
    ),
    "bsscale: the first micro-batch had … examples, the first … have … on average": lambda: train(
        loader=holding(*[(torch.ones(n, 8), torch.ones(n, 2)) for n in [1] + 60 * [4]])
    ),
    "BatchSizeScaler applies the learning-rate factor within optimizer.step(), and in the last … optimizer steps "
    "….step was not called": lambda: train(
        BatchSizeScaler(policy=Scripted([8]), warmup=0, max_batch_size=8), module=StepsByItself(), max_epochs=6
    ),
    "bsscale: … computes its learning rate anew in each step": (
        lambda: train(BatchSizeScaler(max_batch_size=8), module=Regression(lambda p: ComputesItsOwn(p, lr=0.1)))
    ),
    "bsscale: ….lr_scheduler_step is overridden": lambda: train(
        BatchSizeScaler(max_batch_size=8), module=StepsItsScheduler(scheduler=with_scheduler)
    ),
    "bsscale: the last … measured windows held a gradient that is not finite": lambda: train(
        BatchSizeScaler(measure_every=1, memory=1.0), module=NotFinite(), accumulate_grad_batches=2, max_epochs=3
    ),
    "bsscale: the last … micro-batches of an epoch were not stepped with": lambda: train(
        loader=DataLoader(Claims(), batch_size=None), accumulate_grad_batches=4
    ),
}


def sent_home(folder):
    """What a callback has to show, as another process sends it, and the callback."""
    scaler = BatchSizeScaler()
    with mock.patch.object(tempfile, "tempdir", folder):
        return ForkingPickler.dumps(_SentOutcome(scaler._channel._name, Outcome(), folder)), scaler


@trigger("bsscale: what the callback measured and decided could not be written for the process that called fit")
def _():
    sent_home("/nowhere")


@trigger("bsscale: what the callback measured and decided could not be read back")
def _():
    with tempfile.TemporaryDirectory() as folder:
        sent, _scaler = sent_home(folder)
    pickle.loads(sent)


# ---------------------------------------------------------------- when a run goes on


def go_on(change=lambda state: None, *, stop_after=8, batch_size=4, **settings):
    """A run that is saved after so many examples, its state changed, and the run that goes on from it."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "saved.ckpt"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is looked for is what the second run says

            class Saves(pl.Callback):
                def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                    if (batch_idx + 1) * 4 == stop_after:
                        trainer.save_checkpoint(path)

            train(others=[Saves()], **settings)
        saved = torch.load(path, weights_only=True)
        change(saved["callbacks"]["BatchSizeScaler"])
        torch.save(saved, path)
        train(loader=regression_loader(40, batch_size=batch_size), ckpt_path=path, **settings)


TRIGGERS |= {
    "The checkpoint holds a … state of schema …; this version reads …": lambda: go_on(
        lambda state: state.update(schema=99)
    ),
    "The checkpoint holds a damaged … state: …": lambda: go_on(
        lambda state: state["run"]["measured"]["averages"]["sums"].pop("weight")
    ),
    "bsscale: going on with …. The batch of … examples …": lambda: go_on(batch_size=2),
    "bsscale: the checkpoint was saved after … micro-batches of an epoch that now has …": lambda: go_on(
        stop_after=32, batch_size=8
    ),
    "bsscale: the checkpoint was saved within a window": lambda: go_on(stop_after=12, accumulate_grad_batches=2),
}
