"""The only collectives: sums of one small vector over ranks, sent at a window's end and read at the next one's.

Every rank must send the same messages in the same order, so whoever sends decides by numbers that are the same on all
ranks, and a rank that has nothing to say sends all the same. Nothing here waits for another rank but `extremes`, at the
start, and `read`, for a message that was sent a window ago.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["SummedVector", "extremes"]


class SummedVector:
    """A small vector on its way to be summed over all ranks of the default process group.

    On CUDA the sum and its copy to the host run on a stream of their own, so that neither end waits for the
    computation that is queued behind.

    Args:
        tensor: 1-d, float64
    """

    def __init__(self, tensor: Tensor) -> None:
        tensor = tensor.to(_device_of_sums(tensor.device))
        self._arrived: torch.cuda.Event | None = None
        self._work: dist.Work | None = None
        if tensor.device.type != "cuda":
            self._values = tensor.detach().clone()
            self._work = dist.all_reduce(self._values, async_op=True)
            return
        current = torch.cuda.current_stream(tensor.device)
        aside = torch.cuda.Stream(tensor.device)  # type: ignore[no-untyped-call]
        aside.wait_stream(current)
        self._values = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        with torch.cuda.stream(aside):
            summed = tensor.detach().clone()
            dist.all_reduce(summed)
            self._values.copy_(summed, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(aside)
        tensor.record_stream(aside)

    @property
    def has_arrived(self) -> bool:
        """Whether `read` would give the sums at once: after another rank's failure it may wait for ever, or fail."""
        if self._arrived is not None:
            return bool(self._arrived.query())  # type: ignore[no-untyped-call]
        if self._work is not None and self._work.is_completed():
            try:
                self.read()
            except RuntimeError:  # the connection to a rank broke
                return False
        return self._work is None

    def read(self) -> list[float]:
        """Wait for the slowest rank's message, and for nothing else.

        Returns:
            The sums; the same on all ranks, and at every call.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        if self._work is not None:
            self._work.wait()
            self._work = None
        return [float(value) for value in self._values.tolist()]


def extremes(values: Sequence[float], device: torch.device, world_size: int) -> tuple[list[float], list[float]]:
    """Find the smallest and the largest of each number over all ranks. It waits for all ranks: for the start only.

    Args:
        values: this rank's numbers
        device: the device that this rank computes on
        world_size: number of ranks

    Returns:
        The smallest ones, and the largest ones; the same on all ranks.
    """
    if world_size == 1:
        return list(values), list(values)
    both = torch.tensor([*values, *(-value for value in values)], dtype=torch.float64, device=_device_of_sums(device))
    dist.all_reduce(both, op=dist.ReduceOp.MAX)
    found = both.tolist()
    return [-value for value in found[len(values) :]], found[: len(values)]


def _device_of_sums(device: torch.device) -> torch.device:
    # A backend that cannot sum where the gradients are (gloo for a GPU's) sums on the host.
    backends = dist.get_backend_config() if hasattr(dist, "get_backend_config") else dist.get_backend()
    return device if device.type == "cpu" or "nccl" in str(backends) else torch.device("cpu")
