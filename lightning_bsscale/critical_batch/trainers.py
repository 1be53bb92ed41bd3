"""The Trainers of a probe: one for each branch, for the noise scale, and for the held-out loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_bsscale.callbacks.trainer.batches import rows_of
from lightning_bsscale.callbacks.trainer.learning_rate import ScopedFactor, reset_to_initial
from lightning_bsscale.critical_batch.checkpoint import load_checkpoint
from lightning_bsscale.critical_batch.probe import ProbeError
from lightning_bsscale.functional import measure_noise_scale
from lightning_bsscale.theory.checks import check_integer
from lightning_bsscale.theory.noise_report import NoiseReport

__all__ = ["Trainers"]

_OWN: dict[str, Any] = {
    "max_epochs": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


@dataclass(slots=True)
class Trainers:
    """Makes Trainers: for branches, for the noise scale, and for the held-out loss."""

    module: pl.LightningModule
    val_loader: Any
    datamodule: pl.LightningDataModule | None
    options: dict[str, Any]
    ckpt_path: str | Path | None
    monitor: str | None
    seed: int
    checkpoint: dict[str, Any] | None = None
    accumulate: int | None = None
    _limit: int = 1

    def __post_init__(self) -> None:
        accumulate = self.options.pop("accumulate_grad_batches", None)
        if accumulate is not None:
            self.accumulate = check_integer("accumulate_grad_batches", accumulate, at_least=1)
        for name in ("max_epochs", "max_steps", "callbacks", "default_root_dir", "val_check_interval", *_OWN):
            self.options.pop(name, None)
        for name in ("limit_train_batches", "limit_val_batches", "min_epochs", "min_steps", "max_time"):
            self.options.pop(name, None)
        self.options["devices"] = self.options.get("devices", 1)
        if self.ckpt_path is not None:
            self.checkpoint = load_checkpoint(self.ckpt_path)

    def limit_held_out(self, examples: int) -> None:
        """Use so many held-out examples at most."""
        first = next(iter(self.val_loader), None)
        if first is None:
            raise ProbeError("the validation loader yields nothing: pass one with held-out examples")
        self._limit = max(1, check_integer("held_out_examples", examples, at_least=1) // max(1, rows_of(first)))

    def _trainer(self, callback: pl.Callback, accumulate: int) -> pl.Trainer:
        trainer = pl.Trainer(
            **self.options,
            **_OWN,
            accumulate_grad_batches=accumulate,
            callbacks=[callback],
            limit_val_batches=0,
        )
        if trainer.world_size != 1:
            raise ProbeError(f"branches run on one device, but the Trainer has {trainer.world_size}: pass devices=1")
        return trainer

    def _fit(self, module: pl.LightningModule, callback: pl.Callback, batches: Any, accumulate: int) -> None:
        with isolate_rng():
            torch.manual_seed(self.seed)
            trainer, loader = self._trainer(callback, accumulate), _Loader(batches)
            if self.datamodule is None:
                trainer.fit(module, loader)
            else:
                data: Any = copy.copy(self.datamodule)
                data.train_dataloader = lambda: loader
                trainer.fit(module, datamodule=data)

    def branch(
        self, batches: Sequence[Any], accumulate: int, factor: float, looks: Sequence[int] = ()
    ) -> tuple[float, list[float]]:
        """Train one branch.

        Args:
            batches: Its loader batches.
            accumulate: How many of them make a step.
            factor: On the learning rate.
            looks: Numbers of steps after which to look at the held-out loss, too.

        Returns:
            The held-out loss at its end, and those at the looks.
        """
        module, start = copy.deepcopy(self.module), _StartState(self.checkpoint, factor, looks)
        self._fit(module, start, batches, accumulate)
        last = self.held_out_loss(module)
        return last, [self._loss_of(module, start.seen[steps]) for steps in looks]

    def _loss_of(self, module: pl.LightningModule, weights: dict[str, Any]) -> float:
        module.load_state_dict(weights)
        return self.held_out_loss(module)

    def held_out_loss(self, module: pl.LightningModule | None) -> float:
        """Return the monitored metric; without a module that of the state to branch from."""
        if module is None:
            module = copy.deepcopy(self.module)
            if self.checkpoint is not None:
                load_weights(module, self.checkpoint)
        trainer = pl.Trainer(**self.options, **_OWN, limit_val_batches=self._limit)
        data: Any = None
        if self.datamodule is not None:
            data = copy.copy(self.datamodule)
            data.val_dataloader = lambda: self.val_loader
        with isolate_rng():
            torch.manual_seed(self.seed)
            found = trainer.validate(module, None if data else self.val_loader, verbose=False, datamodule=data)
        logged = dict(found[0]) if found else {}
        return float(logged[self._monitored(logged)])

    def _monitored(self, logged: dict[str, float]) -> str:
        candidates = [name for name in logged if "loss" in name.lower()]
        name = self.monitor or ("val_loss" if "val_loss" in logged else candidates[0] if len(candidates) == 1 else "")
        if name not in logged:
            listed = ", ".join(sorted(logged)) or "nothing"
            wanted = repr(self.monitor) if self.monitor else "a loss such as 'val_loss'"
            raise ProbeError(f"validation must log {wanted}, but it logs {listed}: name the metric by `monitor`")
        return name

    def noise(self, loader: Any, relative_error: float, confidence: float, seconds: float) -> NoiseReport:
        """Measure the noise scale at the state to branch from."""

        def measure(trainer: pl.Trainer, module: pl.LightningModule, optimizer: Any) -> NoiseReport:
            def loss(_: Any, batch: Any) -> Tensor:
                batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
                with trainer.precision_plugin.train_step_context():
                    output: Any = module.training_step(*_step_arguments(module, batch))
                found: Tensor = output["loss"] if isinstance(output, dict) else output
                return found

            with _without_logging(module):
                return measure_noise_scale(
                    module,
                    loader,
                    loss,
                    relative_error=relative_error,
                    confidence=confidence,
                    max_seconds=seconds,
                    optimizer=optimizer if self.checkpoint is not None else None,
                    batch_size_fn=rows_of,
                )

        callback = _Measuring(self.checkpoint, measure)
        self._fit(copy.deepcopy(self.module), callback, [next(iter(loader))], 1)
        assert callback.report is not None
        return callback.report

    def optimizer(self) -> Any:
        """Return the optimizer that the module makes, to choose the rule by its class."""
        callback = _Measuring(None, lambda *_: None)
        self._fit(copy.deepcopy(self.module), callback, [next(iter(self.val_loader))], 1)
        return callback.optimizer


class _StartState(pl.Callback):
    """Puts a branch into the checkpoint's state and its factor on the learning rate, and keeps the weights at looks."""

    def __init__(self, checkpoint: dict[str, Any] | None, factor: float, looks: Sequence[int] = ()) -> None:
        self._checkpoint, self._factor, self._looks = checkpoint, factor, looks
        self.seen: dict[int, dict[str, Any]] = {}
        self.optimizer: Any = None
        self._scoped: ScopedFactor | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if len(trainer.optimizers) != 1 or not pl_module.automatic_optimization:
            raise ProbeError(
                "branches need a module with one optimizer and automatic optimization, got "
                f"{len(trainer.optimizers)} and automatic_optimization = {pl_module.automatic_optimization}"
            )
        self.optimizer = trainer.optimizers[0]
        trainer.strategy.lr_scheduler_configs = []  # the learning rate of a branch is that of its moment
        if self._checkpoint is None:
            reset_to_initial(self.optimizer)
        else:
            load_weights(pl_module, self._checkpoint)
            trainer.strategy.load_optimizer_state_dict(self._checkpoint)
        self._scoped = ScopedFactor(self.optimizer)
        self._scoped.change(self._factor, 1.0)

    def on_train_batch_start(self, *_: Any) -> None:
        if self._scoped is not None:
            self._scoped.begin_window()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        steps = trainer.global_step
        if steps in self._looks and steps not in self.seen:
            state = pl_module.state_dict()  # to the host, as an accelerator may have no room for several models
            self.seen[steps] = {
                name: value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)
                for name, value in state.items()
            }

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._scoped is not None:
            self._scoped.remove()


class _Measuring(_StartState):
    """Measures the noise scale where training would begin, and stops."""

    def __init__(self, checkpoint: dict[str, Any] | None, measure: Callable[..., NoiseReport | None]) -> None:
        super().__init__(checkpoint, 1.0)
        self._measure = measure
        self.report: NoiseReport | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.report = self._measure(trainer, pl_module, self.optimizer)
        trainer.fit_loop.epoch_loop.max_steps = 0


def load_weights(module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
    """Load a checkpoint's weights as Lightning does."""
    module.on_load_checkpoint(checkpoint)
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except (KeyError, RuntimeError) as error:
        raise ProbeError(
            "the checkpoint does not fit the module, which must be the one that was trained: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error


class _Loader:
    """Batches as a loader, so that Lightning does not take a list for several loaders."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)


def _step_arguments(module: pl.LightningModule, batch: Any) -> list[Any]:
    code = module.training_step.__code__
    return [batch, 0][: max(1, code.co_argcount - 1)]


@contextmanager
def _without_logging(module: pl.LightningModule) -> Iterator[None]:
    names = ("log", "log_dict")
    for name in names:
        module.__dict__[name] = lambda *_, **__: None
    try:
        yield
    finally:
        for name in names:
            del module.__dict__[name]
