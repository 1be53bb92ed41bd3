"""One window from its first micro-batch to its place in the averages; shared by the monitor and the scaler.

It looks and changes nothing. What a window's gradients say stays on the device and is read at the end of the next
window, so that no step waits for its own measurement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_bsscale.gradients.delayed import DelayedVector
from lightning_bsscale.gradients.parameter_hooks import ParameterHooks, mean_squared_norm
from lightning_bsscale.journal import Measurement, as_plain, from_plain
from lightning_bsscale.theory.estimate import Averages, NoiseScale
from lightning_bsscale.theory.moments import WindowMoments, moments_from_sums

HISTORY_LIMIT = 4096
MANY_DROPPED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowFacts:
    """What the host knows of a closed window, kept until its norms have arrived.

    The fields are those of `Measurement`, and `sum_inverse_sizes` and `loss_divisor` for its moments.
    """

    examples_seen: int
    optimizer_steps: int
    batch_size: int
    num_micro_batches: int
    window_examples: int
    sum_inverse_sizes: float
    loss_divisor: int
    lr: float
    lr_scale: float


@dataclass(slots=True, kw_only=True)
class OpenWindow:
    """The window in progress on this device.

    Attributes:
        start: index of its first micro-batch in the epoch
        planned: micro-batches that it should have
        loss_divisor: what Lightning divides each loss by
        measured: whether its gradients are watched
        steps_before: the Trainer's optimizer steps when it began
        sizes: examples of each micro-batch so far, the one in progress included
        done: micro-batches that have ended
        is_rest: whether it is what was left of a window that a checkpoint cut
    """

    start: int
    planned: int
    loss_divisor: int
    measured: bool
    steps_before: int
    sizes: list[int]
    done: int = 0
    is_rest: bool = False

    @property
    def came(self) -> int:
        """Micro-batches so far."""
        return len(self.sizes)

    @property
    def examples(self) -> int:
        """Examples so far."""
        return sum(self.sizes)

    def state(self) -> dict[str, Any]:
        """How far it is: what a run that goes on in it must know.

        Returns:
            numbers
        """
        return {
            "start": self.start,
            "planned": self.planned,
            "done": self.done,
            "in_progress": self.came > self.done,
            "is_rest": self.is_rest,
        }

    def facts(
        self, *, examples_seen: int, optimizer_steps: int, batch_size: int, lr: float, lr_scale: float
    ) -> WindowFacts:
        """What is known when the window has ended.

        Args:
            examples_seen: examples of all windows, this one included
            optimizer_steps: optimizer steps, this one included
            batch_size: the batch in force
            lr: the rate of this step
            lr_scale: the factor on it

        Returns:
            the record
        """
        return WindowFacts(
            examples_seen=examples_seen,
            optimizer_steps=optimizer_steps,
            batch_size=batch_size,
            num_micro_batches=self.came,
            window_examples=self.examples,
            sum_inverse_sizes=math.fsum(1 / size for size in self.sizes),
            loss_divisor=self.loss_divisor,
            lr=lr,
            lr_scale=lr_scale,
        )


def watched_parameters(optimizer: Optimizer) -> list[Tensor]:
    """The parameters whose gradient the optimizer steps with, as they are now.

    Args:
        optimizer: the optimizer

    Returns:
        each parameter once
    """
    return list({id(p): p for group in optimizer.param_groups for p in group["params"]}.values())


class GradientMeasurement:
    """Watches the windows it is told to, and keeps the averages."""

    def __init__(self, trainer: pl.Trainer, optimizer: Optimizer, memory: float) -> None:
        """Registers nothing yet: a window that is not measured costs nothing.

        Args:
            trainer: for the loss scale of mixed precision
            optimizer: whose parameters to watch
            memory: examples over which measurements are averaged; inf for all
        """
        self.averages = Averages()
        self.noise: NoiseScale | None = None
        self.history: list[Measurement] = []
        self._memory = memory
        self._optimizer = optimizer
        self._scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
        self._hooks = ParameterHooks(lambda: watched_parameters(optimizer), grad_is_own=trainer.world_size == 1)
        self._watching = False
        self._in_flight: Tensor | None = None
        self._pending: tuple[DelayedVector | list[float], WindowFacts] | None = None
        self._examples_at_last = 0.0
        self._dropped_in_a_row = 0
        self._said_dropped = False

    @property
    def dropped(self) -> int:
        """Measured windows that did not enter the averages, as a gradient in them was not finite."""
        return self.averages.dropped

    def open(self, *, measured: bool) -> None:
        """Begins a window, also where the last one never ended.

        Args:
            measured: whether to watch its gradients
        """
        if self._watching:
            self._hooks.stop_window()
        self._watching = measured
        self._in_flight = None
        if measured:
            self._hooks.start_window()

    def before_backward(self) -> None:
        """A micro-batch's backward begins."""
        if self._watching:
            self._hooks.start_micro_batch()

    def after_backward(self) -> None:
        """A micro-batch's backward has ended."""
        if self._watching:
            self._hooks.end_micro_batch()

    def before_step(self, window: OpenWindow) -> None:
        """Takes the norms of a complete window, before anything clips the gradient.

        Args:
            window: the window, with its last micro-batch
        """
        if not self._watching:
            return
        self._watching = False
        norms = self._hooks.stop_window()
        # A training_step that returned None had no backward: its micro-batch has no norm, the window no measurement.
        if window.came < 2 or norms.numel() != window.came:
            return
        mean = mean_squared_norm(watched_parameters(self._optimizer)).to(norms)
        if self._scaler is not None:
            # The norms in the hooks are those of the scaled loss; the scale is constant within a window, and applied
            # to a one on the device it needs no transfer. Optimizers that unscale for themselves scale the mean too.
            squared = self._scaler.scale(torch.ones((), device=norms.device)).to(norms).square()
            norms = norms / squared
            if getattr(self._optimizer, "_step_supports_amp_scaling", False):
                mean = mean / squared
        self._in_flight = torch.stack([norms.sum(), mean])

    def close(self, facts: WindowFacts) -> Measurement | None:
        """Ends a window: reads what the one before left, and sends this one's norms on their way.

        Args:
            facts: what the host knows of the window that ended now

        Returns:
            the measurement that has arrived, if one has
        """
        arrived = self.flush()
        if self._in_flight is not None:
            self._pending = (DelayedVector(self._in_flight), facts)
            self._in_flight = None
        return arrived

    def flush(self) -> Measurement | None:
        """Reads the norms that are on their way, if any.

        Returns:
            the measurement, also in `history`
        """
        if self._pending is None:
            return None
        vector, facts = self._pending
        self._pending = None
        sums = vector if isinstance(vector, list) else vector.read()
        moments = moments_from_sums(
            sum_sq_norms=sums[0],
            mean_sq_norm=sums[1],
            sum_inverse_sizes=facts.sum_inverse_sizes,
            num_micro_batches=facts.num_micro_batches,
            examples=facts.window_examples,
            loss_divisor=facts.loss_divisor,
        )
        return self._take(moments, facts)

    def _take(self, moments: WindowMoments, facts: WindowFacts) -> Measurement:
        since = facts.examples_seen - self._examples_at_last
        self._examples_at_last = facts.examples_seen
        dropped_before = self.averages.dropped
        self.averages = self.averages.updated(moments, examples_since_last=since, memory=self._memory)
        self.noise = self.averages.noise_scale()
        self._dropped_in_a_row = self._dropped_in_a_row + 1 if self.averages.dropped > dropped_before else 0
        if self._dropped_in_a_row == MANY_DROPPED and not self._said_dropped:
            self._said_dropped = True
            self._warn_of_dropped()
        made = Measurement(
            examples_seen=facts.examples_seen,
            optimizer_steps=facts.optimizer_steps,
            batch_size=facts.batch_size,
            accumulate_grad_batches=facts.num_micro_batches,
            window_examples=facts.window_examples,
            trace=moments.trace,
            grad_sq=moments.grad_sq,
            noise=self.noise,
            lr=facts.lr,
            lr_scale=facts.lr_scale,
        )
        self.history.append(made)
        if len(self.history) > HISTORY_LIMIT:
            # The older half keeps every second one, so a long run keeps its whole course in bounded memory.
            half = HISTORY_LIMIT // 2
            self.history[:half] = self.history[:half:2]
        return made

    def _warn_of_dropped(self) -> None:
        if self._scaler is not None:
            cause = (
                "With 16-bit mixed precision a few at the start are ordinary, while the loss scale is found, and those "
                "steps are skipped; so many mean that the loss itself is NaN or inf, or that the loss scale does not "
                "come down: look at trainer.precision_plugin.scaler.get_scale(), or use precision='bf16-mixed'."
            )
        else:
            cause = (
                "The loss or its gradient is NaN or inf, and the weights probably too by now: lower the learning rate, "
                "or clip the gradient (gradient_clip_val)."
            )
        rank_zero_warn(
            f"bsscale: the last {MANY_DROPPED} measured windows held a gradient that is not finite. They were dropped: "
            "the noise scale is still that of the windows before them, or unknown. "
            f"{cause} Trainer(detect_anomaly=True) names the operation. This is said once.",
            category=UserWarning,
        )

    def stop_watching(self) -> None:
        """Takes every hook away."""
        if self._watching:
            self._hooks.stop_window()
            self._watching = False

    def state(self) -> dict[str, Any]:
        """What cannot be recomputed: the averages, and the measurement on its way (read now, used a window later).

        Returns:
            numbers, lists and dicts
        """
        pending = None
        if self._pending is not None:
            vector, facts = self._pending
            sums = vector if isinstance(vector, list) else vector.read()
            self._pending = (sums, facts)
            pending = {"sums": sums, "facts": as_plain(facts)}
        return {
            "averages": self.averages.to_state(),
            "examples_at_last": self._examples_at_last,
            "dropped_in_a_row": self._dropped_in_a_row,
            "pending": pending,
            "history": [as_plain(made) for made in self.history],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Takes up where `state` left off.

        Args:
            state: what `state` gave
        """
        self.averages = Averages.from_state(state["averages"])
        self.noise = self.averages.noise_scale()
        self._examples_at_last = state["examples_at_last"]
        self._dropped_in_a_row = state["dropped_in_a_row"]
        self.history = [from_plain(Measurement, made) for made in state["history"]]
        pending = state["pending"]
        if pending is not None:
            self._pending = (list(pending["sums"]), from_plain(WindowFacts, pending["facts"]))
