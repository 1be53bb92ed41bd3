"""Each sample's own gradient, by tensor hooks on the parameters: one device, and DDP."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_bsscale.gradients.comparison import Compared, Comparison, Held
from lightning_bsscale.gradients.norms import moved, norm_of_each, squared_norm, sum_dtype
from lightning_bsscale.gradients.tensor_hooks import TensorHooks, is_small
from lightning_bsscale.gradients.watcher import GradientWatcher, Parameters, Seen

__all__ = ["ParameterHooks", "mean_squared_norm"]

# The square of what is left of a sum that is zero but for rounding, relative to the sum of squares.
ROUNDING = 1e-10


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


class ParameterHooks(GradientWatcher):
    """Watches parameters by tensor hooks.

    Hooks exist only between `start_window` and `stop_window`, and count only between `start_sample` and `end_sample`:
    other windows cost nothing, and a `torch.autograd.grad` inside the loss is not counted.

    With the hooks the gradients are bit for bit those without. A hook of the user's that changes a gradient counts if
    it was registered before the window. Backward passes are expected on one stream per device, as they are unless the
    model's forward pass chose streams itself.

    What the optimizer does not see is left out of both sums of a window: a parameter whose `.grad` is None or zero at
    the step, as where a module cancels a layer's gradient, and one that did not require a gradient in some of the
    window's samples, whose gradient is no mean over examples. A parameter that a sample does not use counts as zero
    there. Parameters that are not initialised yet (of lazy modules) are watched from the window after they are.

    Args:
        parameters: the parameters to watch, or a function that gives them anew for each window. Those that require no
            gradient when a window starts, or are not initialised, are left out of that window.
        grad_is_own: whether `.grad`, when a backward pass has filled it from none, is this process's own gradient: true
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
        2
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
            listed = list(parameters)  # a generator such as model.parameters() gives its items once only
            parameters = lambda: listed  # noqa: E731
        super().__init__(parameters, world_size=num_replicas)
        self._grad_is_own = grad_is_own
        self._hooks = TensorHooks(grad_is_own=grad_is_own)
        self._unsteady: set[int] = set()  # ids of those that did not require a gradient all the time

    @property
    def watched(self) -> list[Tensor]:
        """The parameters of the open window, or of the last one."""
        return self._hooks.watched

    def _open(self, compared: bool) -> None:
        watched = list(self._trained().values())
        self._unsteady = set()
        if compared and watched:
            listed = [Compared(id(p), tuple(p.shape), p.dtype, holders=self._world_size) for p in watched]
            self._comparison = Comparison(
                listed, watched[0].device, turn=self._turn, on_ranks=self._world_size > 1, peaks=self._grad_is_own
            )
        self._hooks.register(watched, takes=None if self._comparison is None else self._comparison.take)

    def _begin_sample(self) -> None:
        self._unsteady.update([id(p) for p in self.watched if not p.requires_grad])
        self._hooks.begin()

    def _end_sample(self) -> Tensor:
        return self._hooks.end()

    def _close(self) -> None:
        self._hooks.remove()

    def _seen(self, loss_scale: Tensor | None) -> Seen:
        mean = self._mean_of_each()
        stepped = (mean != 0) | self._may_be_zero()  # NaN counts: the window is then dropped
        difference = None
        if self._comparison is not None:
            held = [Held(id(p), p.grad) for p in self.watched if p.grad is not None]
            difference = self._comparison.difference(held, stepped, loss_scale, scales=self._usual_sizes(mean))
        seen = torch.where(stepped, self._hooks.of_each, 0.0).sum()
        return Seen(seen, mean.sum() / self._world_size, difference)

    def _mean_of_each(self) -> Tensor:
        # The squared norm in the `.grad` of each watched parameter; zero for one that did not count all the time.
        home = self._hooks.home
        if not self.watched:
            return torch.zeros(0, dtype=sum_dtype(home), device=home)
        held = {id(p): p.grad for p in self.watched if p.grad is not None and id(p) not in self._unsteady}
        norms = dict(zip(held, norm_of_each(held.values()), strict=True))
        none = torch.zeros((), dtype=sum_dtype(home), device=home)
        own = [norms.get(id(p), none) for p in self.watched]
        if any(norm.device != home for norm in own):
            own = [moved(norm, home) for norm in own]
        return torch.stack(own).to(sum_dtype(home)).square()

    def _may_be_zero(self) -> Tensor:
        # Parameters of a few elements whose `.grad` may be zero because the samples' own gradients add up to it
        # (those of an absolute error, +1 and -1, often do). To leave them out would be to choose windows by outcome.
        few = [(place, p) for place, p in enumerate(self.watched) if is_small(p) and p.grad is not None]
        home = self._hooks.home
        found = torch.zeros(len(self.watched), dtype=torch.bool, device=home)
        if not few:
            return found
        places = torch.tensor([place for place, _ in few]).to(home, non_blocking=True)
        if not self._grad_is_own:  # only the ranks' sum could tell; where it was cancelled, the comparison does
            found[places] = True
            return found
        none = torch.zeros((), device=home)
        sums = [self._hooks.signed.get(id(p), none).abs().max() for _, p in few]
        largest = torch.stack([moved(one, home) for one in sums])
        found[places] = largest.square() <= ROUNDING * self._hooks.of_each[places]
        return found

    def _usual_sizes(self, mean: Tensor) -> Tensor:
        # Root mean square of the elements of each parameter's `.grad`; where that is zero, of all of them together.
        numels = torch.tensor([max(1, p.numel()) for p in self.watched]).to(mean, non_blocking=True)
        return torch.where(mean > 0, mean / numels, mean.sum() / numels.sum()).sqrt()
