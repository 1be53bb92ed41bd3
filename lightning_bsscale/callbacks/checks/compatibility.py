"""Other callbacks and the other package: beside whom the callbacks cannot work, and why."""

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

# The two packages that Lightning comes in. A class of one is unknown to the other.
NAMESPACES = ("lightning", "pytorch_lightning")


def check_namespace(trainer: Any, callback: str) -> None:
    """Refuses the Trainer of the other package, which knows neither our base class nor our module's.

    Args:
        trainer: whose `fit` has begun
        callback: the callback's name, for the message

    Raises:
        TypeError: it is no Trainer of `lightning.pytorch`
    """
    if isinstance(trainer, pl.Trainer):
        return
    found = type(trainer)
    packages = [base.__module__.split(".")[0] for base in found.__mro__]
    package = next((name for name in packages if name in NAMESPACES), packages[0])
    raise TypeError(
        f"{callback} is a callback of lightning.pytorch, and was given to a Trainer of another package, {package} "
        f"({found.__module__}.{found.__qualname__}). Import the Trainer, the LightningModule and all callbacks from "
        f"one: `import lightning.pytorch as pl` instead of `import {package} as pl`."
    )


def _is_instance(callback: object, cls: type[Any]) -> bool:
    # Lightning's callbacks are the same under both names, and a list of callbacks may hold the other package's.
    return isinstance(callback, cls) or any(
        base.__name__ == cls.__name__ and base.__module__.split(".")[0] in NAMESPACES for base in type(callback).__mro__
    )


def check_incompatible(trainer: pl.Trainer, callback: str, others: dict[type[Any], str]) -> None:
    """Refuses callbacks that do the same or write the same things.

    Args:
        trainer: the Trainer
        callback: the callback's name, for the message
        others: class to refuse, and why

    Raises:
        MisconfigurationException: the Trainer has one of them
    """
    for other in trainer.callbacks:  # type: ignore[attr-defined]
        for cls, why in others.items():
            if _is_instance(other, cls):
                raise MisconfigurationException(
                    f"{callback} cannot work beside {type(other).__name__}: {why}. Remove one of the two."
                )


INCOMPATIBLE_CALLBACKS: dict[type[Any], str] = {
    GradientAccumulationScheduler: "both would set trainer.accumulate_grad_batches",
    StochasticWeightAveraging: "it sets trainer.accumulate_grad_batches for an epoch without training",
}
if hasattr(callbacks, "SpikeDetection"):
    INCOMPATIBLE_CALLBACKS[callbacks.SpikeDetection] = (
        "it compares losses that Lightning has divided by the number of micro-batches of its window, and takes a short "
        "window after long ones for a spike"
    )

FINDERS: dict[type[Any], str] = {
    LearningRateFinder: "it would search with the window and the factor of the last step",
    BatchSizeFinder: "it would change the size of the micro-batch, in which the batch and the budget are counted",
}


def check_finders(trainer: pl.Trainer, callback: str) -> None:
    """Refuses finders that search in mid-training: a subclass that brings a hook of the training loop.

    Args:
        trainer: the Trainer
        callback: the callback's name, for the message

    Raises:
        MisconfigurationException: the Trainer has one
    """
    for other in trainer.callbacks:  # type: ignore[attr-defined]
        for cls, why in FINDERS.items():
            if not _is_instance(other, cls):
                continue
            for hook in ("on_train_epoch_start", "on_train_batch_start", "on_train_batch_end", "on_train_epoch_end"):
                # By its name, as the base class may be the other package's.
                if getattr(type(other), hook).__qualname__ != f"Callback.{hook}":
                    raise MisconfigurationException(
                        f"{callback} cannot work beside {type(other).__name__}, a {cls.__name__} with {hook}: in "
                        f"mid-training {why}. Let it search before training, in on_fit_start or by a Tuner."
                    )
