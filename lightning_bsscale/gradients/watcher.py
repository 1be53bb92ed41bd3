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

    A watcher never changes a gradient, and never waits for the device.
    """

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
