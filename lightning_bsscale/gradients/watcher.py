"""What every way of watching micro-batch gradients promises."""

from typing import NamedTuple, Protocol

from torch import Tensor

__all__ = ["GradientWatcher", "StepSums"]


class StepSums(NamedTuple):
    """What one window's gradients say of the parameters that are stepped with: this process's sums.

    Attributes:
        sq_norms: squared norms of the micro-batches' gradients, 0-d
        mean_sq_norm: this process's share of the squared norm of the mean, from `.grad`, 0-d
        difference: the numbers of a `comparison.Difference` between `.grad` and what was seen, 1-d; NaN where it was
            not asked for, or cannot be told
    """

    sq_norms: Tensor
    mean_sq_norm: Tensor
    difference: Tensor


class GradientWatcher(Protocol):
    """Tells the squared norm of each micro-batch's own gradient, window by window.

    The calls of one measured window, with nothing registered before and after them::

        watcher.start_window()
        for micro_batch in window:
            loss = ...
            watcher.start_micro_batch()
            loss.backward()
            watcher.end_micro_batch()
        watcher.stop_window()
        sums = watcher.step_sums()

    Both are this process's: their sums over all processes are the sum over all micro-batches, and the squared norm of
    the mean that is stepped with. A watcher never changes a gradient, and never waits for the device or for another
    process.
    """

    @property
    def micro_batch_is_global(self) -> bool:
        """Whether a micro-batch's gradient can be seen only as the mean over all processes.

        A window has then as many micro-batches as one process, and their squared norms are summed over processes too.
        """
        ...

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches that ended in the open window, or in the last one."""
        ...

    @property
    def watched(self) -> list[Tensor]:
        """The parameters of the open window, or of the last one."""
        ...

    def start_window(self, *, compared: bool = False) -> None:
        """Begin to watch. A window that was open is given up.

        Args:
            compared: whether to compare `.grad` at the step with what was seen, where that can be done
        """
        ...

    def start_micro_batch(self) -> None:
        """Count gradients from now on. What a micro-batch that never ended had gathered is forgotten."""
        ...

    def end_micro_batch(self) -> None:
        """Close the micro-batch: its squared norm is what was gathered since `start_micro_batch`."""
        ...

    def stop_window(self) -> Tensor:
        """Stop watching and take back everything that was registered.

        Returns:
            One squared norm for each micro-batch that ended, in order, on the device; NaN where it could not be told.
        """
        ...

    def step_sums(self, loss_scale: Tensor | None = None) -> StepSums:
        """Compute the window's sums, after `stop_window` and before the step and clipping.

        Args:
            loss_scale: what the loss, but not `.grad`, is multiplied by

        Returns:
            The sums.
        """
        ...

    def local_share_of_mean_squared_norm(self) -> Tensor:
        """Compute this process's share of the squared norm of the mean, from `.grad`, before the step and clipping.

        Returns:
            A 0-d tensor.
        """
        ...
