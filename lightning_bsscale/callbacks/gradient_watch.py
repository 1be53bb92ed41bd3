"""Measure one window's gradients, from the first backward pass to the sums over all ranks.

A window's sums stay on the device and are read at the end of the next window, so that no step waits for its own
measurement. The examples and seconds that ranks share are sent with them.
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

from lightning_bsscale.callbacks.trainer.micro_batches import MicroBatches
from lightning_bsscale.callbacks.trainer.timing import StepTimes
from lightning_bsscale.gradients.choose import UnsupportedSharding, choose_watcher
from lightning_bsscale.gradients.comparison import Difference, not_compared
from lightning_bsscale.gradients.reduce import PendingSums, smallest_power, smallest_power_of_sum
from lightning_bsscale.gradients.watcher import WindowShare, share_of_sums
from lightning_bsscale.theory.frozen import changed
from lightning_bsscale.theory.measured import Arrived, ClosedWindow
from lightning_bsscale.theory.records import WindowSums
from lightning_bsscale.theory.state import OpenWindow

# A message holds the sums, the host's numbers, and the comparison.
_SUMS = len(WindowSums.__dataclass_fields__)
_OF_HOST = 7


def watched_parameters(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters of all groups of the optimizer, each once."""
    return list({id(p): p for group in optimizer.param_groups for p in group["params"]}.values())


class GradientWatch:
    """Watches the gradients of the windows to be measured, and transfers their sums to the host."""

    def __init__(self, trainer: pl.Trainer, optimizer: Optimizer, micro_batches: MicroBatches) -> None:
        """Choose a watcher; nothing is registered until a window is measured."""
        self.optimizer = optimizer
        self.sends = True
        self.times = StepTimes(world_size=trainer.world_size)
        self.unsent_examples = 0.0
        self._trainer = trainer
        self._micro_batches = micro_batches
        # Gradients that are computed again were seen before, and the last of them in part.
        micro_batches.recovery.on_discarded = self.stop
        with self._explain_unsupported():
            self._watcher = choose_watcher(
                trainer.strategy.model or trainer.lightning_module,
                lambda: watched_parameters(self.optimizer),
                world_size=trainer.world_size,
            )
        self._is_watching = False
        self._share: WindowShare | None = None
        self._in_flight: PendingSums | None = None
        self._worst = math.nan  # index of the parameter whose gradients differ most

    @contextmanager
    def _explain_unsupported(self) -> Iterator[None]:
        # Some unsupported cases show only in the first backward pass.
        try:
            yield
        except UnsupportedSharding as error:
            raise MisconfigurationException(
                f"The gradients cannot be measured with {type(self._trainer.strategy).__name__} here: {error}. Shard "
                "the model by fully_shard over one dimension, use DDP, or update lightning_bsscale.GradientNoiseScale "
                "in your own training loop."
            ) from error

    @property
    def samples_per_micro_batch(self) -> int:
        """Distinguishable gradients in one micro-batch of all ranks: one for each rank, or one for all."""
        return 1 if self._watcher.sees_mean_over_ranks else self._trainer.world_size

    @property
    def has_gradient_scaler(self) -> bool:
        """Whether 16-bit mixed precision scales the loss."""
        return self._gradient_scaler is not None

    @property
    def _gradient_scaler(self) -> Any:
        return getattr(self._trainer.precision_plugin, "scaler", None)

    def follow(self, optimizer: Optimizer) -> None:
        """Change to another optimizer; the window in progress is not measured, since its parameters may differ."""
        self.stop()
        self.optimizer = optimizer

    def open(self, window: OpenWindow) -> None:
        """Begin a window, also if the last one never ended."""
        self.stop()
        self._share = None
        if window.is_watched:
            self._is_watching = True
            self._watcher.start_window(compared=window.is_compared)

    def before_backward(self) -> None:
        """Begin a micro-batch's backward pass."""
        if self._is_watching:
            with self._explain_unsupported():
                self._watcher.start_sample()

    def after_backward(self, examples: float, weight: float) -> None:
        """End a micro-batch's backward pass; its mean loss has this weight in the window, in loader batches."""
        if self._is_watching:
            self._watcher.end_sample(examples, weight)

    def before_step(self, window: OpenWindow) -> None:
        """Compute the sums of a complete window, before the gradient is clipped."""
        if not self._is_watching:
            return
        self._is_watching = False
        weight = self._watcher.stop_window()
        # A training_step that returned None had no backward pass, so its micro-batch has no gradient.
        if self._watcher.num_samples * self.samples_per_micro_batch < 2 or not math.isclose(weight, window.begun):
            return
        scaler, scale = self._gradient_scaler, None
        if scaler is not None:
            # The scale is constant within a window; scaling a one on the device reads it without a transfer.
            scale = scaler.scale(torch.ones((), dtype=torch.float64, device=self._device))
        with self._explain_unsupported():
            self._share = self._watcher.window_share(
                loss_divisor=window.loss_divisor,
                loss_scale=scale,
                # An optimizer that unscales by itself steps with the gradient of the scaled loss.
                is_grad_scaled=bool(getattr(self.optimizer, "_step_supports_amp_scaling", False)),
            )

    @property
    def _device(self) -> torch.device:
        return self._trainer.strategy.root_device

    @property
    def has_sums(self) -> bool:
        """Whether the gradients of the window that just ended were observed."""
        return self._share is not None

    def receive(self, pending: ClosedWindow | None) -> Arrived | None:
        """Return the numbers of the pending window, from checkpoint or message; the same on all ranks, or None."""
        arrived = self.peek() if pending is None or pending.arrived is None else pending.arrived
        self._in_flight = None
        if arrived is not None:
            self.times.share((arrived.seconds_per_loader_batch, arrived.seconds_per_step))
        return arrived

    def peek(self) -> Arrived | None:
        """Return the numbers of the message in flight without consuming it, for a checkpoint."""
        if self._in_flight is None:
            return None
        numbers = self._in_flight.read()
        sums, of_host, compared = numbers[:_SUMS], numbers[_SUMS : _SUMS + _OF_HOST], numbers[_SUMS + _OF_HOST :]
        difference = Difference.from_numbers(compared)
        self._worst = difference.parameter
        ranks = self._trainer.world_size
        examples, *seconds, row_seconds, rows, without_room, limits = of_host
        arrived = Arrived(
            sums=WindowSums.from_numbers(sums),
            explained=difference.is_explained,
            # To nanoseconds, as a journal has them.
            seconds_per_row=round(row_seconds / rows, 9) if rows else None,
            has_room=without_room == 0,
        )
        if ranks == 1:
            return arrived
        per_loader_batch, per_step = (None if math.isnan(value) else value / ranks for value in seconds)
        return changed(
            arrived,
            examples=round(examples),
            seconds_per_loader_batch=per_loader_batch,
            seconds_per_step=per_step,
            row_limit=smallest_power_of_sum(limits, ranks),
        )

    @property
    def most_changed(self) -> str | None:
        """Name of the parameter that differed most in the last comparison, or None if unknown."""
        watched = self._watcher.watched
        named = {id(p): name for name, p in self._trainer.lightning_module.named_parameters()}
        return named.get(id(watched[int(self._worst)])) if self._worst < len(watched) else None

    def take_row_limit(self) -> int | None:
        """Return the most rows in a micro-batch if one rank alone ran out of memory in this window, else None."""
        limit = self._micro_batches.limit.take_new()
        return limit if self._trainer.world_size == 1 else None

    def discard(self) -> None:
        """Discard the sums of the window that just ended, whose gradients cannot be trusted."""
        self._share = None

    def end_window(self, window: OpenWindow, *, is_sent: bool) -> None:
        """End a window, and send its sums and its micro-batches' times if there is anything to send."""
        self.unsent_examples += window.examples
        share, self._share = self._share, None
        if not is_sent:
            return
        share = share or self._empty_share(window)
        seconds, rows, has_room = self._micro_batches.costs.take()
        of_host = [self.unsent_examples, *(math.nan if value is None else value for value in self.times.own)]
        limit = smallest_power(self._micro_batches.limit.rows, self._trainer.world_size)
        of_host += [seconds, rows, not has_room, limit]
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

    def _empty_share(self, window: OpenWindow) -> WindowShare:
        # Every rank sends for every window to be measured; without observations its norms are NaN.
        nothing = torch.full((), math.nan, dtype=torch.float64, device=self._device)
        sums = share_of_sums(
            nothing,
            nothing,
            [window.examples / window.begun] * window.begun,
            [1.0] * window.begun,
            loss_divisor=window.loss_divisor,
            ranks_in_sample=self._trainer.world_size // self.samples_per_micro_batch,
        )
        return WindowShare(sums, not_compared(self._device))

    def abandon_pending(self) -> bool:
        """Stop sending after an error, drop a message that has not arrived, and return whether none is in flight."""
        self.sends = False
        if self._in_flight is not None and self._trainer.world_size > 1 and not self._in_flight.has_arrived:
            self._in_flight = None
        return self._in_flight is None

    def stop(self) -> None:
        """Remove all hooks."""
        self._is_watching = False
        self._watcher.stop_window()
