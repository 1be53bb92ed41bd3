"""The gradient noise scale as a torchmetrics metric, for loops of one's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_bsscale.functional import noise_scale_of, sq_norm_of, sq_norms_of
from lightning_bsscale.theory.checks import as_numbers
from lightning_bsscale.theory.estimate import SUM_NAMES, Averages, NoiseScale, sums_of
from lightning_bsscale.theory.moments import window_moments

__all__ = ["GradientNoiseScale"]


class GradientNoiseScale(Metric):
    """The gradient noise scale over all windows since the last reset, in examples.

    An update is one optimizer step. The state is a handful of sums in float64, which are added over processes. Each
    process then contributes windows of its own: the mean gradient must be that of exactly the micro-batches whose norms
    go with it, so with DistributedDataParallel either give every rank's norms with the all-reduced gradient on one rank
    only, or each rank's norms with the mean before the all-reduce. `update` reads its arguments, so it waits for a
    device that still computes them.

    Args:
        **kwargs: those of `torchmetrics.Metric`

    Example:
        A loop that accumulates two micro-batches a step, here of a loss that is linear in the weights:

        >>> import torch
        >>> from lightning_bsscale import GradientNoiseScale
        >>> from lightning_bsscale.gradients.parameter_hooks import ParameterHooks, mean_squared_norm
        >>> generator = torch.Generator().manual_seed(0)
        >>> weights = torch.nn.Parameter(torch.zeros(10))
        >>> metric, hooks = GradientNoiseScale(), ParameterHooks([weights])
        >>> for step in range(500):
        ...     hooks.start_window()
        ...     for _ in range(2):
        ...         examples = 1 + 2 * torch.randn(8, 10, generator=generator)  # tr(Sigma) = 40, ||G||^2 = 10
        ...         hooks.start_sample()
        ...         (examples.mean(0) @ weights / 2).backward()  # the step takes the mean of two
        ...         hooks.end_sample(8)
        ...     _ = hooks.stop_window()
        ...     own_sq_norms = hooks.sq_norms * 2**2  # undo the division by two
        ...     metric.update(own_sq_norms, mean_squared_norm([weights]), [8, 8])
        ...     weights.grad = None
        >>> print(f"{metric.compute():.1f}")
        4.0
        >>> metric.interval().resolved
        True
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    plot_lower_bound = 0.0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in SUM_NAMES:
            # Persistent: what a long run has measured belongs into its checkpoint.
            self.add_state(f"sum_{name}", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum", persistent=True)

    def update(
        self,
        micro_sq_norms: Tensor | Sequence[float],
        mean_sq_norm: Tensor | float,
        micro_batch_sizes: Tensor | Sequence[float],
    ) -> None:
        """Add one window. One with a non-finite norm (an overflow) is dropped, and counted in `sum_dropped`.

        Args:
            micro_sq_norms: squared norm of each micro-batch's own mean gradient: 1-d, at least two
            mean_sq_norm: squared norm of the unweighted mean of these gradients, before clipping
            micro_batch_sizes: examples in each micro-batch: 1-d, as many
        """
        moments = window_moments(
            sq_norms_of("micro_sq_norms", micro_sq_norms),
            sq_norm_of("mean_sq_norm", mean_sq_norm),
            as_numbers("micro_batch_sizes", micro_batch_sizes),
        )
        for name, value in sums_of(moments).items():
            state: Tensor = getattr(self, f"sum_{name}")
            setattr(self, f"sum_{name}", state + value)

    def compute(self) -> Tensor:
        """Compute the noise scale over all processes.

        Returns:
            A 0-d float64 tensor, in examples: infinite where the squared gradient norm is not above zero on average,
            NaN without any window.
        """
        found = noise_scale_of(self._averages(), 0.9)
        value = math.nan if found is None else found.noise_scale
        return torch.tensor(value, dtype=torch.float64, device=self.device)

    def interval(self, confidence: float = 0.9) -> NoiseScale | None:
        """Compute the noise scale with its interval, over all processes: every process must call it.

        Args:
            confidence: two-sided confidence, between 0 and 1

        Returns:
            The record with `low`, `high` and `resolved`; from one window alone the interval is unknown, from 0 to
            infinity. None without any window.
        """
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync
        ):
            return noise_scale_of(self._averages(), confidence)

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> tuple[Any, Any]:
        """Plot one value or several; needs matplotlib.

        Args:
            val: what `compute` or `forward` returned, or a list of these; by default `compute()` now
            ax: a matplotlib axis to draw on; by default a new one

        Returns:
            The figure and the axis.
        """
        figure, axis = self._plot(val, ax)
        return figure, axis

    def _averages(self) -> Averages:
        return Averages.from_state({name: getattr(self, f"sum_{name}").item() for name in SUM_NAMES})
