"""Numbers on their way from the device to the host, without a wait at either end."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["DelayedVector"]


class DelayedVector:
    """A small vector whose copy to the host has started and is read later.

    On CUDA the copy runs beside the computation into pinned memory, and `read` waits for that copy alone, not for what
    was queued after it. On other accelerators `read` waits as any transfer does. Later changes of the tensor do not
    show.

    Args:
        tensor: 1-d, of any real type

    Raises:
        ValueError: If the tensor is not 1-d.

    Example:
        >>> DelayedVector(torch.tensor([1.0, 2.0])).read()
        [1.0, 2.0]
    """

    def __init__(self, tensor: Tensor) -> None:
        if tensor.dim() != 1:
            raise ValueError(f"tensor must be 1-d, found {tensor.dim()} dimensions")
        self._arrived: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self._values = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._values.copy_(tensor.detach(), non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(tensor.device))
        else:
            self._values = tensor.detach().clone()

    def read(self) -> list[float]:
        """Wait for the copy, and for nothing else.

        Returns:
            The numbers; the same at every call.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        return [float(value) for value in self._values.tolist()]
