"""Squared norms of each micro-batch's own gradient, by tensor hooks on the parameters: one device, and DDP.

A hook on a parameter is called in every backward pass with that pass's complete gradient, before it is added to
`.grad`: right for tied weights, modules used twice, non-reentrant checkpointing and compiled modules. The one
exception is *reentrant* checkpointing: a parameter that is used in two segments is then given in parts, which must be
added before they are squared.

Launching one kernel for each parameter would cost more than the arithmetic, so the hooks only gather references, and a
few `_foreach_norm` calls take the norms of many tensors at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

__all__ = ["ParameterHooks", "mean_squared_norm", "squared_norm", "sum_dtype"]

# A gathered gradient cannot be freed, and cannot become `.grad` without a copy: so many elements may wait at a time. On
# an accelerator this is about 100 MB, and a handful of launches for a model of 100 million parameters.
MAX_WAITING_ELEMENTS = 25_000_000
# On a CPU a launch is cheap and cache misses are not: take the norms while the gradients are still in the cache.
MAX_WAITING_ELEMENTS_CPU = 200_000


def mean_squared_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Compute the squared norm of the gradient in `.grad`: before a step, that of the mean that is stepped with.

    Args:
        parameters: the parameters; those without a `.grad` count as zero

    Returns:
        A 0-d tensor on the first parameter's device, float64 where the device has it. Nothing waits for it.
    """
    parameters = list(parameters)
    home = parameters[0].device if parameters else torch.device("cpu")
    with torch.no_grad():
        return squared_norm([p.grad for p in parameters if p.grad is not None], home)


class ParameterHooks:
    """Watches parameters by tensor hooks; a `GradientWatcher`.

    Hooks exist only between `start_window` and `stop_window`, and count only between `start_micro_batch` and
    `end_micro_batch`: other windows cost nothing, and a `torch.autograd.grad` inside the loss is not counted.

    With the hooks the gradients are bit for bit those without. A hook of the user's that changes a gradient counts if
    it was registered before the window. Backward passes are expected on one stream per device, as they are unless the
    model's forward pass chose streams itself.

    A micro-batch that begins with no `.grad` at all, as the first of a window does, leaves its own gradient there: its
    norm is then taken from `.grad`, and the hooks, which would keep autograd from handing the gradient over uncopied,
    hold nothing.

    Args:
        parameters: the parameters to watch, or a function that gives them anew for each window. Those that require no
            gradient when a window starts are left out of that window.
        grad_is_own: whether `.grad`, when a backward pass has filled it from none, is this process's own gradient: true
            on one device, false where a backward pass also reduces over processes.
        num_replicas: processes whose `.grad` is the same at a window's end, this one included
        home: device of the norms; by default that of the first parameter. (A parameter whose home is the CPU may have
            its gradient elsewhere, where parameters are offloaded.)
        part_of: given a parameter and its gradient, what of the gradient counts; by default all of it

    Attributes:
        micro_batch_is_global: False: the norms are those of this process's own gradients.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> hooks = ParameterHooks(model.parameters())
        >>> hooks.start_window()
        >>> for example in torch.tensor([[3.0, 4.0], [1.0, 0.0]]):
        ...     loss = model(example).sum()
        ...     hooks.start_micro_batch()
        ...     loss.backward()
        ...     hooks.end_micro_batch()
        >>> hooks.stop_window().tolist(), round(mean_squared_norm(model.parameters()).item(), 3)
        ([25.0, 1.0], 32.0)
    """

    micro_batch_is_global: Final = False

    def __init__(
        self,
        parameters: Iterable[Tensor] | Callable[[], Iterable[Tensor]],
        *,
        grad_is_own: bool = False,
        num_replicas: int = 1,
        home: torch.device | None = None,
        part_of: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        if callable(parameters):
            self._parameters = parameters
        else:
            listed = list(parameters)  # a generator such as model.parameters() gives its items once only
            self._parameters = lambda: listed
        self._grad_is_own = grad_is_own
        self._num_replicas = num_replicas
        self._part_of = part_of
        self._watched: list[Tensor] = []
        self._bare: list[Tensor] = []
        self._fresh = False
        self._handles: list[RemovableHandle] = []
        self._given_home = home
        self._home = home or torch.device("cpu")
        self._open = False
        self._gathered: dict[torch.device, _Gathered] | None = None  # None: hooks do not count now
        self._sq_norms: list[Tensor] = []
        # Parameters that once came in parts too far apart, by id. Should an id be used again by another parameter, then
        # that one's gradient is merely kept a little longer.
        self._in_parts: set[int] = set()

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches that ended in the open window, or in the last one."""
        return len(self._sq_norms)

    def start_window(self) -> None:
        """Register the hooks, on every parameter that requires a gradient now. A window that was open is given up."""
        self._remove_hooks()
        watched = {id(p): p for p in self._parameters() if p.requires_grad}
        if watched and self._given_home is None:
            self._home = next(iter(watched.values())).device
        self._watched = list(watched.values())
        self._bare = [p for p in self._watched if p._backward_hooks is None]
        self._handles = [_registered(p, partial(self._gather, p)) for p in self._watched]
        self._sq_norms = []
        self._open = True

    def start_micro_batch(self) -> None:
        """Count gradients from now on. What a micro-batch that never ended had gathered is forgotten.

        Raises:
            RuntimeError: If no window is open.
        """
        if not self._open:
            raise RuntimeError("start_micro_batch was called outside a window: call start_window first")
        self._gathered = {}
        self._fresh = self._grad_is_own and all(p.grad is None for p in self._watched)

    def end_micro_batch(self) -> None:
        """Close the micro-batch; one without any gradient has norm zero.

        Raises:
            RuntimeError: If no micro-batch was started.
        """
        if self._gathered is None:
            raise RuntimeError("end_micro_batch was called without a micro-batch: call start_micro_batch first")
        gathered, self._gathered = self._gathered, None
        if self._fresh:
            self._sq_norms.append(mean_squared_norm(self._watched))
            return
        total = torch.zeros((), dtype=sum_dtype(self._home), device=self._home)
        with torch.no_grad():
            for part in gathered.values():
                total = total + _moved(part.finish(), self._home)
        self._sq_norms.append(total)

    def stop_window(self) -> Tensor:
        """Remove the hooks. A micro-batch that never ended is left out.

        Returns:
            One squared norm for each micro-batch that ended, in order, on the first parameter's device; float64 where
            the device has it. NaN for the micro-batch in which a parameter first came in parts too far apart.
        """
        self._remove_hooks()
        if not self._sq_norms:
            return torch.zeros(0, dtype=sum_dtype(self._home), device=self._home)
        return torch.stack(self._sq_norms)

    def local_share_of_mean_squared_norm(self) -> Tensor:
        """Compute this process's share of the squared norm of the mean, from `.grad`, at a window's end.

        Returns:
            A 0-d tensor, whose sum over processes is the squared norm. Nothing waits for it.
        """
        return mean_squared_norm(self._parameters()) / self._num_replicas

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        # torch keeps an empty table on a parameter that once had a hook, and calls into Python for it in every backward
        # pass from then on: about 1 % of a small model's time. Where there was none before, there is none again.
        for parameter in self._bare:
            if not parameter._backward_hooks:
                parameter._backward_hooks = None
        self._handles = []
        self._bare = []
        self._watched = []
        self._gathered = None
        self._open = False

    # Called by autograd, one thread a device. It returns None: a tensor would replace the gradient.
    def _gather(self, parameter: Tensor, gradient: Tensor) -> None:
        if self._gathered is None or self._fresh:
            return
        if self._part_of is not None:
            gradient = self._part_of(parameter, gradient)
        device = gradient.device
        if device not in self._gathered:
            self._gathered[device] = _Gathered(device, self._in_parts)
        self._gathered[device].add(id(parameter), gradient)


class _Gathered:
    """One micro-batch's gradients on one device: those that wait for their norm, and the sum of those that had it.

    Args:
        device: where the gradients are
        in_parts: ids of the parameters whose gradients wait until the micro-batch's end; grows
    """

    def __init__(self, device: torch.device, in_parts: set[int]) -> None:
        self._device = device
        self._limit = MAX_WAITING_ELEMENTS_CPU if device.type == "cpu" else MAX_WAITING_ELEMENTS
        self._in_parts = in_parts
        self._waiting: dict[int, Tensor] = {}
        self._waiting_elements = 0
        self._held: dict[int, Tensor] = {}
        self._done: set[int] = set()
        self._sums: list[Tensor] = []

    def add(self, key: int, gradient: Tensor) -> None:
        """Gather one gradient, or the next part of one.

        Args:
            key: id of the parameter
            gradient: what autograd is about to add to its `.grad`
        """
        if key in self._in_parts:
            self._held[key] = _added(self._held.get(key), gradient)
        elif key in self._waiting:
            self._waiting[key] = _added(self._waiting[key], gradient)
        elif key in self._done:
            # The first part's square is already in the sum, and its product with this part can no longer be told.
            self._in_parts.add(key)
            self._sums.append(torch.full((), math.nan, dtype=sum_dtype(self._device), device=self._device))
        else:
            self._waiting[key] = gradient
            self._waiting_elements += gradient.numel()
            if self._waiting_elements > self._limit:
                self._take_norms()

    def finish(self) -> Tensor:
        """Take the norms of all that still waits.

        Returns:
            The micro-batch's squared norm on this device.
        """
        self._waiting.update(self._held)
        self._take_norms()
        return self._sums[0] if len(self._sums) == 1 else torch.stack(self._sums).sum()

    def _take_norms(self) -> None:
        with torch.no_grad():
            self._sums.append(squared_norm(self._waiting.values(), self._device))
        self._done.update(self._waiting)
        self._waiting = {}
        self._waiting_elements = 0


def _registered(parameter: Tensor, hook: Callable[[Tensor], None]) -> RemovableHandle:
    handle: RemovableHandle = parameter.register_hook(hook)  # type: ignore[no-untyped-call]
    return handle


def _added(first: Tensor | None, second: Tensor) -> Tensor:
    if first is None:
        return second
    with torch.no_grad():
        # torch adds a sparse tensor to a dense one, not the other way round.
        return second + first if first.is_sparse else first + second


def squared_norm(gradients: Iterable[Tensor], home: torch.device) -> Tensor:
    """Sum the squares of all elements of all tensors.

    Args:
        gradients: tensors of any device, dtype and layout
        home: where the sum is put

    Returns:
        A 0-d tensor on `home`, in float64 where it has that.
    """
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for gradient in map(_real_and_dense, gradients):
        groups.setdefault((gradient.device, gradient.dtype), []).append(gradient)
    norms = []
    for (device, dtype), group in groups.items():
        # float16 would overflow, and bfloat16 has three digits: both are summed in float32.
        summed_in = torch.promote_types(dtype, torch.float32)
        of_group = torch.stack(torch._foreach_norm(group, 2, dtype=summed_in))
        norms.append(_moved(of_group.to(sum_dtype(device)).square().sum(), home))
    if not norms:
        return torch.zeros((), dtype=sum_dtype(home), device=home)
    return norms[0] if len(norms) == 1 else torch.stack(norms).sum()


def _real_and_dense(gradient: Tensor) -> Tensor:
    if gradient.is_sparse:
        # Uncoalesced, one row may be given several times: it must be added up before it is squared.
        gradient = gradient.coalesce().values()
    elif gradient.layout is not torch.strided:
        gradient = gradient.values()
    return torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient


def _moved(norm: Tensor, home: torch.device) -> Tensor:
    # A copy from an accelerator to the CPU that did not wait could be read before it has arrived.
    return norm.to(home, sum_dtype(home), non_blocking=home.type != "cpu")


def sum_dtype(device: torch.device) -> torch.dtype:
    """Choose the widest type to sum in.

    Args:
        device: where the sum is

    Returns:
        float64, or float32 where the device has no float64.
    """
    return torch.float32 if device.type == "mps" else torch.float64
