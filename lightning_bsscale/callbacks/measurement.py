"""One window from its first micro-batch to its place in the averages; shared by the monitor and the scaler.

It looks and changes nothing. What a window's gradients say stays on the device and is read at the end of the next
window, so that no step waits for its own measurement.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor
from torch.optim import Optimizer

from lightning_bsscale.callbacks.checks.preflight import warn_of_changed_gradients, warn_of_dropped
from lightning_bsscale.callbacks.open_window import OpenWindow, WindowFacts
from lightning_bsscale.callbacks.trainer.timing import StepTimes
from lightning_bsscale.gradients.choose import UnsupportedSharding, choose_watcher
from lightning_bsscale.gradients.comparison import Difference, not_compared
from lightning_bsscale.gradients.norms import sum_dtype
from lightning_bsscale.gradients.reduce import PendingSums
from lightning_bsscale.gradients.watcher import WindowShare
from lightning_bsscale.theory.agreement import Agreement
from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.example_count import ExamplesSeen
from lightning_bsscale.theory.moments import WindowMoments, moments_of
from lightning_bsscale.theory.records import Measurement, WindowSums
from lightning_bsscale.theory.robust import RobustAverages
from lightning_bsscale.theory.stored import as_plain, from_plain

HISTORY_LIMIT = 4096
MANY_DROPPED = 10


def watched_parameters(optimizer: Optimizer) -> list[Tensor]:
    """The parameters whose gradient the optimizer steps with, as they are now.

    Args:
        optimizer: the optimizer

    Returns:
        each parameter once
    """
    return list({id(p): p for group in optimizer.param_groups for p in group["params"]}.values())


class RankSums(NamedTuple):
    """What a message brings: sums over ranks.

    Attributes:
        window: the five numbers of a `WindowSums`
        examples: examples since the last message
        seconds_per_micro_batch: of each rank, or nan
        seconds_per_step: of each rank, or nan
        difference: of `.grad` from what was seen, as `gradients.comparison` puts it; with several ranks its last number
            says nothing
    """

    window: tuple[float, ...]
    examples: float
    seconds_per_micro_batch: float
    seconds_per_step: float
    difference: tuple[float, ...]

    @classmethod
    def read(cls, sums: Sequence[float]) -> RankSums:
        """Take it from the numbers of a message.

        Args:
            sums: in the order of the fields

        Returns:
            the record
        """
        return cls._make([tuple(sums[:5]), *sums[5:8], tuple(sums[8:])])

    def facts_of_all(self, facts: WindowFacts) -> WindowFacts:
        """Replace what is of one rank in a window's facts.

        Args:
            facts: of this rank

        Returns:
            those that are the same on all ranks
        """
        *_, inverse_sizes, examples = self.window
        return replace(facts, sum_inverse_sizes=inverse_sizes, window_examples=round(examples))


class GradientMeasurement:
    """Watches the windows it is told to, and keeps the averages."""

    def __init__(
        self, trainer: pl.Trainer, optimizer: Optimizer, memory: float, examples: ExamplesSeen, times: StepTimes
    ) -> None:
        """Registers nothing yet: a window that is not measured costs nothing.

        Args:
            trainer: for the loss scale of mixed precision, and the number of ranks
            optimizer: whose parameters to watch
            memory: examples over which measurements are averaged; inf for all
            examples: the count that messages make exact
            times: of this rank; the message brings their mean over ranks
        """
        self.averages = RobustAverages()
        self.noise: NoiseScale | None = None
        self.history: list[Measurement] = []
        self._memory = memory
        self._optimizer = optimizer
        self._examples = examples
        self._times = times
        self._world_size = trainer.world_size
        self._training = trainer.state
        self._device = trainer.strategy.root_device
        self._scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
        self._strategy = type(trainer.strategy).__name__
        with self._explained():
            self._watcher = choose_watcher(
                trainer.strategy.model or trainer.lightning_module,
                lambda: watched_parameters(self._optimizer),
                world_size=trainer.world_size,
            )
        # Where a micro-batch's gradient is seen only as the mean over ranks, the ranks make no pairs.
        self.seen_at_once = 1 if self._watcher.sees_mean_over_ranks else self._world_size
        self._module = trainer.lightning_module
        self._agreement = Agreement()
        self._watching = False
        self._in_flight: WindowShare | None = None
        self._pending: tuple[PendingSums | list[float], WindowFacts] | None = None
        self._was_measured = False
        self._sends = True
        self._examples_at_last = 0.0
        self._dropped_in_a_row = 0
        self._said_dropped = False

    @contextmanager
    def _explained(self) -> Iterator[None]:
        # Some of what a watcher cannot do shows only in the first backward pass.
        try:
            yield
        except UnsupportedSharding as error:
            raise MisconfigurationException(
                f"The gradients cannot be measured with {self._strategy} here: {error}. Shard the model by fully_shard "
                "over one dimension, use DDP, or feed lightning_bsscale.GradientNoiseScale in a loop of your own."
            ) from error

    @property
    def dropped(self) -> int:
        """Measured windows that did not enter the averages, as a gradient in them was not finite."""
        return self.averages.dropped

    @property
    def limited(self) -> int:
        """Measured windows whose influence on the averages was limited, as they were far from all others."""
        return self.averages.limited

    def follow(self, optimizer: Optimizer) -> None:
        """Go over to another optimizer; the window in progress is not measured, as its parameters may be others.

        Args:
            optimizer: the one that steps from now on
        """
        self.stop_watching()
        self._optimizer = optimizer

    def open(self, *, measured: bool) -> None:
        """Begins a window, also where the last one never ended.

        Args:
            measured: whether to watch its gradients
        """
        if self._watching:
            self._watcher.stop_window()
        self._was_measured = measured
        self._in_flight = None
        self._watching, compared = self._agreement.next_window() if measured else (False, False)
        if self._watching:
            self._watcher.start_window(compared=compared)

    def before_backward(self) -> None:
        """A micro-batch's backward begins."""
        if self._watching:
            with self._explained():
                self._watcher.start_sample()

    def after_backward(self, examples: int) -> None:
        """A micro-batch's backward has ended.

        Args:
            examples: its size
        """
        if self._watching:
            self._watcher.end_sample(examples)

    def before_step(self, window: OpenWindow) -> None:
        """Takes the norms of a complete window, before anything clips the gradient.

        Args:
            window: the window, with its last micro-batch
        """
        if not self._watching:
            return
        self._watching = False
        ended = self._watcher.stop_window()
        # A training_step that returned None had no backward: its micro-batch has no norm, the window no measurement.
        if window.came * self.seen_at_once < 2 or ended != window.came:
            return
        scale = None
        if self._scaler is not None:
            # The scale is constant within a window, and applied to a one on the device it needs no transfer.
            scale = self._scaler.scale(torch.ones((), dtype=torch.float64, device=self._device))
        # Optimizers that unscale for themselves step with the gradient of the scaled loss.
        is_scaled = scale is not None and bool(getattr(self._optimizer, "_step_supports_amp_scaling", False))
        with self._explained():
            self._in_flight = self._watcher.window_share(
                loss_divisor=window.loss_divisor, loss_scale=scale, is_grad_scaled=is_scaled
            )

    def close(self, facts: WindowFacts) -> Measurement | None:
        """Ends a window: reads what the one before left, and sends this one's norms on their way.

        Args:
            facts: what the host knows of the window that ended now

        Returns:
            the measurement that has arrived, if one has
        """
        arrived = self.flush()
        # Every rank sends for every window that was to be measured, also one whose own measurement failed.
        sends = self._in_flight is not None if self._world_size == 1 else self._was_measured and self._sends
        if sends:
            self._pending = (PendingSums(self._message(facts), world_size=self._world_size), facts)
        self._in_flight = None
        return arrived

    def _message(self, facts: WindowFacts) -> Tensor:
        device, dtype = self._device, sum_dtype(self._device)
        seconds = (self._times.seconds_per_micro_batch, self._times.seconds_per_step)
        host = [self._examples.take_unsent(), *(math.nan if value is None else value for value in seconds)]
        if self._in_flight is None:
            ranks_in_sample = self._world_size / self.seen_at_once
            samples, inverse_sizes = facts.num_micro_batches / ranks_in_sample, facts.sum_inverse_sizes
            known = [math.nan, math.nan, samples, inverse_sizes / ranks_in_sample**2, facts.window_examples]
            window, difference = torch.tensor(known, dtype=dtype), not_compared(device)
        else:
            window, difference = self._in_flight
        parts = (window, torch.tensor(host, dtype=dtype), difference)
        return torch.cat([part.to(device, dtype, non_blocking=True) for part in parts])

    def flush(self) -> Measurement | None:
        """Reads the norms that are on their way, if any.

        Returns:
            the measurement, also in `history`; None if there is none
        """
        if self._pending is None:
            return None
        vector, facts = self._pending
        self._pending = None
        sums = vector if isinstance(vector, list) else vector.read()
        told = RankSums.read(sums)
        facts = self._of_all_ranks(told, facts)
        if not self._is_trusted(Difference.read(told.difference)):
            return None
        window = WindowSums.read(told.window)
        if window.num_samples < 2:  # cut short: it told its examples
            return None
        if window.sum_sq_norms == window.mean_sq_norm == 0:
            return None  # nothing is stepped with: all gradients cancelled, or no parameter initialised yet
        return self._take(moments_of(window), facts)

    def _is_trusted(self, difference: Difference) -> bool:
        # Whether the window is one to measure. Decided by numbers that are the same on all ranks.
        explained = difference.is_explained
        if explained is not None and self._agreement.take(explained):
            self.averages = self.averages.emptied()
            self.noise = None
            self._in_flight = None
            if self._agreement.changes == 1:
                warn_of_changed_gradients(self._name_of(difference.parameter) if self._world_size == 1 else None)
        return self._agreement.is_good

    def _name_of(self, place: float) -> str | None:
        watched = self._watcher.watched
        named = {id(p): name for name, p in self._module.named_parameters()}
        return named.get(id(watched[int(place)])) if place < len(watched) else None

    def _of_all_ranks(self, told: RankSums, facts: WindowFacts) -> WindowFacts:
        if self._world_size == 1:
            return facts
        seconds = (told.seconds_per_micro_batch, told.seconds_per_step)
        self._times.take_mean(*(None if math.isnan(value) else value / self._world_size for value in seconds))
        return replace(told.facts_of_all(facts), examples_seen=self._examples.arrived(round(told.examples)))

    def give_up_waiting(self) -> None:
        """After an error another rank may be gone: what has not arrived is left, and nothing more is sent."""
        self._sends = False
        vector = None if self._pending is None else self._pending[0]
        if self._world_size > 1 and isinstance(vector, PendingSums) and not vector.has_arrived:
            self._pending = None
        if self._pending is None:  # now, or as reading it was what failed
            self._examples.give_up_waiting()

    def _take(self, moments: WindowMoments, facts: WindowFacts) -> Measurement:
        since = facts.examples_seen - self._examples_at_last
        self._examples_at_last = facts.examples_seen
        dropped_before = self.averages.dropped
        self.averages = self.averages.updated(moments, examples_since_last=since, memory=self._memory)
        self.noise = self.averages.noise_scale()
        self._dropped_in_a_row = self._dropped_in_a_row + 1 if self.averages.dropped > dropped_before else 0
        if self._dropped_in_a_row == MANY_DROPPED and not self._said_dropped:
            self._said_dropped = True
            warn_of_dropped(MANY_DROPPED, has_scaler=self._scaler is not None)
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

    def stop_watching(self) -> None:
        """Takes every hook away."""
        if self._watching:
            self._watcher.stop_window()
            self._watching = False

    def state(self) -> dict[str, Any]:
        """What cannot be recomputed: the averages, and the measurement on its way (read now, used a window later).

        Returns:
            numbers, lists and dicts
        """
        if self._training.status == TrainerStatus.INTERRUPTED:  # another callback saves before this one is told
            self.give_up_waiting()
        pending = None
        if self._pending is not None:
            vector, facts = self._pending
            sums = vector if isinstance(vector, list) else vector.read()
            facts = RankSums.read(sums).facts_of_all(facts)
            self._pending = (sums, facts)
            pending = {"sums": sums, "facts": as_plain(facts), "world_size": self._world_size}
        return {
            "averages": self.averages.to_state(),
            "examples_at_last": self._examples_at_last,
            "dropped_in_a_row": self._dropped_in_a_row,
            "agreement": self._agreement.state(),
            "pending": pending,
            "history": [as_plain(made) for made in self.history],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Takes up where `state` left off.

        Args:
            state: what `state` gave
        """
        self.averages = RobustAverages.from_state(state["averages"])
        self.noise = self.averages.noise_scale()
        self._examples_at_last = state["examples_at_last"]
        self._dropped_in_a_row = state["dropped_in_a_row"]
        self._agreement = Agreement(**state["agreement"])
        self.history = [from_plain(Measurement, made) for made in state["history"]]
        pending = state["pending"]
        if pending is not None and pending["world_size"] != self._world_size:
            # A message of other ranks: one measurement less, but its examples count.
            if pending["world_size"] > 1:
                self._examples.arrived(round(RankSums.read(pending["sums"]).examples))
        elif pending is not None:
            self._pending = (list(pending["sums"]), from_plain(WindowFacts, pending["facts"]))
