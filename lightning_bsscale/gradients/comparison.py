"""Compare `.grad` at the step with the sum of the observed gradients, at a few thousand elements.

Hooks do not see what a module or another callback does to `.grad` between a backward pass and the step. The squared
norms of the samples would then belong to other gradients than the squared norm of their mean. The sum is linear, so it
can be compared element by element, and a few elements are enough: every parameter is sampled, and each comparison
samples other elements. Noise, clipping, a factor, or a second backward pass changes nearly all elements.

Only one number is stored for each sampled element, never a gradient.

On several ranks the sums over ranks are compared: of each rank's own gradients, and of each rank's part of `.grad`. If
`.grad` is sharded, a sampled element is in the `.grad` of the ranks that hold its shard only; the others contribute
their own gradients alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_bsscale.gradients.norms import move_to, real_and_dense, sum_dtype

__all__ = ["ComparedParameter", "Comparison", "Difference", "HeldGradient", "not_compared", "sharded_dtype"]

# Elements over all parameters, at least one for each.
SAMPLED = 4096
# The differences are added with random signs into this many numbers. The sum of their squares is on average that of the
# differences. They can be summed over ranks: each rank's own differences are not zero, but their sum over ranks is.
SUMS = 8
# Rounding in float32 is far smaller, and a difference of this size changes the noise scale by less than its interval.
SMALLEST_TOLERANCE = 1e-4
# Under DDP a communication hook may round to half precision.
TOLERANCE_ON_RANKS = 2e-2


class Difference(NamedTuple):
    """The result of a comparison; NaN if nothing was compared. All but the last field can be summed over ranks.

    Attributes:
        sums: sums of the sampled elements' differences
        allowed: square of the difference that rounding can explain
        parameter: index of the parameter whose elements differ most
    """

    sums: tuple[float, ...]
    allowed: float
    parameter: float = math.nan

    @property
    def is_explained(self) -> bool | None:
        """Whether rounding explains the difference; None if nothing was compared or a gradient was not finite."""
        squared = sum(value * value for value in self.sums)
        return squared <= self.allowed if math.isfinite(squared + self.allowed) else None

    @classmethod
    def from_numbers(cls, values: Sequence[float]) -> Difference:
        """Make the record from the numbers of `Comparison.difference`."""
        return cls(tuple(values[:SUMS]), *values[SUMS:])


def not_compared(home: torch.device) -> Tensor:
    """Return the numbers of a `Difference` without a comparison: all NaN, on the device `home`."""
    return torch.full((SUMS + 2,), math.nan, dtype=sum_dtype(home), device=home)


class ComparedParameter(NamedTuple):
    """How one parameter is compared; the same on all ranks.

    Attributes:
        key: id of the parameter
        shape: shape of its whole gradient
        dtype: dtype whose rounding is allowed
        weight: factor on `.grad` that makes its sum over ranks that of the ranks' own gradients
        holders: ranks that have the same elements in `.grad`
        dim: dimension along which `.grad` is sharded
        shards: number of shards
    """

    key: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    weight: float = 1.0
    holders: int = 1
    dim: int = 0
    shards: int = 1


def sharded_dtype(parameter: Tensor) -> torch.dtype:
    """Return the coarsest dtype that FSDP may compute or reduce a parameter's gradient in."""
    return parameter.dtype if parameter.is_complex() else torch.bfloat16


class HeldGradient(NamedTuple):
    """A rank's part of one parameter's `.grad`.

    Attributes:
        key: id of the parameter
        gradient: the elements
        dim: dimension along which it is a part of the whole gradient
        start: index of its first element along `dim`; None if it is the whole gradient
    """

    key: int
    gradient: Tensor
    dim: int = 0
    start: int | None = None


class Comparison:
    """The sums over a window's samples of a few elements of every parameter's gradient.

    Args:
        parameters: the watched parameters
        home: device of the sums
        turn: number of the comparison; each turn samples other elements
        on_ranks: whether `.grad` is a mean over processes
        peaks: whether to compare also the largest element of each gradient in the first sample, since most of a
            gradient may be zero (an embedding's). On several ranks it would be another element on each rank
    """

    def __init__(
        self,
        parameters: Sequence[ComparedParameter],
        home: torch.device,
        *,
        turn: int,
        on_ranks: bool,
        peaks: bool = False,
    ) -> None:
        self._home = home
        self._peaks = _Peaks(parameters, home, largest=turn % 2 == 0) if peaks else None
        most = max(1, SAMPLED // max(1, len(parameters)))
        self._grids = {p.key: _grid(p, most, turn) for p in parameters}
        counts = [math.prod(self._grids[p.key].counts) for p in parameters]
        starts = torch.tensor([0, *counts]).cumsum(0)
        self._positions = {
            p.key: range(int(start), int(start) + count)
            for p, start, count in zip(parameters, starts.tolist(), counts, strict=False)
        }
        self._size = int(starts[-1])
        self._owners = torch.arange(len(parameters)).repeat_interleave(torch.tensor(counts, dtype=torch.long)).to(home)
        of_each = [(_tolerance(p.dtype, on_ranks), p.weight, p.holders) for p in parameters]
        of_elements = torch.tensor(of_each, dtype=sum_dtype(home)).reshape(-1, 3).to(home)[self._owners]
        self._tolerances, self._weights, self._holders = of_elements.unbind(1)
        self._values = torch.zeros(self._size, dtype=sum_dtype(home), device=home)
        self._sizes = torch.zeros_like(self._values)
        self._places: dict[tuple[int, ...], Tensor] = {}
        self._sparse: set[int] = set()

    def take(self, gradients: Iterable[tuple[int, Tensor]]) -> None:
        """Add gradients of a sample, or parts of them; they are not needed afterwards.

        Args:
            gradients: pairs of a parameter's id and a gradient, all on one device
        """
        gradients = list(gradients)
        if self._peaks is not None:
            self._peaks.take(gradients)
        places, values = self._sampled(gradients)
        if places is not None:
            self._values.index_add_(0, places, values)
            self._sizes.index_add_(0, places, values.abs())

    def difference(
        self, held: Iterable[HeldGradient], counted: Tensor, loss_scale: Tensor | None, *, scales: Tensor | None = None
    ) -> Tensor:
        """Compare the sums with `.grad`.

        Args:
            held: this rank's parts of `.grad`; elements that no rank holds count as zero
            counted: whether to compare each parameter; the same on all ranks
            loss_scale: factor on the loss that is not on `.grad`
            scales: usual size of an element of each parameter's `.grad`, the same on all ranks: differences are
                relative to it, since a parameter with large gradients would hide the others. None for absolute
                differences

        Returns:
            The numbers of a `Difference`, on the device, without waiting for them.
        """
        held = list(held)
        actual = self._held_values(held) * self._weights
        of_each = counted.to(self._home, non_blocking=True)
        counted = of_each[self._owners]
        for key in self._sparse:  # elements sampled while it was not sparse
            own = self._positions[key]
            counted[own.start : own.stop] = False
        observed, sizes = self._values, self._sizes
        if loss_scale is not None:
            observed, sizes = observed / loss_scale, sizes / loss_scale
        relative = torch.ones_like(actual) if scales is None else scales.to(actual).reciprocal()[self._owners]
        differences = torch.where(counted, (actual - observed) * relative, 0.0)
        # Both the ranks' own gradients and their sums in `.grad` are rounded.
        rounded = (sizes.square() + self._holders * actual.square()) * relative.square()
        allowed = torch.where(counted, self._tolerances.square() * rounded, 0.0).sum()
        owners = self._owners
        if self._peaks is not None:
            of_peaks, allowed_of_peaks = self._peaks.difference(held, of_each, loss_scale)
            differences, allowed = torch.cat([differences, of_peaks]), allowed + allowed_of_peaks
            owners = torch.cat([owners, torch.arange(of_peaks.numel(), device=self._home)])
        worst = torch.zeros((), dtype=allowed.dtype, device=self._home)
        if differences.numel():
            worst = owners[differences.abs().argmax()].to(allowed)
        return torch.cat([self._summed(differences), torch.stack([allowed, worst])])

    def _sampled(self, gradients: Iterable[tuple[int, Tensor]]) -> tuple[Tensor | None, Tensor]:
        keys, values = [], []
        for key, gradient in gradients:
            if gradient.layout is not torch.strided:
                self._sparse.add(key)
            elif self._positions[key]:
                keys.append(key)
                values.append(real_and_dense(gradient)[self._grids[key].where].reshape(-1))
        if not values:
            return None, self._values
        named = tuple(keys)
        if named not in self._places:
            places = [position for key in keys for position in self._positions[key]]
            self._places[named] = torch.tensor(places).to(self._home, non_blocking=True)
        return self._places[named], move_to(torch.cat(values), self._home)

    def _held_values(self, held: Iterable[HeldGradient]) -> Tensor:
        places: list[int] = []
        values: list[Tensor] = []
        for key, gradient, dim, start in held:
            grid, where = self._grids[key], self._grids[key].where
            own: Sequence[int] = self._positions[key]
            if gradient.layout is not torch.strided:
                self._sparse.add(key)
                continue
            if start is not None and own:
                positions = torch.tensor(own).view(grid.counts)
                where, inside = _within(grid, dim, start, gradient.shape[dim])
                own = positions[inside].flatten().tolist()
            if own:
                places.extend(own)
                values.append(real_and_dense(gradient)[where].reshape(-1))
        actual = torch.zeros_like(self._values)
        if values:
            at = torch.tensor(places).to(self._home, non_blocking=True)
            if len({part.device for part in values}) > 1:
                values = [move_to(part, self._home) for part in values]
            actual.index_add_(0, at, move_to(torch.cat(values), self._home))
        return actual

    def _summed(self, differences: Tensor) -> Tensor:
        size = differences.numel()
        rows = -(-size // SUMS)
        generator = torch.Generator().manual_seed(0)  # the same signs on all ranks
        signs = torch.randint(2, (size,), generator=generator).mul_(2).sub_(1)
        padded = torch.zeros(rows * SUMS, dtype=differences.dtype, device=self._home)
        padded[:size] = differences * signs.to(self._home, non_blocking=True)
        return padded.view(rows, SUMS).sum(0)


class _Peaks:
    """One element of each parameter: the largest (or smallest) of its gradient in the first sample.

    Sparse gradients have one too if a single dimension is sparse, as in an embedding's.
    """

    def __init__(self, parameters: Sequence[ComparedParameter], home: torch.device, *, largest: bool) -> None:
        self._home = home
        self._largest = largest
        self._order = {p.key: place for place, p in enumerate(parameters)}
        tolerances = [_tolerance(p.dtype, on_ranks=False) for p in parameters]
        self._tolerances = torch.tensor(tolerances, dtype=sum_dtype(home)).to(home)
        self._index: dict[int, Tensor] = {}  # of the element in the flat gradient, on the gradient's device
        self._values = torch.zeros_like(self._tolerances)
        self._sizes = torch.zeros_like(self._tolerances)

    def take(self, gradients: Iterable[tuple[int, Tensor]]) -> None:
        for key, gradient in gradients:
            if _has_peak(gradient) and key not in self._index:
                self._index[key] = self._find(gradient)
        places, values = self._at(gradients)
        if places is not None:
            self._values.index_add_(0, places, values)
            self._sizes.index_add_(0, places, values.abs())

    def difference(
        self, held: Iterable[HeldGradient], counted: Tensor, loss_scale: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return each parameter's relative difference, and the square of the difference that rounding can explain."""
        places, values = self._at((key, gradient) for key, gradient, _, _ in held)
        actual = torch.zeros_like(self._values)
        if places is not None:
            actual.index_add_(0, places, values)
        observed, sizes = self._values, self._sizes
        if loss_scale is not None:
            observed, sizes = observed / loss_scale, sizes / loss_scale
        counted = counted & (sizes > 0)
        differences = torch.where(counted, (actual - observed) / sizes, 0.0)
        rounded = self._tolerances.square() * (1 + (actual / sizes).square())
        return differences, torch.where(counted, rounded, 0.0).sum()

    def _find(self, gradient: Tensor) -> Tensor:
        values = gradient._values() if gradient.is_sparse else real_and_dense(gradient)
        flat = values.reshape(-1)
        at = flat.argmax() if self._largest else flat.argmin()
        if not gradient.is_sparse:
            return at
        width = flat.numel() // values.shape[0]
        return gradient._indices()[0, at // width] * width + at % width

    def _at(self, gradients: Iterable[tuple[int, Tensor]]) -> tuple[Tensor | None, Tensor]:
        places, values = [], []
        for key, gradient in gradients:
            if not _has_peak(gradient) or key not in self._index:
                continue
            index = self._index[key]
            places.append(self._order[key])
            if gradient.is_sparse:
                rows = gradient._values().reshape(gradient._values().shape[0], -1)
                width = rows.shape[1]
                column = rows.index_select(1, (index % width).reshape(1)).reshape(-1)
                value = torch.where(gradient._indices()[0] == index // width, column, 0.0).sum()
            else:
                value = real_and_dense(gradient).reshape(-1).index_select(0, index.reshape(1)).reshape(())
            values.append(move_to(value, self._home))
        if not values:
            return None, self._values
        return torch.tensor(places).to(self._home, non_blocking=True), torch.stack(values).to(self._values)


def _has_peak(gradient: Tensor) -> bool:
    if gradient.is_sparse:
        is_simple = gradient.sparse_dim() == 1 and not gradient.is_complex()
        return is_simple and gradient._values().numel() > 0
    return gradient.layout is torch.strided and gradient.numel() > 0


class _Grid(NamedTuple):
    """The sampled elements of a parameter: equally spaced along its longest dimension and along its sharded one."""

    where: tuple[int | slice, ...]
    counts: tuple[int, ...]  # of each slice


def _grid(parameter: ComparedParameter, most: int, turn: int) -> _Grid:
    shape = [*parameter.shape, 2] if parameter.dtype.is_complex else list(parameter.shape)
    if 0 in shape:
        return _Grid((), (0,))
    if not shape:
        return _Grid((), ())
    # Each turn shifts by a prime number, so that turns do not repeat soon.
    where: list[int | slice] = [7919 * turn % size for size in shape]
    longest = max(range(len(shape)), key=shape.__getitem__)
    rows = 1
    if parameter.shards > 1 and parameter.dim != longest:
        size = shape[parameter.dim]
        shard = -(-size // parameter.shards)
        rows = -(-size // shard)
        where[parameter.dim] = _spaced(size, shard * -(-rows // most), turn)
    where[longest] = _spaced(shape[longest], -(-shape[longest] // max(1, most // rows)), turn)
    sliced = ((index, size) for index, size in zip(where, shape, strict=True) if isinstance(index, slice))
    return _Grid(tuple(where), tuple(len(range(*index.indices(size))) for index, size in sliced))


def _spaced(size: int, step: int, turn: int) -> slice:
    return slice(7919 * turn % min(step, size), size, step)


def _within(grid: _Grid, dim: int, start: int, length: int) -> tuple[tuple[int | slice, ...], tuple[slice, ...]]:
    """Return where a grid's elements are in a part of the tensor, and which of its elements these are."""
    where, at = list(grid.where), grid.where[dim]
    assert isinstance(at, slice)  # since the tensor is sharded along this dimension
    sliced = sum(isinstance(index, slice) for index in grid.where[:dim])
    edges = (start, start + length)
    first, end = (min(grid.counts[sliced], max(0, -(-(edge - at.start) // at.step))) for edge in edges)
    begin = at.start + first * at.step - start
    where[dim] = slice(begin, max(begin, begin + at.step * (end - first - 1) + 1), at.step)
    inside = (*(slice(None) for _ in range(sliced)), slice(first, end))
    return tuple(where), inside


def _tolerance(dtype: torch.dtype, on_ranks: bool) -> float:
    rounding = 4 * torch.finfo(dtype).eps
    return max(rounding, TOLERANCE_ON_RANKS if on_ranks else SMALLEST_TOLERANCE)
