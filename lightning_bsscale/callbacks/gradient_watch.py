"""One window's gradients, from the first backward pass to sums that all ranks share. It looks and changes nothing.

A window's sums stay on the device and are read at the end of the next window, so that no step waits for its own
measurement. Examples and seconds that the ranks must share travel with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Optimizer

from lightning_bsscale.callbacks.trainer.timing import StepTimes
from lightning_bsscale.gradients.choose import UnsupportedSharding, choose_watcher
from lightning_bsscale.gradients.comparison import Difference, not_compared
from lightning_bsscale.gradients.reduce import PendingSums
from lightning_bsscale.gradients.shares import share_of_sums
from lightning_bsscale.gradients.watcher import WindowShare
from lightning_bsscale.theory.measured import Arrived, ClosedWindow
from lightning_bsscale.theory.records import WindowSums
from lightning_bsscale.theory.state import OpenWindow

# A message: the sums, what the host adds, and the comparison.
_SUMS = len(WindowSums.__dataclass_fields__)
_OF_HOST = 3


def watched_parameters(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters whose gradient the optimizer steps with now, each once.

    Args:
        optimizer: the optimizer

    Returns:
        the parameters of all groups
    """
    return list({id(p): p for group in optimizer.param_groups for p in group["params"]}.values())


class GradientWatch:
    """Watches the windows that are to be watched, and brings their sums to the host."""

    def __init__(self, trainer: pl.Trainer, optimizer: Optimizer) -> None:
        """Choose how to watch; nothing is registered until a window is measured.

        Args:
            trainer: for the strategy, the precision and the number of ranks
            optimizer: whose parameters to watch
        """
        self.optimizer = optimizer
        self.sends = True
        self.times = StepTimes(world_size=trainer.world_size)
        self.unsent_examples = 0.0
        self._trainer = trainer
        with self._explained():
            self._watcher = choose_watcher(
                trainer.strategy.model or trainer.lightning_module,
                lambda: watched_parameters(self.optimizer),
                world_size=trainer.world_size,
            )
        self._is_watching = False
        self._share: WindowShare | None = None
        self._in_flight: PendingSums | None = None
        self._worst = math.nan  # place of the parameter whose gradients differ most

    @contextmanager
    def _explained(self) -> Iterator[None]:
        # Some of what a watcher cannot do shows only in the first backward pass.
        try:
            yield
        except UnsupportedSharding as error:
            raise MisconfigurationException(
                f"The gradients cannot be measured with {type(self._trainer.strategy).__name__} here: {error}. Shard "
                "the model by fully_shard over one dimension, use DDP, or feed lightning_bsscale.GradientNoiseScale in "
                "a loop of your own."
            ) from error

    @property
    def samples_per_micro_batch(self) -> int:
        """Gradients that can be told apart in one micro-batch of all ranks: one for each, or one for all."""
        return 1 if self._watcher.sees_mean_over_ranks else self._trainer.world_size

    @property
    def has_gradient_scaler(self) -> bool:
        """Whether 16-bit mixed precision scales the loss."""
        return self._gradient_scaler is not None

    @property
    def _gradient_scaler(self) -> Any:
        return getattr(self._trainer.precision_plugin, "scaler", None)

    def follow(self, optimizer: Optimizer) -> None:
        """Change to another optimizer; the window in progress is not measured, as its parameters may be others.

        Args:
            optimizer: the one that steps from now on
        """
        self.stop()
        self.optimizer = optimizer

    def open(self, window: OpenWindow) -> None:
        """Begin a window, also where the last one never ended."""
        self.stop()
        self._share = None
        if window.is_watched:
            self._is_watching = True
            self._watcher.start_window(compared=window.is_compared)

    def before_backward(self) -> None:
        """Begin a micro-batch's backward pass."""
        if self._is_watching:
            with self._explained():
                self._watcher.start_sample()

    def after_backward(self, examples: int) -> None:
        """End a micro-batch's backward pass."""
        if self._is_watching:
            self._watcher.end_sample(examples)

    def before_step(self, window: OpenWindow) -> None:
        """Take the sums of a complete window, before anything clips the gradient."""
        if not self._is_watching:
            return
        self._is_watching = False
        ended = self._watcher.stop_window()
        # A training_step that returned None had no backward pass: its micro-batch has no gradient.
        if window.begun * self.samples_per_micro_batch < 2 or ended != window.begun:
            return
        scaler, scale = self._gradient_scaler, None
        if scaler is not None:
            # The scale is constant within a window, and applied to a one on the device it needs no transfer.
            scale = scaler.scale(torch.ones((), dtype=torch.float64, device=self._device))
        with self._explained():
            self._share = self._watcher.window_share(
                loss_divisor=window.loss_divisor,
                loss_scale=scale,
                # Optimizers that unscale for themselves step with the gradient of the scaled loss.
                is_grad_scaled=bool(getattr(self.optimizer, "_step_supports_amp_scaling", False)),
            )

    @property
    def _device(self) -> torch.device:
        return self._trainer.strategy.root_device

    @property
    def has_sums(self) -> bool:
        """Whether the gradients of the window that just ended were seen."""
        return self._share is not None

    def receive(self, pending: ClosedWindow | None) -> Arrived | None:
        """Return the sums of the pending window: those that a checkpoint held, or those on their way.

        Args:
            pending: the window, or None

        Returns:
            the record, the same on all ranks; None where nothing is on its way
        """
        arrived = self.look() if pending is None or pending.arrived is None else pending.arrived
        self._in_flight = None
        if arrived is not None:
            self.times.share((arrived.seconds_per_micro_batch, arrived.seconds_per_step))
        return arrived

    def look(self) -> Arrived | None:
        """Return the sums on their way, and leave them there: for a checkpoint."""
        if self._in_flight is None:
            return None
        numbers = self._in_flight.read()
        sums, of_host, compared = numbers[:_SUMS], numbers[_SUMS : _SUMS + _OF_HOST], numbers[_SUMS + _OF_HOST :]
        difference = Difference.read(compared)
        self._worst = difference.parameter
        ranks = self._trainer.world_size
        if ranks == 1:
            return Arrived(sums=WindowSums.read(sums), explained=difference.is_explained)
        examples, *seconds = of_host
        per_micro_batch, per_step = (None if math.isnan(value) else value / ranks for value in seconds)
        return Arrived(
            sums=WindowSums.read(sums),
            explained=difference.is_explained,
            examples=round(examples),
            seconds_per_micro_batch=per_micro_batch,
            seconds_per_step=per_step,
        )

    @property
    def most_changed(self) -> str | None:
        """Name of the parameter that differed most in the last comparison; None where it is not known."""
        watched = self._watcher.watched
        named = {id(p): name for name, p in self._trainer.lightning_module.named_parameters()}
        return named.get(id(watched[int(self._worst)])) if self._worst < len(watched) else None

    def discard(self) -> None:
        """Discard what was seen of the window that just ended: its gradients cannot be trusted."""
        self._share = None

    def end_window(self, window: OpenWindow, *, is_sent: bool) -> None:
        """End a window, and send its sums on their way.

        Args:
            window: the window
            is_sent: whether to send anything
        """
        self.unsent_examples += window.examples
        share, self._share = self._share, None
        if not is_sent:
            return
        share = share or self._unseen(window)
        of_host = [self.unsent_examples, *(math.nan if value is None else value for value in self.times.own)]
        self.unsent_examples = 0.0
        sums, difference = share.sums, share.difference.to(share.sums)
        host = torch.tensor(of_host, dtype=sums.dtype).to(sums.device, non_blocking=True)
        if self._trainer.world_size > 1:
            # Without the last number, which names a parameter: each rank may find another one. The sums may be
            # elsewhere, where parameters are offloaded.
            vector = torch.cat([sums, host, difference[:-1]]).to(self._device, torch.float64)
        else:
            vector = torch.cat([sums, host, difference])
        self._in_flight = PendingSums(vector, world_size=self._trainer.world_size)

    def _unseen(self, window: OpenWindow) -> WindowShare:
        # Every rank sends for every window that was to be measured, also one that saw nothing: its norms are NaN.
        nothing = torch.full((), math.nan, dtype=torch.float64, device=self._device)
        sums = share_of_sums(
            nothing,
            nothing,
            [window.examples / window.begun] * window.begun,
            loss_divisor=window.loss_divisor,
            ranks_in_sample=self._trainer.world_size // self.samples_per_micro_batch,
        )
        return WindowShare(sums, not_compared(self._device))

    def give_up_waiting(self) -> bool:
        """After an error another rank may be gone: leave what has not arrived, and send nothing more.

        Returns:
            whether nothing is on its way any more
        """
        self.sends = False
        if self._in_flight is not None and self._trainer.world_size > 1 and not self._in_flight.has_arrived:
            self._in_flight = None
        return self._in_flight is None

    def stop(self) -> None:
        """Take every hook away."""
        self._is_watching = False
        self._watcher.stop_window()
