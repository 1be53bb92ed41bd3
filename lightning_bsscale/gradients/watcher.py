"""What every way of watching micro-batch gradients promises."""

from typing import Protocol

from torch import Tensor

__all__ = ["GradientWatcher"]


class GradientWatcher(Protocol):
    """Tells the squared norm of each micro-batch's own gradient, window by window.

    The calls of one measured window, with nothing registered before and after them::

        watcher.start_window()
        for micro_batch in window:
            loss = ...
            watcher.start_micro_batch()
            loss.backward()
            watcher.end_micro_batch()
        sq_norms = watcher.stop_window()
        mean_sq_norm = watcher.local_share_of_mean_squared_norm()

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

    def start_window(self) -> None:
        """Begin to watch. A window that was open is given up."""
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

    def local_share_of_mean_squared_norm(self) -> Tensor:
        """Compute this process's share of the squared norm of the mean, from `.grad`, before the step and clipping.

        Returns:
            A 0-d tensor.
        """
        ...
