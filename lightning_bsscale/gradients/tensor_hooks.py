"""Squared norms of the gradients of backward passes, through tensor hooks on parameters.

A hook on a parameter is called in every backward pass with that pass's complete gradient, before it is added to
`.grad`. This is correct for tied weights, modules used twice, non-reentrant checkpointing and compiled modules. The one
exception is *reentrant* checkpointing: the gradient of a parameter that is used in two segments arrives in parts, which
must be added before they are squared.

One kernel launch for each parameter would cost more than the arithmetic. The hooks therefore only gather references,
and a few `_foreach_norm` calls compute the norms of many tensors at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lightning_bsscale.gradients.norms import move_to, norm_of_each, sum_dtype

__all__ = ["GradientSink", "TensorHooks", "is_small"]

# Receives pairs of a parameter's id and a gradient of a sample, or a part of one; all on one device.
GradientSink = Callable[[Iterable[tuple[int, Tensor]]], None]

# The whole gradient of a parameter with this few elements may be zero by chance; that of a larger one is not.
FEW_ELEMENTS = 16
# A gathered gradient cannot be freed, and cannot become `.grad` without a copy, so the number of waiting elements is
# limited. On an accelerator this is about 100 MB, and a handful of launches for a model of 100 million parameters.
MAX_WAITING_ELEMENTS = 25_000_000
# On a CPU launches are cheap and cache misses are not: compute the norms while the gradients are in the cache.
MAX_WAITING_ELEMENTS_CPU = 200_000
# Limit of the cached orders in which a sample's gradients arrive: with routing each sample may have another one.
MAX_PLACES = 64


class TensorHooks:
    """Tensor hooks that compute the norm of each sample's gradient; they are active between `begin` and `end`.

    The gradients are bit-identical with and without the hooks. Backward passes are expected to run on one stream per
    device, as they do unless the model's forward pass chooses streams itself.

    Args:
        grad_is_own: whether a backward pass that starts without `.grad` leaves this process's own gradient there. The
            norm of such a sample is computed from `.grad`. The hooks then keep no reference, which would force
            autograd to copy the gradient
        home: device of the norms; by default that of the first parameter. (An offloaded parameter on the CPU may have
            its gradient on another device.)
        part_of: returns the part of a parameter's gradient that counts; by default all of it

    Attributes:
        home: device of the norms
        watched: the parameters that are or were last hooked
        of_each: squared norms of each watched parameter's gradients over the samples' weights, summed over samples
        signed: with `grad_is_own`, sums over samples of the gradients of parameters with a few elements, by id
    """

    def __init__(
        self,
        *,
        grad_is_own: bool = False,
        home: torch.device | None = None,
        part_of: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self._grad_is_own = grad_is_own
        self._part_of = part_of
        self._given_home = home
        self.home = home or torch.device("cpu")
        self.watched: list[Tensor] = []
        self.of_each = torch.zeros(0, dtype=sum_dtype(self.home), device=self.home)
        self.signed: dict[int, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self._without_hooks: list[Tensor] = []
        self._sink: GradientSink | None = None
        self._gathered: dict[torch.device, _Gathered] | None = None  # None while the hooks are not active
        self._is_fresh = False
        self._places: dict[tuple[int, ...], Tensor] = {}
        # Ids of parameters whose gradient once arrived in parts too far apart. If an id is reused by another parameter,
        # that gradient is merely kept a little longer.
        self._in_parts: set[int] = set()

    def register(self, parameters: Iterable[Tensor], sink: GradientSink | None = None) -> None:
        """Hook parameters while none is hooked, and reset all sums to zero.

        Args:
            parameters: each once, and requiring a gradient
            sink: called with the observed gradients (or their parts by `part_of`), for comparison
        """
        watched = list(parameters)
        if watched and self._given_home is None:
            self.home = watched[0].device
        if {id(p) for p in watched} != {id(p) for p in self.watched}:
            self._places = {}
        self.watched = watched
        self.of_each = torch.zeros(len(watched), dtype=sum_dtype(self.home), device=self.home)
        self.signed = {}
        self._sink = sink
        self._without_hooks = [p for p in watched if p._backward_hooks is None]
        self._handles = [_registered(p, partial(self._gather, p)) for p in watched]

    def begin(self) -> None:
        """Start a sample, and discard one that never ended."""
        self._gathered = {}
        # A comparison needs the hooks: `.grad` may be changed before it is read.
        self._is_fresh = self._grad_is_own and self._sink is None and all(p.grad is None for p in self.watched)

    def end(self, weight: float = 1.0) -> Tensor:
        """End the sample.

        Args:
            weight: the factor on the sample's loss in the window's mean

        Returns:
            The squared norm of its gradient over the weight, 0-d, on `home`, in float64 if the device has it; NaN if a
            parameter's gradient arrived in parts too far apart for the first time.
        """
        gathered, self._gathered = self._gathered or {}, None
        if self._is_fresh:
            self._gather_from_grad(gathered)
        totals = []
        for part in gathered.values():
            keys, sq_norms = part.finish()
            sq_norms = move_to(sq_norms if weight == 1 else sq_norms / weight, self.home)
            self.of_each.index_add_(0, self._place_of(keys), sq_norms)
            totals.append(sq_norms.sum())
        if len(totals) == 1:
            return totals[0]
        return sum(totals, torch.zeros((), dtype=sum_dtype(self.home), device=self.home))

    def remove(self) -> None:
        """Remove all hooks, if there are any."""
        for handle in self._handles:
            handle.remove()
        # torch keeps an empty table on a parameter that once had a hook, and calls into Python for it in every later
        # backward pass: about 1 % of a small model's time. A table that did not exist before is removed.
        for parameter in self._without_hooks:
            if not parameter._backward_hooks:
                parameter._backward_hooks = None
        self._handles = []
        self._without_hooks = []
        self._gathered = None

    # Called by autograd, in one thread per device. It returns None: a tensor would replace the gradient.
    def _gather(self, parameter: Tensor, gradient: Tensor) -> None:
        if self._gathered is None or self._is_fresh:
            return
        if self._grad_is_own and is_small(parameter):
            self._add_signed(parameter, gradient)
        if self._part_of is not None:
            gradient = self._part_of(parameter, gradient)
        device = gradient.device
        if device not in self._gathered:
            self._gathered[device] = _Gathered(device, self._in_parts, self._sink)
        self._gathered[device].add(id(parameter), gradient)

    def _gather_from_grad(self, gathered: dict[torch.device, _Gathered]) -> None:
        by_device: dict[torch.device, dict[int, Tensor]] = {}
        for p in self.watched:
            grad = p.grad
            if grad is not None:
                by_device.setdefault(grad.device, {})[id(p)] = grad
                if is_small(p):
                    self._add_signed(p, grad)
        for device, grads in by_device.items():
            gathered[device] = _Gathered(device, self._in_parts, self._sink, grads)

    def _add_signed(self, parameter: Tensor, gradient: Tensor) -> None:
        if gradient.layout is torch.strided:
            with torch.no_grad():
                before = self.signed.get(id(parameter))
                self.signed[id(parameter)] = gradient.clone() if before is None else before + gradient

    def _place_of(self, keys: tuple[int, ...]) -> Tensor:
        # Cached, since it is the same in nearly every sample, and a copy from the host takes time.
        if keys not in self._places:
            if len(self._places) >= MAX_PLACES:
                self._places = {}
            index = {id(p): place for place, p in enumerate(self.watched)}
            places = torch.tensor([index[key] for key in keys], dtype=torch.long)
            self._places[keys] = places.to(self.home, non_blocking=True)
        return self._places[keys]


def is_small(parameter: Tensor) -> bool:
    """Return whether a parameter has so few elements that its whole gradient may be zero by chance."""
    return 0 < parameter.numel() <= FEW_ELEMENTS


class _Gathered:
    """One sample's gradients on one device: those waiting for their norm, and the norms so far.

    Args:
        device: device of the gradients
        in_parts: ids of the parameters whose gradients wait until the sample's end; extended here
        sink: called with each gradient once, or None
        waiting: initial gradients, by id of the parameter
    """

    def __init__(
        self,
        device: torch.device,
        in_parts: set[int],
        sink: GradientSink | None,
        waiting: dict[int, Tensor] | None = None,
    ) -> None:
        self._device = device
        self._limit = MAX_WAITING_ELEMENTS_CPU if device.type == "cpu" else MAX_WAITING_ELEMENTS
        self._in_parts = in_parts
        self._sink = sink
        self._waiting = {} if waiting is None else waiting
        self._waiting_elements = 0
        self._held: dict[int, Tensor] = {}
        self._norms: dict[int, Tensor] = {}
        self._lost: set[int] = set()

    def add(self, key: int, gradient: Tensor) -> None:
        """Gather the gradient that autograd is about to add to a parameter's `.grad`, or the next part of it."""
        if key in self._in_parts:
            self._held[key] = _added(self._held.get(key), gradient)
        elif key in self._waiting:
            self._waiting[key] = _added(self._waiting[key], gradient)
        elif key in self._norms:
            # The first part has been squared already, so its product with this part is lost.
            self._in_parts.add(key)
            self._lost.add(key)
            if self._sink is not None:
                self._sink([(key, gradient)])
        else:
            self._waiting[key] = gradient
            self._waiting_elements += gradient.numel()
            if self._waiting_elements > self._limit:
                self._take_norms()

    def finish(self) -> tuple[tuple[int, ...], Tensor]:
        """Return the ids of the parameters that had a gradient, and the squared norm of each."""
        self._waiting.update(self._held)
        self._take_norms()
        if not self._norms:
            return (), torch.zeros(0, dtype=sum_dtype(self._device), device=self._device)
        for key in self._lost:
            self._norms[key] = torch.full((), math.nan, dtype=sum_dtype(self._device), device=self._device)
        return tuple(self._norms), torch.stack(list(self._norms.values())).to(sum_dtype(self._device)).square()

    def _take_norms(self) -> None:
        # Within a backward pass gradients are recorded where the user wants second derivatives.
        with torch.no_grad():
            norms = norm_of_each(self._waiting.values())
            if self._sink is not None:
                self._sink(self._waiting.items())
        self._norms.update(zip(self._waiting, norms, strict=True))
        self._waiting = {}
        self._waiting_elements = 0


def _registered(parameter: Tensor, hook: Callable[[Tensor], None]) -> RemovableHandle:
    handle: RemovableHandle = parameter.register_hook(hook)  # type: ignore[no-untyped-call]
    return handle


def _added(first: Tensor | None, second: Tensor) -> Tensor:
    if first is None:
        return second
    with torch.no_grad():
        # torch adds a sparse tensor to a dense one, but not the reverse.
        return second + first if first.is_sparse else first + second
