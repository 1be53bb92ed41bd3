"""Sums over ranks and delayed transfers to the host: the only collectives, and the only delayed reading.

Numbers are sent at a window's end and read at the end of the next one, so that no step waits for its own measurement.
Every rank must send the same messages in the same order. Whether to send is therefore decided from numbers that are the
same on all ranks, and a rank without data sends too. Four calls wait for other ranks: `extremes` and `sums`, at the
start (`sums` also where validations and epochs end, if a policy watches a metric), `read`, for a message that was sent
a window ago, and `all_agree`, where a sharded model waits for them anyway.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["PendingSums", "all_agree", "extremes", "smallest_power", "smallest_power_of_sum", "sums"]


class PendingSums:
    """A small vector in transfer to the host; with several ranks, its sum over the default process group.

    On CUDA the copy to pinned host memory runs beside the computation, and `read` waits for that copy alone, not for
    work that was queued after it. With several ranks the sum and its copy run on a separate stream, so that later work
    does not wait for the other ranks either. On other accelerators `read` waits as any transfer does. Later changes of
    the tensor have no effect.

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
            raise ValueError(f"vector must be 1-d, got {vector.dim()} dimensions")
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
        # Copied before anything else is queued: on the side stream it would race with later changes.
        summed = vector.to(_device_of_sums(vector.device), copy=True)
        if summed.device.type != "cuda":
            self._values = summed
            self._work = dist.all_reduce(self._values, async_op=True)
            return
        side = _side_stream(summed.device)
        side.wait_stream(torch.cuda.current_stream(summed.device))
        self._values = _pinned_like(summed)
        with torch.cuda.stream(side):
            dist.all_reduce(summed)
            self._copy_to_host(summed, side)
        summed.record_stream(side)

    def _copy_to_host(self, vector: Tensor, stream: torch.cuda.Stream) -> None:
        self._values.copy_(vector, non_blocking=True)
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._arrived.record(stream)

    @property
    def has_arrived(self) -> bool:
        """Whether `read` would return at once. After another rank's failure it might wait forever, or fail."""
        try:
            if self._arrived is not None:
                return bool(self._arrived.query())  # type: ignore[no-untyped-call]
            if self._work is not None and self._work.is_completed():
                self.read()
        except RuntimeError:  # the connection to a rank broke, or the device failed
            return False
        return self._work is None

    def read(self) -> list[float]:
        """Wait for the slowest rank's message or for the copy, and return the sums: the same on all ranks."""
        if self._arrived is not None:
            self._arrived.synchronize()
        if self._work is not None:
            self._work.wait()
            self._work = None
        return [float(value) for value in self._values.tolist()]


def extremes(values: Sequence[float], device: torch.device, world_size: int) -> tuple[list[float], list[float]]:
    """Return the minimum and the maximum of each number over all ranks. It waits for all ranks: for the start only.

    Args:
        values: this rank's numbers
        device: the device that this rank computes on
        world_size: number of ranks

    Returns:
        The minima and the maxima; the same on all ranks.
    """
    if world_size == 1:
        return list(values), list(values)
    both = torch.tensor([*values, *(-value for value in values)], dtype=torch.float64, device=_device_of_sums(device))
    dist.all_reduce(both, op=dist.ReduceOp.MAX)
    reduced = both.tolist()
    return [-value for value in reduced[len(values) :]], reduced[: len(values)]


def sums(values: Sequence[float], device: torch.device, world_size: int) -> list[float]:
    """Sum each number over all ranks. It waits for all ranks: for the start, and the ends of validations and epochs.

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


def all_agree(is_true: bool, device: torch.device) -> bool:
    """Return whether something holds on every rank. It waits for all ranks.

    Args:
        is_true: whether it holds on this rank
        device: the device that this rank computes on

    Returns:
        The same on all ranks.
    """
    holds = torch.tensor(float(is_true), dtype=torch.float64, device=_device_of_sums(device))
    dist.all_reduce(holds, op=dist.ReduceOp.MIN)
    return bool(holds)


def smallest_power(power: int | None, world_size: int) -> float:
    """Return a number whose sum over ranks tells the smallest of their powers of two.

    Args:
        power: this rank's power of two, at most 2**40; None for none
        world_size: number of ranks

    Example:
        >>> smallest_power_of_sum(smallest_power(64, 2) + smallest_power(16, 2), 2)
        16
    """
    # Each power below outweighs all ranks' powers above it together, and float64 holds all of them exactly.
    return 0.0 if power is None else 2.0 ** (-(power.bit_length() - 1) * world_size.bit_length())


def smallest_power_of_sum(total: float, world_size: int) -> int | None:
    """Return the smallest power of two of any rank, from the sum of `smallest_power`; None if no rank has one."""
    if total == 0:
        return None
    return 1 << -((math.frexp(total)[1] - 1) // world_size.bit_length())


def _pinned_like(vector: Tensor) -> Tensor:
    return torch.empty(vector.shape, dtype=vector.dtype, pin_memory=True)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    # One stream for all messages: torch has only 32, and the messages arrive one after the other anyway.
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _device_of_sums(device: torch.device) -> torch.device:
    # gloo sums on the host even for GPU tensors, so it gets the numbers there.
    backends = dict(pair.split(":") for pair in dist.get_backend_config().split(","))
    has_own = device.type in backends and backends[device.type] != backends.get("cpu")
    return device if has_own else torch.device("cpu")
