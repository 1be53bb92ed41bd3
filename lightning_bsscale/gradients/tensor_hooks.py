"""Squared norms of the gradients that backward passes give to parameters, by tensor hooks.

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

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lightning_bsscale.gradients.norms import moved, norm_of_each, sum_dtype

__all__ = ["TakesGradients", "TensorHooks", "is_small"]

# Takes pairs of a parameter's id and a gradient of a sample, or a part of one; all on one device.
TakesGradients = Callable[[Iterable[tuple[int, Tensor]]], None]

# The whole gradient of a parameter of so few elements may be zero by chance; that of a larger one is not.
FEW_ELEMENTS = 16
# A gathered gradient cannot be freed, and cannot become `.grad` without a copy: so many elements may wait at a time. On
# an accelerator this is about 100 MB, and a handful of launches for a model of 100 million parameters.
MAX_WAITING_ELEMENTS = 25_000_000
# On a CPU a launch is cheap and cache misses are not: take the norms while the gradients are still in the cache.
MAX_WAITING_ELEMENTS_CPU = 200_000
# Orders in which a sample's gradients arrive that are remembered: with routing each sample may have another.
MAX_PLACES = 64


class TensorHooks:
    """Tensor hooks that take the norm of each sample's gradient; they count only between `begin` and `end`.

    With the hooks the gradients are bit for bit those without. Backward passes are expected on one stream per device,
    as they are unless the model's forward pass chose streams itself.

    Args:
        grad_is_own: whether `.grad`, when a backward pass has filled it from none, is this process's own gradient. A
            sample that begins with no `.grad` at all leaves its own gradient there: its norm is then taken from
            `.grad`, and the hooks, which would keep autograd from handing the gradient over uncopied, hold nothing
        home: device of the norms; by default that of the first parameter. (A parameter whose home is the CPU may have
            its gradient elsewhere, where parameters are offloaded.)
        part_of: given a parameter and its gradient, what of the gradient counts; by default all of it

    Attributes:
        home: device of the norms
        watched: the parameters that are hooked, or were at last
        of_each: squared norms of each watched parameter's gradients, summed over samples
        signed: where `grad_is_own`, sums over samples of the gradients of parameters of a few elements, by id
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
        self._bare: list[Tensor] = []
        self._takes: TakesGradients | None = None
        self._gathered: dict[torch.device, _Gathered] | None = None  # None: hooks do not count now
        self._is_fresh = False
        self._places: dict[tuple[int, ...], Tensor] = {}
        # Parameters that once came in parts too far apart, by id. Should an id be used again by another parameter, then
        # that one's gradient is merely kept a little longer.
        self._in_parts: set[int] = set()

    def register(self, parameters: Iterable[Tensor], takes: TakesGradients | None = None) -> None:
        """Hook parameters, where none is hooked now, and start all sums at zero.

        Args:
            parameters: each once, and requiring a gradient
            takes: called with what the hooks see, or `part_of` leaves of it, to compare elsewhere
        """
        watched = list(parameters)
        if watched and self._given_home is None:
            self.home = watched[0].device
        if {id(p) for p in watched} != {id(p) for p in self.watched}:
            self._places = {}
        self.watched = watched
        self.of_each = torch.zeros(len(watched), dtype=sum_dtype(self.home), device=self.home)
        self.signed = {}
        self._takes = takes
        self._bare = [p for p in watched if p._backward_hooks is None]
        self._handles = [_registered(p, partial(self._gather, p)) for p in watched]

    def begin(self) -> None:
        """Count from now on, and forget what was gathered since the last `begin` if it never ended."""
        self._gathered = {}
        # Not where it is compared: `.grad` may have been changed before it is looked at.
        self._is_fresh = self._grad_is_own and self._takes is None and all(p.grad is None for p in self.watched)

    def end(self) -> Tensor:
        """Count no longer.

        Returns:
            The squared norm of what was gathered, 0-d, on `home`, in float64 where that has it; NaN if a parameter came
            in parts too far apart for the first time.
        """
        gathered, self._gathered = self._gathered or {}, None
        total = torch.zeros((), dtype=sum_dtype(self.home), device=self.home)
        if self._is_fresh:
            self._gather_from_grad(gathered)
        for part in gathered.values():
            keys, sq_norms = part.finish()
            sq_norms = moved(sq_norms, self.home)
            self.of_each.index_add_(0, self._place_of(keys), sq_norms)
            total = total + sq_norms.sum()
        return total

    def remove(self) -> None:
        """Remove all hooks, if there are any."""
        for handle in self._handles:
            handle.remove()
        # torch keeps an empty table on a parameter that once had a hook, and calls into Python for it in every backward
        # pass from then on: about 1 % of a small model's time. Where there was none before, there is none again.
        for parameter in self._bare:
            if not parameter._backward_hooks:
                parameter._backward_hooks = None
        self._handles = []
        self._bare = []
        self._gathered = None

    # Called by autograd, one thread a device. It returns None: a tensor would replace the gradient.
    def _gather(self, parameter: Tensor, gradient: Tensor) -> None:
        if self._gathered is None or self._is_fresh:
            return
        if self._grad_is_own and is_small(parameter):
            self._add_signed(parameter, gradient)
        if self._part_of is not None:
            gradient = self._part_of(parameter, gradient)
        device = gradient.device
        if device not in self._gathered:
            self._gathered[device] = _Gathered(device, self._in_parts, self._takes)
        self._gathered[device].add(id(parameter), gradient)

    def _gather_from_grad(self, gathered: dict[torch.device, _Gathered]) -> None:
        grads = {id(p): p.grad for p in self.watched if p.grad is not None}
        for p in self.watched:
            if p.grad is not None and is_small(p):
                self._add_signed(p, p.grad)
        for device in {grad.device for grad in grads.values()}:
            on_device = {key: grad for key, grad in grads.items() if grad.device == device}
            gathered[device] = _Gathered(device, self._in_parts, self._takes, on_device)

    def _add_signed(self, parameter: Tensor, gradient: Tensor) -> None:
        if gradient.layout is torch.strided:
            with torch.no_grad():
                before = self.signed.get(id(parameter))
                self.signed[id(parameter)] = gradient.clone() if before is None else before + gradient

    def _place_of(self, keys: tuple[int, ...]) -> Tensor:
        # The same in nearly every sample, so it is kept: a copy from the host costs a moment.
        if keys not in self._places:
            if len(self._places) >= MAX_PLACES:
                self._places = {}
            index = {id(p): place for place, p in enumerate(self.watched)}
            places = torch.tensor([index[key] for key in keys], dtype=torch.long)
            self._places[keys] = places.to(self.home, non_blocking=True)
        return self._places[keys]


def is_small(parameter: Tensor) -> bool:
    """Decide whether a parameter's whole gradient may be zero by chance.

    Args:
        parameter: any

    Returns:
        Whether it has a few elements only.
    """
    return 0 < parameter.numel() <= FEW_ELEMENTS


class _Gathered:
    """One sample's gradients on one device: those that wait for their norm, and the norms of those that had it.

    Args:
        device: where the gradients are
        in_parts: ids of the parameters whose gradients wait until the sample's end; grows
        takes: called with each gradient once, or None
        waiting: gradients to begin with, by id of the parameter
    """

    def __init__(
        self,
        device: torch.device,
        in_parts: set[int],
        takes: TakesGradients | None,
        waiting: dict[int, Tensor] | None = None,
    ) -> None:
        self._device = device
        self._limit = MAX_WAITING_ELEMENTS_CPU if device.type == "cpu" else MAX_WAITING_ELEMENTS
        self._in_parts = in_parts
        self._takes = takes
        self._waiting = {} if waiting is None else waiting
        self._waiting_elements = 0
        self._held: dict[int, Tensor] = {}
        self._norms: dict[int, Tensor] = {}
        self._lost: set[int] = set()

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
        elif key in self._norms:
            # The first part's square is already taken, and its product with this part can no longer be told.
            self._in_parts.add(key)
            self._lost.add(key)
            if self._takes is not None:
                self._takes([(key, gradient)])
        else:
            self._waiting[key] = gradient
            self._waiting_elements += gradient.numel()
            if self._waiting_elements > self._limit:
                self._take_norms()

    def finish(self) -> tuple[tuple[int, ...], Tensor]:
        """Take the norms of all that still waits.

        Returns:
            Ids of the parameters that had a gradient, and its squared norm for each.
        """
        self._waiting.update(self._held)
        self._take_norms()
        if not self._norms:
            return (), torch.zeros(0, dtype=sum_dtype(self._device), device=self._device)
        for key in self._lost:
            self._norms[key] = torch.full((), math.nan, dtype=sum_dtype(self._device), device=self._device)
        return tuple(self._norms), torch.stack(list(self._norms.values())).to(sum_dtype(self._device)).square()

    def _take_norms(self) -> None:
        with torch.no_grad():
            norms = norm_of_each(self._waiting.values())
            if self._takes is not None:
                self._takes(self._waiting.items())
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
        # torch adds a sparse tensor to a dense one, not the other way round.
        return second + first if first.is_sparse else first + second
