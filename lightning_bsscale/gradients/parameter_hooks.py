"""Each sample's own gradient through tensor hooks on the parameters, for one device and for DDP."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_bsscale.gradients.comparison import ComparedParameter, Comparison, HeldGradient
from lightning_bsscale.gradients.norms import move_to, norm_of_each, squared_norm, sum_dtype
from lightning_bsscale.gradients.tensor_hooks import TensorHooks, is_small
from lightning_bsscale.gradients.watcher import GradientWatcher, Parameters, RawSums

__all__ = ["ParameterHooks", "mean_squared_norm"]

# Largest square of a sum that is zero except for rounding, relative to the sum of squares.
ROUNDING = 1e-10


def mean_squared_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Compute the squared norm of `.grad`: right before a step, that of the mean gradient.

    Args:
        parameters: the parameters; those without a `.grad` count as zero

    Returns:
        A 0-d tensor on the first parameter's device, in float64 if the device has it, without waiting for it.
    """
    parameters = list(parameters)
    home = parameters[0].device if parameters else torch.device("cpu")
    with torch.no_grad():
        return squared_norm([p.grad for p in parameters if p.grad is not None], home)


class ParameterHooks(GradientWatcher):
    """Watches parameters through tensor hooks.

    Hooks exist only between `start_window` and `stop_window`, and are active only between `start_sample` and
    `end_sample`. Other windows cost nothing, and a `torch.autograd.grad` inside the loss is not counted.

    The gradients are bit-identical with and without the hooks. A user's hook that changes a gradient is respected if it
    was registered before the window. Backward passes are expected to run on one stream per device, as they do unless
    the model's forward pass chooses streams itself.

    Gradients that the optimizer does not see are left out of both sums of a window: those of a parameter whose `.grad`
    is None or zero at the step (a module may cancel a layer's gradient), and those of a parameter that did not require
    a gradient in some of the window's samples, whose `.grad` is not a mean over examples. A parameter that a sample
    does not use counts as zero there. Uninitialised parameters (of lazy modules) are watched from the next window on.

    Args:
        parameters: the parameters to watch, or a function that returns them for each window. Parameters that require no
            gradient when a window starts, or are not initialised, are left out of that window.
        grad_is_own: whether a backward pass that starts without `.grad` leaves this process's own gradient there: true
            on one device, false where a backward pass also reduces over processes.
        num_replicas: processes whose `.grad` is the same at a window's end, this one included

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> hooks = ParameterHooks(model.parameters())
        >>> hooks.start_window()
        >>> for example in torch.tensor([[3.0, 4.0], [1.0, 0.0]]):
        ...     loss = model(example).sum()
        ...     hooks.start_sample()
        ...     loss.backward()
        ...     hooks.end_sample(1)
        >>> hooks.stop_window()
        2.0
        >>> hooks.sq_norms.tolist(), round(mean_squared_norm(model.parameters()).item(), 3)
        ([25.0, 1.0], 32.0)
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Parameters,
        *,
        grad_is_own: bool = False,
        num_replicas: int = 1,
    ) -> None:
        if not callable(parameters):
            listed = list(parameters)  # a generator such as model.parameters() can be read only once
            parameters = lambda: listed  # noqa: E731
        super().__init__(parameters, world_size=num_replicas)
        self._grad_is_own = grad_is_own
        self._hooks = TensorHooks(grad_is_own=grad_is_own)
        self._unsteady: set[int] = set()  # ids of parameters without requires_grad in some sample

    @property
    def watched(self) -> list[Tensor]:
        """The parameters of the open window, or of the last one."""
        return self._hooks.watched

    def _open(self, compared: bool) -> None:
        watched = list(self._trained().values())
        self._unsteady = set()
        if compared and watched:
            listed = [ComparedParameter(id(p), tuple(p.shape), p.dtype, holders=self._world_size) for p in watched]
            self._comparison = Comparison(
                listed, watched[0].device, turn=self._turn, on_ranks=self._world_size > 1, peaks=self._grad_is_own
            )
        self._hooks.register(watched, sink=None if self._comparison is None else self._comparison.take)

    def _begin_sample(self) -> None:
        self._unsteady.update([id(p) for p in self.watched if not p.requires_grad])
        self._hooks.begin()

    def _end_sample(self, weight: float) -> Tensor:
        return self._hooks.end(weight)

    def _close(self) -> None:
        self._hooks.remove()

    def _raw_sums(self, loss_scale: Tensor | None) -> RawSums:
        mean = self._mean_of_each()
        stepped = mean != 0  # NaN counts: the window is then dropped
        # On the host a look costs less than what it nearly always saves.
        if self._hooks.home.type != "cpu" or not stepped.all():
            stepped = stepped | self._may_be_zero()
        difference = None
        if self._comparison is not None:
            held = [HeldGradient(id(p), p.grad) for p in self.watched if p.grad is not None]
            difference = self._comparison.difference(held, stepped, loss_scale, scales=self._usual_sizes(mean))
        seen = torch.where(stepped, self._hooks.of_each, 0.0).sum()
        return RawSums(seen, mean.sum() / self._world_size, difference)

    def _mean_of_each(self) -> Tensor:
        """Return the squared norm of each watched parameter's `.grad`; zero for unsteady parameters."""
        home = self._hooks.home
        if not self.watched:
            return torch.zeros(0, dtype=sum_dtype(home), device=home)
        held = {id(p): p.grad for p in self.watched if p.grad is not None and id(p) not in self._unsteady}
        norms = dict(zip(held, norm_of_each(held.values()), strict=True))
        none = torch.zeros((), dtype=sum_dtype(home), device=home)
        own = [norms.get(id(p), none) for p in self.watched]
        if any(norm.device != home for norm in own):
            own = [move_to(norm, home) for norm in own]
        return torch.stack(own).to(sum_dtype(home)).square()

    def _may_be_zero(self) -> Tensor:
        """Return which parameters may have a zero `.grad` because their samples' own gradients cancel."""
        # A few elements can cancel by chance (those of an absolute error, +1 and -1, often do). Leaving them out would
        # select windows by their outcome.
        few = [(place, p) for place, p in enumerate(self.watched) if is_small(p) and p.grad is not None]
        home = self._hooks.home
        may_be_zero = torch.zeros(len(self.watched), dtype=torch.bool, device=home)
        if not few:
            return may_be_zero
        places = torch.tensor([place for place, _ in few]).to(home, non_blocking=True)
        if not self._grad_is_own:  # only the sum over ranks could show it; the comparison detects a cancelled gradient
            may_be_zero[places] = True
            return may_be_zero
        none = torch.zeros((1,), device=home)
        largest = torch._foreach_norm([self._hooks.signed.get(id(p), none) for _, p in few], math.inf)
        squares = torch.stack([move_to(one, home) for one in largest]).square()
        may_be_zero[places] = squares <= ROUNDING * self._hooks.of_each[places]
        return may_be_zero

    def _usual_sizes(self, mean: Tensor) -> Tensor:
        """Return the root mean square of each `.grad`; where it is zero, that of all of them together."""
        numels = torch.tensor([max(1, p.numel()) for p in self.watched]).to(mean, non_blocking=True)
        return torch.where(mean > 0, mean / numels, mean.sum() / numels.sum()).sqrt()
