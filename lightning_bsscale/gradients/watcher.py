"""The interface of all watchers: the calls of a window, their order, and what they return."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from lightning_bsscale.gradients.comparison import Comparison, not_compared
from lightning_bsscale.gradients.norms import move_to
from lightning_bsscale.theory.checks import check_number

__all__ = ["GradientWatcher", "Parameters", "RawSums", "WindowShare", "share_of_sums"]

Parameters = Callable[[], Iterable[Tensor]]


class WindowShare(NamedTuple):
    """One process's share of a window, on the device.

    Attributes:
        sums: seven numbers in the order of `WindowSums`' fields, 1-d, float64 if the device has it; summed over
            processes they are the `WindowSums`
        difference: the numbers of a `comparison.Difference` between `.grad` and the observed gradients, 1-d; NaN if
            they were not compared
    """

    sums: Tensor
    difference: Tensor


class RawSums(NamedTuple):
    """This process's observations of a window, still with loss scale and loss divisor.

    Attributes:
        sq_norms: sum of the squared norms of the samples' gradients, each over the sample's weight, 0-d
        mean_sq_norm: this process's share of the squared norm of `.grad`, 0-d
        difference: as in `WindowShare`; None without a comparison
    """

    sq_norms: Tensor
    mean_sq_norm: Tensor
    difference: Tensor | None


class GradientWatcher(ABC):
    """Watches the gradients of samples, window by window.

    A sample is the gradient of one group of examples. A window may have any number of samples of different sizes,
    all at the same parameters and of losses with the same divisor. The calls are as follows; nothing is registered
    before and after them::

        watcher.start_window()
        for examples in window:
            loss = weight * loss_of(examples) / loss_divisor
            watcher.start_sample()
            loss.backward()
            watcher.end_sample(len(examples), weight)
        watcher.stop_window()
        share = watcher.window_share(loss_divisor=loss_divisor)

    A watcher never changes a gradient, and never waits for the device or for another process. This class keeps the
    order of calls; a subclass observes the gradients, in the methods that begin with an underscore here.

    Args:
        parameters: returns the parameters to watch; called for each window. Parameters that require no gradient when a
            window starts, or are not initialised, are left out of that window
        world_size: number of processes

    Attributes:
        sees_mean_over_ranks: Whether only the mean of a sample's gradient over all processes is observed, so that their
            samples count as one.
    """

    sees_mean_over_ranks: ClassVar[bool] = False

    def __init__(self, parameters: Parameters, *, world_size: int) -> None:
        self._parameters = parameters
        self._world_size = world_size
        self._is_open = False
        self._is_in_sample = False
        self._sizes: list[float] = []
        self._weights: list[float] = []
        self._sq_norms: list[Tensor] = []
        self._comparison: Comparison | None = None
        self._turn = -1

    @property
    @abstractmethod
    def watched(self) -> list[Tensor]:
        """The parameters of the open window, or of the last one."""

    @property
    def sq_norms(self) -> Tensor:
        """The observed squared norm of each sample's gradient over the sample's weight, with loss scale and divisor.

        One for each sample that ended, in order, 1-d, on the device, of the open window or the last one. They are those
        of this process, or its share with `sees_mean_over_ranks`. NaN if a norm could not be determined.
        """
        if not self._sq_norms:
            return torch.zeros(0, dtype=torch.float64)
        return torch.stack(self._sq_norms)

    def start_window(self, *, compared: bool = False) -> None:
        """Start to watch, and discard a window that is still open.

        Args:
            compared: whether to compare `.grad` at the step with the observed gradients
        """
        self.stop_window()
        self._sizes, self._weights, self._sq_norms = [], [], []
        self._comparison = None
        self._turn += compared
        self._open(compared)
        self._is_open = True

    def start_sample(self) -> None:
        """Start a sample, after the forward pass and before the backward pass, and discard one that never ended.

        Raises:
            RuntimeError: If no window is open.
        """
        if not self._is_open:
            raise RuntimeError("start_sample was called outside a window: call start_window first")
        self._begin_sample()
        self._is_in_sample = True

    def end_sample(self, examples: float, weight: float = 1.0) -> None:
        """End the sample, after the backward pass. A sample without any gradient has norm zero.

        Args:
            examples: size of the sample
            weight: factor on its mean loss, above 0. The mean of a window's gradients then has these weights

        Raises:
            RuntimeError: If no sample was started.
        """
        if not self._is_in_sample:
            raise RuntimeError("end_sample was called without a sample: call start_sample first")
        self._is_in_sample = False
        size, weight = check_number("examples", examples, above=0), check_number("weight", weight, above=0)
        with torch.no_grad():
            self._sq_norms.append(self._end_sample(weight))
        self._sizes.append(size)
        self._weights.append(weight)

    def stop_window(self) -> float:
        """Remove everything that was registered, and return the weight of all samples that ended; may be repeated."""
        self._is_open = self._is_in_sample = False
        self._close()
        return math.fsum(self._weights)

    @property
    def num_samples(self) -> int:
        """Samples of this process that ended in the open window, or in the last one."""
        return len(self._sizes)

    def window_share(
        self, *, loss_divisor: float, loss_scale: Tensor | None = None, is_grad_scaled: bool = False
    ) -> WindowShare:
        """Compute this process's share of the window, after `stop_window` and before clipping and the step.

        Args:
            loss_divisor: number by which each loss was divided before its backward pass
            loss_scale: factor on each loss, 0-d, on the device; None for 1
            is_grad_scaled: whether `.grad` still has this factor

        Returns:
            The share, without waiting for it.
        """
        with torch.no_grad():
            seen = self._raw_sums(None if is_grad_scaled else loss_scale)
            sums = share_of_sums(
                seen.sq_norms,
                seen.mean_sq_norm,
                self._sizes,
                self._weights,
                loss_divisor=loss_divisor,
                loss_scale=loss_scale,
                is_grad_scaled=is_grad_scaled,
                ranks_in_sample=self._world_size if self.sees_mean_over_ranks else 1,
            )
            home = sums.device
            return WindowShare(sums, not_compared(home) if seen.difference is None else move_to(seen.difference, home))

    def _trained(self) -> dict[int, Tensor]:
        """Return the parameters that currently require a gradient, by id."""
        return {id(p): p for p in self._parameters() if p.requires_grad and not is_lazy(p)}

    @abstractmethod
    def _open(self, compared: bool) -> None:
        """Start a window, while none is open."""

    @abstractmethod
    def _begin_sample(self) -> None:
        """Start a sample."""

    @abstractmethod
    def _end_sample(self, weight: float) -> Tensor:
        """End the sample, and return the observed squared norm of its gradient over its weight, 0-d."""

    @abstractmethod
    def _close(self) -> None:
        """Remove everything that was registered, if anything was."""

    @abstractmethod
    def _raw_sums(self, loss_scale: Tensor | None) -> RawSums:
        """Return the observations of the window; `loss_scale` is a factor on the losses that is not on `.grad`."""


def share_of_sums(
    sq_norms: Tensor,
    mean_sq_norm: Tensor,
    sizes: Sequence[float],
    weights: Sequence[float],
    *,
    loss_divisor: float,
    loss_scale: Tensor | None = None,
    is_grad_scaled: bool = False,
    ranks_in_sample: int = 1,
) -> Tensor:
    """Compute this process's share of a window's sums, free of loss scale, loss divisor and number of ranks.

    Gradients are observed of losses that were multiplied by the sample's weight ``w_k`` and the loss scale s, and
    divided by N: ``s w_k g_k / N`` for sample k. ``.grad`` is then the mean over ranks of ``(s / N) sum w_k g_k``,
    without s if it was unscaled. With the weight ``W = sum w_k`` on each rank, the weighted mean of all samples'
    gradients is N/W times that.

    Some watchers see only each sample's mean over all W ranks. A window then has K such samples, each rank contributes
    to all of them, and each has the variance of one with ``1 / ((1/W^2) sum 1/b_k)`` examples; the sum is over ranks.

    Args:
        sq_norms: sum of the observed squared norms of this process's samples, each over its weight, 0-d
        mean_sq_norm: this process's share of the squared norm of `.grad`, 0-d
        sizes: examples of each of this process's samples
        weights: weight of each of them
        loss_divisor: number by which each loss was divided
        loss_scale: factor on each loss, 0-d, on the device; None for 1
        is_grad_scaled: whether `.grad` still has this factor
        ranks_in_sample: processes over whose mean a sample is observed; 1 if it is this process's own

    Returns:
        Seven numbers on the device of `sq_norms`; summed over processes they are the fields of a `WindowSums`. They are
        not waited for. Without any sample the mean is NaN.
    """
    home, count, weight = sq_norms.device, len(sizes), math.fsum(weights)
    norms = torch.stack([sq_norms, move_to(mean_sq_norm, home)])
    if loss_scale is not None:
        squared = loss_scale.to(norms).square()
        norms = norms / (squared if is_grad_scaled else torch.stack([squared, torch.ones_like(squared)]))
    known = [
        loss_divisor**2,
        (loss_divisor / weight) ** 2 if count else math.nan,
        count / ranks_in_sample,
        math.fsum(w / size for w, size in zip(weights, sizes, strict=True)) / ranks_in_sample**2,
        sum(sizes),
        weight / ranks_in_sample,
        math.fsum(w * w / size for w, size in zip(weights, sizes, strict=True)) / ranks_in_sample**2,
    ]
    factors, counts = torch.tensor(known, dtype=norms.dtype).to(home, non_blocking=True).tensor_split([2])
    return torch.cat([norms * factors, counts])
