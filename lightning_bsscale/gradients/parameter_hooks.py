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
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from lightning_bsscale.gradients.comparison import Compared, GradientSample, Held, not_compared
from lightning_bsscale.gradients.norms import moved, norm_of_each, squared_norm, sum_dtype
from lightning_bsscale.gradients.watcher import StepSums

__all__ = ["ParameterHooks", "TakesGradients", "mean_squared_norm"]

# Takes pairs of a parameter's id and a gradient of a micro-batch, or a part of one; all on one device.
TakesGradients = Callable[[Iterable[tuple[int, Tensor]]], None]

# The whole gradient of a parameter of so few elements may be zero by chance; that of a larger one is not.
FEW_ELEMENTS = 16
# The square of what is left of a sum that is zero but for rounding, relative to the sum of squares.
ROUNDING = 1e-10

# A gathered gradient cannot be freed, and cannot become `.grad` without a copy: so many elements may wait at a time. On
# an accelerator this is about 100 MB, and a handful of launches for a model of 100 million parameters.
MAX_WAITING_ELEMENTS = 25_000_000
# On a CPU a launch is cheap and cache misses are not: take the norms while the gradients are still in the cache.
MAX_WAITING_ELEMENTS_CPU = 200_000
# Orders in which a micro-batch's gradients arrive that are remembered: with routing each micro-batch may have another.
MAX_PLACES = 64


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

    What the optimizer does not see is left out of both sums of a window: a parameter whose `.grad` is None or zero at
    the step, as where a module cancels a layer's gradient, and one that did not require a gradient in some of the
    window's micro-batches, whose gradient is no mean over examples. A parameter that a micro-batch does not use counts
    as zero there. Parameters that are not initialised yet (of lazy modules) are watched from the window after they are.

    Args:
        parameters: the parameters to watch, or a function that gives them anew for each window. Those that require no
            gradient when a window starts, or are not initialised, are left out of that window.
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
        self._unsteady: set[int] = set()  # ids of those that did not require a gradient all the time
        self._bare: list[Tensor] = []
        self._fresh = False
        self._handles: list[RemovableHandle] = []
        self._given_home = home
        self._home = home or torch.device("cpu")
        self._open = False
        self._gathered: dict[torch.device, _Gathered] | None = None  # None: hooks do not count now
        self._sq_norms: list[Tensor] = []
        self._of_each = torch.zeros(0)  # squared norms of each watched parameter's gradients, summed over micro-batches
        self._places: dict[tuple[int, ...], Tensor] = {}
        self._sample: GradientSample | None = None
        self._takes: TakesGradients | None = None
        self._turn = 0
        self._signed: dict[int, Tensor] = {}  # sums over micro-batches of the gradients of parameters of a few elements
        # Parameters that once came in parts too far apart, by id. Should an id be used again by another parameter, then
        # that one's gradient is merely kept a little longer.
        self._in_parts: set[int] = set()

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches that ended in the open window, or in the last one."""
        return len(self._sq_norms)

    def start_window(self, *, compared: bool = False, takes: TakesGradients | None = None) -> None:
        """Register the hooks, on every parameter that requires a gradient now. A window that was open is given up.

        Args:
            compared: whether to compare `.grad` at the step with what the hooks saw
            takes: called with what the hooks see, or `part_of` leaves of it, to compare elsewhere
        """
        self._remove_hooks()
        watched = {id(p): p for p in self._parameters() if p.requires_grad and not is_lazy(p)}
        if watched and self._given_home is None:
            self._home = next(iter(watched.values())).device
        if watched.keys() != {id(p) for p in self._watched}:
            self._places = {}
        self._watched = list(watched.values())
        self._unsteady = set()
        self._bare = [p for p in self._watched if p._backward_hooks is None]
        self._handles = [_registered(p, partial(self._gather, p)) for p in self._watched]
        self._sq_norms = []
        self._of_each = torch.zeros(len(self._watched), dtype=sum_dtype(self._home), device=self._home)
        self._sample, self._takes = None, takes
        self._signed = {}
        if compared and self._watched:
            on_ranks = self._num_replicas > 1
            listed = [Compared(id(p), tuple(p.shape), p.dtype, holders=self._num_replicas) for p in self._watched]
            self._sample = GradientSample(
                listed, self._home, turn=self._turn, on_ranks=on_ranks, peaks=self._grad_is_own
            )
            self._takes = self._sample.take
            self._turn += 1
        self._open = True

    def start_micro_batch(self) -> None:
        """Count gradients from now on. What a micro-batch that never ended had gathered is forgotten.

        Raises:
            RuntimeError: If no window is open.
        """
        if not self._open:
            raise RuntimeError("start_micro_batch was called outside a window: call start_window first")
        self._gathered = {}
        self._unsteady.update([id(p) for p in self._watched if not p.requires_grad])
        # Not where it is compared: `.grad` may have been changed before it is looked at.
        self._fresh = self._grad_is_own and self._sample is None and all(p.grad is None for p in self._watched)

    def end_micro_batch(self) -> None:
        """Close the micro-batch; one without any gradient has norm zero.

        Raises:
            RuntimeError: If no micro-batch was started.
        """
        if self._gathered is None:
            raise RuntimeError("end_micro_batch was called without a micro-batch: call start_micro_batch first")
        gathered, self._gathered = self._gathered, None
        total = torch.zeros((), dtype=sum_dtype(self._home), device=self._home)
        with torch.no_grad():
            if self._fresh:
                grads = {id(p): p.grad for p in self._watched if p.grad is not None}
                for p in self._watched:
                    if p.grad is not None and _is_small(p):
                        self._add_signed(p, p.grad)
                for device in {grad.device for grad in grads.values()}:
                    on_device = {key: grad for key, grad in grads.items() if grad.device == device}
                    gathered[device] = _Gathered(device, self._in_parts, self._takes, on_device)
            for part in gathered.values():
                keys, sq_norms = part.finish()
                sq_norms = moved(sq_norms, self._home)
                self._of_each.index_add_(0, self._place_of(keys), sq_norms)
                total = total + sq_norms.sum()
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

    def step_sums(self, loss_scale: Tensor | None = None) -> StepSums:
        """Compute the window's sums over the parameters that are stepped with, by what is in `.grad` now.

        Args:
            loss_scale: what the loss, but not `.grad`, is multiplied by

        Returns:
            The sums. Nothing waits for them.
        """
        with torch.no_grad():
            mean = self._mean_of_each()
            stepped = (mean != 0) | self._may_be_zero()  # NaN counts: the window is then dropped
            difference = not_compared(self._home)
            if self._sample is not None:
                held = [Held(id(p), p.grad) for p in self._watched if p.grad is not None]
                difference = self._sample.difference(held, stepped, loss_scale, scales=self._usual_sizes(mean))
            seen = torch.where(stepped, self._of_each, 0.0).sum()
            return StepSums(seen, mean.sum() / self._num_replicas, difference)

    def _usual_sizes(self, mean: Tensor) -> Tensor:
        # Root mean square of the elements of each parameter's `.grad`; where that is zero, of all of them together.
        numels = torch.tensor([max(1, p.numel()) for p in self._watched]).to(mean, non_blocking=True)
        return torch.where(mean > 0, mean / numels, mean.sum() / numels.sum()).sqrt()

    def _may_be_zero(self) -> Tensor:
        # Parameters of a few elements whose `.grad` may be zero because the micro-batches' own gradients add up to it
        # (those of an absolute error, +1 and -1, often do). To leave them out would be to choose windows by outcome.
        few = [(place, p) for place, p in enumerate(self._watched) if _is_small(p) and p.grad is not None]
        found = torch.zeros(len(self._watched), dtype=torch.bool, device=self._home)
        if not few:
            return found
        places = torch.tensor([place for place, _ in few]).to(self._home, non_blocking=True)
        if not self._grad_is_own:  # only the ranks' sum could tell; where it was cancelled, the comparison does
            found[places] = True
            return found
        none = torch.zeros((), device=self._home)
        sums = [self._signed.get(id(p), none).abs().max() for _, p in few]
        largest = torch.stack([moved(one, self._home) for one in sums])
        found[places] = largest.square() <= ROUNDING * self._of_each[places]
        return found

    @property
    def sq_norm_of_each(self) -> Tensor:
        """For each watched parameter its squared norms, summed over the window's micro-batches."""
        return self._of_each

    @property
    def watched(self) -> list[Tensor]:
        """The parameters of the open window, or of the last one."""
        return self._watched

    def local_share_of_mean_squared_norm(self) -> Tensor:
        """Compute this process's share of the squared norm of the mean, from `.grad`, at a window's end.

        Returns:
            A 0-d tensor, whose sum over processes is the squared norm. Nothing waits for it.
        """
        with torch.no_grad():
            return self._mean_of_each().sum() / self._num_replicas

    def _mean_of_each(self) -> Tensor:
        # The squared norm in the `.grad` of each watched parameter; zero for one that did not count all the time.
        if not self._watched:
            return torch.zeros(0, dtype=sum_dtype(self._home), device=self._home)
        held = {id(p): p.grad for p in self._watched if p.grad is not None and id(p) not in self._unsteady}
        norms = dict(zip(held, norm_of_each(held.values()), strict=True))
        none = torch.zeros((), dtype=sum_dtype(self._home), device=self._home)
        own = [norms.get(id(p), none) for p in self._watched]
        if any(norm.device != self._home for norm in own):
            own = [moved(norm, self._home) for norm in own]
        return torch.stack(own).to(sum_dtype(self._home)).square()

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
        self._gathered = None
        self._open = False

    # Called by autograd, one thread a device. It returns None: a tensor would replace the gradient.
    def _gather(self, parameter: Tensor, gradient: Tensor) -> None:
        if self._gathered is None or self._fresh:
            return
        if self._grad_is_own and _is_small(parameter):
            self._add_signed(parameter, gradient)
        if self._part_of is not None:
            gradient = self._part_of(parameter, gradient)
        device = gradient.device
        if device not in self._gathered:
            self._gathered[device] = _Gathered(device, self._in_parts, self._takes)
        self._gathered[device].add(id(parameter), gradient)

    def _add_signed(self, parameter: Tensor, gradient: Tensor) -> None:
        if gradient.layout is torch.strided:
            with torch.no_grad():
                before = self._signed.get(id(parameter))
                self._signed[id(parameter)] = gradient.clone() if before is None else before + gradient

    def _place_of(self, keys: tuple[int, ...]) -> Tensor:
        # The same in nearly every micro-batch, so it is kept: a copy from the host costs a moment.
        if keys not in self._places:
            if len(self._places) >= MAX_PLACES:
                self._places = {}
            index = {id(p): place for place, p in enumerate(self._watched)}
            places = torch.tensor([index[key] for key in keys], dtype=torch.long)
            self._places[keys] = places.to(self._home, non_blocking=True)
        return self._places[keys]


def _is_small(parameter: Tensor) -> bool:
    return 0 < parameter.numel() <= FEW_ELEMENTS


class _Gathered:
    """One micro-batch's gradients on one device: those that wait for their norm, and the norms of those that had it.

    Args:
        device: where the gradients are
        in_parts: ids of the parameters whose gradients wait until the micro-batch's end; grows
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
