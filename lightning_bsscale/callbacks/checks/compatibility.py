"""Callbacks and packages that cannot be combined with ours, and why."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
)

# The two packages of Lightning. Neither recognises the classes of the other.
NAMESPACES = ("lightning", "pytorch_lightning")


def check_namespace(trainer: Any, callback: str) -> None:
    """Refuse a Trainer of the other package, which recognises neither our base class nor our module's.

    Args:
        trainer: the Trainer that calls the hook
        callback: the callback's name, for the message

    Raises:
        TypeError: If it is not a Trainer of `lightning.pytorch`.
    """
    if isinstance(trainer, pl.Trainer):
        return
    received = type(trainer)
    packages = [base.__module__.split(".")[0] for base in received.__mro__]
    package = next((name for name in packages if name in NAMESPACES), packages[0])
    raise TypeError(
        f"{callback} is a callback of lightning.pytorch, but was passed to a Trainer of another package, {package} "
        f"({received.__module__}.{received.__qualname__}). Import the Trainer, the LightningModule and all callbacks "
        f"from one: `import lightning.pytorch as pl` instead of `import {package} as pl`."
    )


def _is_instance(callback: object, cls: type[Any]) -> bool:
    # A list of callbacks may hold the other package's, with classes of the same names.
    return isinstance(callback, cls) or any(
        base.__name__ == cls.__name__ and base.__module__.split(".")[0] in NAMESPACES for base in type(callback).__mro__
    )


def check_incompatible(trainer: pl.Trainer, callback: str, others: dict[type[Any], str]) -> None:
    """Refuse callbacks that do or write the same things.

    Args:
        trainer: the Trainer
        callback: the callback's name, for the message
        others: classes to refuse, and why

    Raises:
        MisconfigurationException: If the Trainer has one of them.
    """
    for other in trainer.callbacks:  # type: ignore[attr-defined]
        for cls, why in others.items():
            if _is_instance(other, cls):
                raise MisconfigurationException(
                    f"{callback} cannot be combined with {type(other).__name__}: {why}. Remove one of the two."
                )


INCOMPATIBLE_CALLBACKS: dict[type[Any], str] = {
    GradientAccumulationScheduler: "both would set trainer.accumulate_grad_batches",
    StochasticWeightAveraging: "it sets trainer.accumulate_grad_batches for an epoch without training",
}
if hasattr(callbacks, "SpikeDetection"):
    INCOMPATIBLE_CALLBACKS[callbacks.SpikeDetection] = (
        "it compares losses that Lightning has divided by the number of loader batches of its window, and mistakes a "
        "short window after long ones for a spike"
    )

FINDERS: dict[type[Any], str] = {
    LearningRateFinder: "it would search with the window and the factor of the last step",
    BatchSizeFinder: "it would change the loader batch, in which the batch and the budget are counted",
}


def check_finders(trainer: pl.Trainer, callback: str) -> None:
    """Refuse finders that search during training: subclasses that override a hook of the training loop.

    Args:
        trainer: the Trainer
        callback: the callback's name, for the message

    Raises:
        MisconfigurationException: If the Trainer has one.
    """
    for other in trainer.callbacks:  # type: ignore[attr-defined]
        for cls, why in FINDERS.items():
            if not _is_instance(other, cls):
                continue
            for hook in ("on_train_epoch_start", "on_train_batch_start", "on_train_batch_end", "on_train_epoch_end"):
                # Compared by name, because the base class may be the other package's.
                if getattr(type(other), hook).__qualname__ != f"Callback.{hook}":
                    raise MisconfigurationException(
                        f"{callback} cannot be combined with {type(other).__name__}, a {cls.__name__} with {hook}: "
                        f"during training {why}. Run it before training, in on_fit_start or with a Tuner."
                    )
