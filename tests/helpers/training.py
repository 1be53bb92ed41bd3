"""Models, loaders and policies with a known answer, for the tests of the callbacks."""

from __future__ import annotations

import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.optim import SGD, lr_scheduler
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from lightning_bsscale import BatchSizeScaler
from lightning_bsscale.callbacks.state.checkpoint import read_run
from lightning_bsscale.theory.policies import Decision, Policy

QUIET = dict(
    accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
)


def fit(module, loader, callbacks=(), *, val=None, ckpt_path=None, **settings):
    """Trains, and checks that Trainer, optimizer and model are as the user made them, also after an exception."""
    with warnings.catch_warnings():
        # Of Lightning's advice, what is true of every small test.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*logging interval.*")
        trainer = pl.Trainer(**{**QUIET, **settings}, callbacks=list(callbacks))
        found = trainer.accumulate_grad_batches
        try:
            trainer.fit(module, loader, val, ckpt_path=ckpt_path)
        finally:
            assert_nothing_left(trainer, module, found)
    return trainer


def assert_nothing_left(trainer, module, accumulate):
    assert type(trainer.accumulate_grad_batches) is type(accumulate)
    assert trainer.accumulate_grad_batches == accumulate
    assert not {"training_step", "backward"} & vars(trainer.strategy).keys()
    assert not any(p._backward_hooks for p in module.parameters())
    for optimizer in trainer.optimizers:
        # Not every optimizer has tables of hooks, nor its step on the class.
        assert not getattr(optimizer, "_optimizer_step_pre_hooks", None)
        assert not getattr(optimizer, "_optimizer_step_post_hooks", None)
        step = getattr(optimizer.step, "__func__", optimizer.step)
        assert "lightning_bsscale" not in Path(step.__code__.co_filename).parts
    assert all(config.frequency < 10_000 for config in trainer.lr_scheduler_configs)


class Broken(Exception):
    """What breaks on purpose."""


def assert_same_weights(one, other):
    """To the bit."""
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


class Numbers(Dataset):
    """Item i is i; its epoch's offset is added by the module."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return torch.tensor([index])


class UnsizedNumbers(IterableDataset):
    """Shared out over workers, one number after the other."""

    def __init__(self, length):
        self.length = length

    def __iter__(self):
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return iter(torch.arange(first, self.length, step).unsqueeze(1))


class Unsized(IterableDataset):
    """The items, of which nobody knows how many they are."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


class OneHot(pl.LightningModule):
    """Loader batch i of the whole training has gradient e_i, so the gradient at a step reads off every weight."""

    def __init__(self, total, epoch_length):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(total))
        self.epoch_length = epoch_length
        self.epoch = -1
        self.steps: list[dict[int, float]] = []

    def on_train_epoch_start(self):
        self.epoch += 1

    def training_step(self, batch, batch_idx):
        return self.weight[self.epoch * self.epoch_length + batch[:, 0]].mean()  # of several, if they are gathered

    def on_before_optimizer_step(self, optimizer):
        grad = self.weight.grad
        self.steps.append({int(i): float(grad[i]) for i in grad.nonzero().flatten()})

    def validation_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def assert_measured_right(one):
    """Loader batches with orthogonal gradients of length one: whatever the window, tr Σ = 1 and ‖G‖² = 0."""
    for made in one.history:
        assert abs(made.trace - 1) < 1e-6
        assert abs(made.grad_sq) < 1e-6


class Scripted(Policy):
    """Asks for a scripted sequence of batches, then holds."""

    def __init__(self, batches):
        self.batches = list(batches)
        self.asked: list[int] = []
        self.situations = []

    def decide(self, situation, limits):
        self.situations.append(situation)
        wanted = self.batches.pop(0) if self.batches else situation.batch_size
        self.asked.append(limits.clip(wanted))
        return Decision(batch_size=wanted, reason="as scripted")


class ByStep(Policy):
    """Asks for a batch by the number of optimizer steps made, so a resumed run needs no state of it."""

    def __init__(self, batches):
        self.batches = list(batches)

    def decide(self, situation, limits):
        reason = f"step {situation.optimizer_steps}"
        wanted = self.batches[situation.optimizer_steps % len(self.batches)]
        return Decision(batch_size=wanted, reason=reason, code=reason)


def scripted(*batches, **options):
    """A scaler that takes these batch sizes one after the other, then holds the last."""
    defaults = dict(policy=Scripted(batches), warmup=0, memory=1.0, max_batch_size=400, lr_rule="linear")
    defaults |= dict(split=False, max_micro_batch_size=None)
    return BatchSizeScaler(**{**defaults, **options})


def watching(callback):
    """A callback of this class that measures every window and changes nothing."""
    scaler_only = dict(policy=Scripted([]), warmup=0) if callback is BatchSizeScaler else {}
    return callback(measure_every=1, memory=1.0, **scaler_only)


def gradient_scaler(init_scale=2.0**8, **options):
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, **options)
    return dict(plugins=[MixedPrecision("16-mixed", "cpu", scaler)])


class KeepSteps(Logger):
    """Keeps what was logged, and at which step."""

    def __init__(self):
        super().__init__()
        self.logged: list[tuple[int, dict[str, float]]] = []

    @property
    def name(self):
        return "keep"

    @property
    def version(self):
        return 0

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.logged.append((step, dict(metrics)))

    def points(self, key):
        """Step and value of each time that the key was logged."""
        return [(step, metrics[key]) for step, metrics in self.logged if key in metrics]


class Regression(pl.LightningModule):
    """A small regression whose optimizer and scheduler the test chooses."""

    def __init__(self, optimizer=None, scheduler=None, hidden=0):
        super().__init__()
        torch.manual_seed(1)
        self.net = (
            nn.Linear(8, 2) if not hidden else nn.Sequential(nn.Linear(8, hidden), nn.Tanh(), nn.Linear(hidden, 2))
        )
        self.make_optimizer = optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9))
        self.make_scheduler = scheduler

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def configure_optimizers(self):
        optimizer = self.make_optimizer(self.parameters())
        if self.make_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(optimizer, self.trainer)}


def one_cycle(total=None):
    """Of so many steps, or of as many as Lightning's documentation says: it raises if it is stepped once too often."""

    def make(optimizer, trainer):
        steps = int(trainer.estimated_stepping_batches) if total is None else total
        return {"scheduler": lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps), "interval": "step"}

    return make


class CountsWindows(Regression):
    """Counts the examples of each window."""

    def on_fit_start(self):
        self.windows, self.seen = [], 0

    def training_step(self, batch, batch_idx):
        self.seen += len(batch[0])
        return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer):
        self.windows.append(self.seen)
        self.seen = 0


class Watched(Regression):
    """Validates, keeps the examples seen by each step, and fails on demand."""

    breaks_at = None
    clock = 0.0  # in which every loader batch takes a second

    def __init__(self, **options):
        super().__init__(
            lambda p: SGD(p, lr=0.05), lambda o, t: {"scheduler": lr_scheduler.StepLR(o, 3, 0.9), "interval": "step"}
        )
        self.seen, self.examples_at = 0, {0: 0}
        self.__dict__.update(options)

    def training_step(self, batch, batch_idx):
        if (self.current_epoch, batch_idx) == self.breaks_at:
            raise RuntimeError("on purpose")
        self.seen += len(batch[0])
        self.clock += 1.0
        return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer):
        self.examples_at[self.global_step + 1] = self.seen

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", 1.0)

    test_step = validation_step


class Saves(pl.Callback):
    """Stands where the user put it, and saves after one loader batch, or at an epoch's end (None)."""

    def __init__(self, path, batch_idx, epoch=0):
        self.path, self.at = path, (epoch, batch_idx)

    def on_train_batch_end(self, trainer, pl_module, outputs=None, batch=None, batch_idx=None):
        if (trainer.current_epoch, batch_idx) == self.at:
            trainer.save_checkpoint(self.path)

    on_train_epoch_end = on_train_batch_end


SCALED_KEYS = ("weight_decay", "betas", "momentum", "dampening")


def values_of(group):
    """What else than the learning rate may follow the batch, of one parameter group, as numbers."""
    return {key: _as_numbers(group[key]) for key in SCALED_KEYS if key in group}


def _as_numbers(value):
    if isinstance(value, (tuple, list)):
        return tuple(map(_as_numbers, value))
    return value.item() if isinstance(value, torch.Tensor) else value


def keeping_values(optimizer):
    """The optimizer's class, which keeps what it updates with: for each step the values of each group."""

    class Keeps(optimizer):
        used = ()

        def step(self, closure=None):
            loss = None if closure is None else closure()
            self.used = [*self.used, [values_of(group) for group in self.param_groups]]
            super().step()
            return loss

    return Keeps


class KeepsRates(torch.optim.SGD):
    """SGD that keeps the rates that it really updates with."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.used = []

    def step(self, closure=None):
        loss = None if closure is None else closure()  # a gradient scaler has called it before
        self.used.append([float(group["lr"]) for group in self.param_groups])
        super().step()
        return loss


def regression_loader(examples=400, batch_size=4, noise=1.0, shuffle=False, drop_last=False):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(examples, 8, generator=generator)
    y = x @ torch.randn(8, 2, generator=generator) + noise * torch.randn(examples, 2, generator=generator)
    return DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=batch_size, shuffle=shuffle, drop_last=drop_last)


class UnsizedRegression(IterableDataset):
    """The examples of `regression_loader`, and no length."""

    def __init__(self, examples):
        self.examples = regression_loader(examples).dataset

    def __iter__(self):
        return iter(self.examples)


def weights_after(callbacks, **settings):
    """Weights of a training with shuffled data and ragged epochs: 51 loader batches of 4 (the last of 3)."""
    module = Regression(lambda p: torch.optim.AdamW(p, lr=0.01), hidden=5)
    torch.manual_seed(0)
    fit(module, regression_loader(203, shuffle=True), callbacks, max_epochs=3, **settings)
    return [parameter.detach().clone() for parameter in module.parameters()]


def run_of(callback):
    """The run that a callback's state holds, or a state taken from a checkpoint."""
    state = callback if isinstance(callback, dict) else callback.state_dict()
    return read_run(state, "test")
