"""Numbers on their way to the host, summed over ranks: the only collectives, and the only delayed reading.

They are sent at a window's end and read at the next one's, so that no step waits for its own measurement. Every rank
must send the same messages in the same order, so whoever sends decides by numbers that are the same on all ranks, and a
rank that has nothing to say sends all the same. Nothing here waits for another rank but `extremes` and `sums`, at the
start, and `read`, for a message that was sent a window ago.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["PendingSums", "extremes", "sums"]


class PendingSums:
    """A small vector on its way to the host; with several ranks, its sum over all of the default process group.

    On CUDA the copy to the host runs beside the computation into pinned memory, and `read` waits for that copy alone,
    not for what was queued after it. With several ranks the sum and its copy run on a stream of their own, so that the
    computation that is queued behind does not wait for the other ranks either. On other accelerators `read` waits as
    any transfer does. Later changes of the tensor do not show.

    Args:
        vector: 1-d, of any real type; float64 with several ranks
        world_size: number of ranks

    Raises:
        ValueError: If the vector is not 1-d.

    Example:
        >>> PendingSums(torch.tensor([1.0, 2.0]), world_size=1).read()
        [1.0, 2.0]
    """

    def __init__(self, vector: Tensor, *, world_size: int) -> None:
        if vector.dim() != 1:
            raise ValueError(f"vector must be 1-d, found {vector.dim()} dimensions")
        self._arrived: torch.cuda.Event | None = None
        self._work: dist.Work | None = None
        if world_size == 1:
            self._copy(vector.detach())
        else:
            self._reduce(vector.detach())

    def _copy(self, vector: Tensor) -> None:
        if vector.device.type == "cuda":
            self._values = _pinned_like(vector)
            self._copy_to_host(vector, torch.cuda.current_stream(vector.device))
        else:
            self._values = vector.clone()

    def _reduce(self, vector: Tensor) -> None:
        # Copied before anything else is queued: on the stream aside it would race with later changes.
        summed = vector.to(_device_of_sums(vector.device), copy=True)
        if summed.device.type != "cuda":
            self._values = summed
            self._work = dist.all_reduce(self._values, async_op=True)
            return
        aside = _stream_aside(summed.device)
        aside.wait_stream(torch.cuda.current_stream(summed.device))
        self._values = _pinned_like(summed)
        with torch.cuda.stream(aside):
            dist.all_reduce(summed)
            self._copy_to_host(summed, aside)
        summed.record_stream(aside)

    def _copy_to_host(self, vector: Tensor, stream: torch.cuda.Stream) -> None:
        self._values.copy_(vector, non_blocking=True)
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._arrived.record(stream)

    @property
    def has_arrived(self) -> bool:
        """Whether `read` would give the sums at once: after another rank's failure it may wait for ever, or fail."""
        try:
            if self._arrived is not None:
                return bool(self._arrived.query())  # type: ignore[no-untyped-call]
            if self._work is not None and self._work.is_completed():
                self.read()
        except RuntimeError:  # the connection to a rank broke, or the device failed
            return False
        return self._work is None

    def read(self) -> list[float]:
        """Wait for the slowest rank's message, or for the copy, and for nothing else.

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


def sums(values: Sequence[float], device: torch.device, world_size: int) -> list[float]:
    """Add each number up over all ranks. It waits for all ranks: for the start only.

    Args:
        values: this rank's numbers; nan makes the sum nan
        device: the device that this rank computes on
        world_size: number of ranks

    Returns:
        The sums; the same on all ranks.
    """
    if world_size == 1:
        return list(values)
    return PendingSums(torch.tensor(values, dtype=torch.float64, device=device), world_size=world_size).read()


def _pinned_like(vector: Tensor) -> Tensor:
    return torch.empty(vector.shape, dtype=vector.dtype, pin_memory=True)


@cache
def _stream_aside(device: torch.device) -> torch.cuda.Stream:
    # One for all messages: torch has 32 streams, which others use too, and they arrive one after the other anyway.
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _device_of_sums(device: torch.device) -> torch.device:
    # A backend that sums on the host anyway (gloo, also where the tensor is a GPU's) is given the numbers there.
    backends = dict(pair.split(":") for pair in dist.get_backend_config().split(","))
    has_own = device.type in backends and backends[device.type] != backends.get("cpu")
    return device if has_own else torch.device("cpu")
