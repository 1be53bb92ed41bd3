"""Measure the noise scale at fixed parameters, without training: all pairs of many gradients, with an interval."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from lightning_bsscale.gradients.norms import norm_of_each
from lightning_bsscale.gradients.preserved import preserved
from lightning_bsscale.theory.blocks import BlockNoise, block_noise_scale, relative_half_width
from lightning_bsscale.theory.checks import check_integer, check_number, show
from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.noise_report import Ending, NoiseReport

__all__ = ["measure_noise_scale"]

MIN_BATCHES = 8
_LOOK_AGAIN = 1.25  # with this many times as many batches
_CHUNK = 1 << 20
_PLAIN, _PRECONDITIONED = "plain", "preconditioned"


def measure_noise_scale(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: Callable[[Any, Any], Tensor],
    *,
    relative_error: float = 0.1,
    confidence: float = 0.9,
    max_batches: int | None = None,
    max_seconds: float | None = None,
    optimizer: Optimizer | None = None,
    hessian: bool = False,
    hessian_batches: int = 1,
    num_blocks: int = 12,
    batch_size_fn: Callable[[Any], float] | None = None,
) -> NoiseReport:
    """Measure the gradient noise scale of a model as it is, without training it.

    Every batch gives one gradient at the same parameters, and all pairs of them are compared. The measurement stops
    when the relative error asked for is reached: half the width of the interval over the estimate. If the batches (or
    the time) end before that, the report says so, with a forecast of how many more are needed. Parameters, buffers,
    gradients, modes and random states are afterwards as they were, also after an exception.

    The model is measured in the mode that it is in: after `model.train()` dropout is part of the noise. One pass over
    a data set is what `batches` should be: an example that comes twice makes the noise look smaller. The model is a
    plain module on one process (the `module` of a DistributedDataParallel).

    Args:
        model: The model.
        batches: Batches of independent examples, such as a shuffled DataLoader. At least 8 are needed.
        loss_fn: `loss_fn(model, batch)` returns the batch's mean loss, a tensor of one element. It moves the batch to
            the device.
        relative_error: Stop when half the width of the interval is at most this share of the estimate.
        confidence: Two-sided confidence of the intervals, between 0 and 1.
        max_batches: Largest number of batches to take gradients of; None for no limit.
        max_seconds: Time for the gradients, in seconds, after the first 8 (the Hessian comes on top); None: no limit.
        optimizer: Adds the noise scale of each of its parameter groups and, with the state of an Adam-like optimizer,
            the preconditioned scale tr(P Sigma) / G.PG, P = 1 / (sqrt(v) + eps).
        hessian: Add B_noise = tr(H Sigma) / G.HG, from one Hessian-vector product for each block of gradients. Every
            third batch is then put aside for the Hessian, until there are enough. The gradients of the blocks and the
            Hessians are of different batches, so numerator and denominator are unbiased.
        hessian_batches: Batches whose mean loss each Hessian-vector product is of.
        num_blocks: The gradients are kept as sums of this many blocks, at most twice as many: so many copies of the
            model's gradient are held. At least 4; fewer than 8 make a wider interval.
        batch_size_fn: Counts the examples (or tokens) that a batch's loss is a mean over. By default the first
            dimension of its first tensor.

    Returns:
        The report: `report.noise` in total, `report.layers`, `report.groups`, `report.table()`, `report.sentence()`.

    Raises:
        ValueError: If there are no two batches with a finite gradient, or no parameter requires a gradient.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> model = nn.Linear(10, 1, bias=False)
        >>> inputs = 1 + 2 * torch.randn(3000, 10, generator=generator)  # tr(Sigma) = 40, ||G||^2 = 10
        >>> report = measure_noise_scale(model, inputs.split(10), lambda model, batch: model(batch).mean())
        >>> report.noise.low < 4.0 < report.noise.high, report.is_reached
        (True, True)
    """
    wanted = check_number("relative_error", relative_error, above=0)
    check_number("confidence", confidence, above=0, below=1)
    limit = math.inf if max_batches is None else check_integer("max_batches", max_batches, at_least=2)
    seconds = math.inf if max_seconds is None else check_number("max_seconds", max_seconds, above=0)
    check_integer("num_blocks", num_blocks, at_least=4)
    products = 2 * num_blocks * check_integer("hessian_batches", hessian_batches, at_least=1) if hessian else 0
    parts = _Parts.of(model, optimizer)
    with preserved(model, batches) as buffers, torch.enable_grad():
        compute = _Gradients(model, loss_fn, parts.parameters, buffers.restore)
        stream = _PutAside(iter(batches), products)
        blocks = _Blocks(parts, num_blocks)
        ending, dropped = _fill(
            blocks, stream, compute, batch_size_fn or _rows, confidence, wanted, limit, time.monotonic() + seconds
        )
        if blocks.count < 2:
            raise ValueError(
                f"batches must hold at least two batches with a finite gradient, got {blocks.count} "
                f"({dropped} with NaN or infinity)"
            )
        whole = blocks.noise(_PLAIN, None, confidence)
        notes, weighted, made = list(parts.notes), None, 0
        if hessian:
            weighted, made, note = _hessian_weighted(blocks, stream, hessian_batches, compute, confidence)
            notes += note
    missing = whole.factor_for(wanted)
    return NoiseReport(
        noise=whole.noise,
        layers={name: blocks.noise(_PLAIN, indices, confidence).noise for name, indices in parts.layers.items()},
        groups={name: blocks.noise(_PLAIN, indices, confidence).noise for name, indices in parts.groups.items()},
        hessian=weighted,
        hessian_products=made,
        preconditioned=blocks.noise(_PRECONDITIONED, None, confidence).noise if parts.roots else None,
        relative_error=wanted,
        ending=ending,
        more_batches=0.0 if ending is Ending.REACHED else (missing - 1) * blocks.count,
        batches=blocks.count,
        examples=sum(blocks.examples),
        dropped=dropped,
        notes=tuple(notes),
    )


@dataclass(slots=True)
class _Parts:
    """The parameters, and which of them belong to which layer and group.

    Attributes:
        parameters: All that require a gradient, each once.
        layers: Indices by the name of the module that owns them.
        groups: Indices by the optimizer's groups.
        roots: Square roots of the preconditioner; empty without one.
        notes: Why something is missing.
    """

    parameters: list[Tensor]
    layers: dict[str, list[int]]
    groups: dict[str, list[int]]
    roots: list[Tensor]
    notes: list[str]

    @classmethod
    def of(cls, model: nn.Module, optimizer: Optimizer | None) -> _Parts:
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        if not named:
            raise ValueError(
                "model must have a parameter that requires a gradient, found none: unfreeze what to measure"
            )
        layers: dict[str, list[int]] = {}
        for index, (name, _) in enumerate(named):
            layers.setdefault(name.rpartition(".")[0], []).append(index)
        parts = cls([parameter for _, parameter in named], layers, {}, [], [])
        if optimizer is not None:
            places = {id(parameter): index for index, parameter in enumerate(parts.parameters)}
            for number, group in enumerate(optimizer.param_groups):
                indices = [places[id(p)] for p in group["params"] if id(p) in places]
                if indices:
                    parts.groups[str(group.get("name", number))] = indices
            roots = _preconditioner_roots(optimizer, parts.parameters)
            if isinstance(roots, str):
                parts.notes.append(f"No preconditioned noise scale: {roots}.")
            else:
                parts.roots = roots
        return parts


def _preconditioner_roots(optimizer: Optimizer, parameters: list[Tensor]) -> list[Tensor] | str:
    """Return the square roots of Adam's 1 / (sqrt(v) + eps), or why there are none."""
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    roots = []
    for parameter in parameters:
        group, state = groups.get(id(parameter)), optimizer.state.get(parameter, {})
        if group is None:
            return "a parameter that requires a gradient is in no group of the optimizer"
        if "exp_avg_sq" not in state or "betas" not in group:
            return f"{type(optimizer).__name__} has no second moments (exp_avg_sq) of every parameter"
        if state["exp_avg_sq"].shape != parameter.shape:
            return f"{type(optimizer).__name__} keeps second moments in another shape than the parameters"
        second = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
        corrected = second.detach() / (1 - group["betas"][1] ** float(state["step"]))
        roots.append(((corrected.sqrt() + group["eps"]) ** -0.5).to(parameter.device))
    return roots


class _Gradients:
    """Gradients of the mean loss, and Hessian-vector products, that leave no trace in the model."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        parameters: list[Tensor],
        restore: Callable[[], None],
    ) -> None:
        self._model, self._loss_fn, self._parameters, self._restore = model, loss_fn, parameters, restore
        self._versions = [parameter._version for parameter in parameters]

    def of(self, batch: Any, *, create_graph: bool = False) -> list[Tensor]:
        loss = self._loss_fn(self._model, batch)
        is_tensor: bool = isinstance(loss, Tensor)  # the user's function may return anything
        if not is_tensor or loss.numel() != 1 or not loss.requires_grad:
            raise TypeError(
                "loss_fn must return the mean loss, a tensor of one element that depends on the model's parameters, "
                f"got {show(loss)}"
            )
        gradients = torch.autograd.grad(
            loss.reshape(()), self._parameters, create_graph=create_graph, allow_unused=True
        )
        if not create_graph:  # a graph may still need the buffers as they are now
            self._restore()
        if [parameter._version for parameter in self._parameters] != self._versions:
            raise RuntimeError(
                "loss_fn changed a parameter, but all gradients must be at the same parameters: let it return the loss "
                "and nothing else"
            )
        filled = [
            torch.zeros_like(parameter) if gradient is None else gradient  # type: ignore[redundant-expr]
            for parameter, gradient in zip(self._parameters, gradients, strict=True)
        ]
        return filled if create_graph else [_dense(gradient.detach()) for gradient in filled]

    def hessian_products(self, batch: Any, vector: Sequence[Tensor]) -> list[Tensor]:
        # Fused attention has no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            gradients = self.of(batch, create_graph=True)
            pairs = [(g, v) for g, v in zip(gradients, vector, strict=True) if g.requires_grad]
            products: Sequence[Tensor | None] = [None] * len(vector)
            if pairs:  # none in a loss that is linear in all parameters
                vectors = [torch.view_as_complex(v) if g.is_complex() else v.to(g.dtype) for g, v in pairs]
                products = torch.autograd.grad([g for g, _ in pairs], self._parameters, vectors, allow_unused=True)
        self._restore()
        return [
            torch.zeros_like(v) if product is None else _dense(product.detach())
            for product, v in zip(products, vector, strict=True)
        ]


def _dense(gradient: Tensor) -> Tensor:
    dense = gradient if gradient.layout is torch.strided else gradient.to_dense()
    return torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense


@dataclass(slots=True)
class _PutAside:
    """The batches, of which every third one is kept aside until there are enough."""

    batches: Iterator[Any]
    wanted: int
    kept: list[Any] = field(default_factory=list)
    _seen: int = 0

    def __iter__(self) -> _PutAside:
        return self

    def __next__(self) -> Any:
        while True:
            batch, self._seen = next(self.batches), self._seen + 1
            if self._seen % 3 or len(self.kept) >= self.wanted:
                return batch
            self.kept.append(batch)

    def take(self, number: int) -> list[Any]:
        """Return so many batches that were put aside, and where the gradients needed few, the ones that follow."""
        while len(self.kept) < number:
            try:
                self.kept.append(next(self.batches))
            except StopIteration:
                break
        return self.kept[:number]


class _Blocks:
    """Sums of gradients in blocks of equally many batches; when there are too many, adjacent ones are joined."""

    def __init__(self, parts: _Parts, num_blocks: int) -> None:
        self._parts, self._most, self._each = parts, 2 * num_blocks, 1
        self.sums: list[list[Tensor]] = []
        self.numbers: list[int] = []
        self.examples: list[float] = []
        names = [_PLAIN, _PRECONDITIONED] if parts.roots else [_PLAIN]
        self._squares: dict[str, list[Tensor]] = {name: [] for name in names}
        self._grams: dict[str, tuple[int, Tensor]] = {}

    @property
    def count(self) -> int:
        return sum(self.numbers)

    def add(self, gradients: list[Tensor], size: float) -> bool:
        """Add one batch's gradient, and return whether it was finite."""
        squares = {
            name: size * torch.stack([norm.double().cpu() for norm in norm_of_each(self._scaled(name, gradients))]) ** 2
            for name in self._squares
        }
        if not all(bool(square.isfinite().all()) for square in squares.values()):
            return False
        if not self.numbers or self.numbers[-1] == self._each:
            if len(self.numbers) == self._most:
                self._merge()
            self.sums.append([gradient * size for gradient in gradients])
            self.numbers.append(1)
            self.examples.append(size)
            for name, square in squares.items():
                self._squares[name].append(square)
        else:
            torch._foreach_add_(self.sums[-1], gradients, alpha=size)
            self.numbers[-1] += 1
            self.examples[-1] += size
            for name, square in squares.items():
                self._squares[name][-1] = self._squares[name][-1] + square
        return True

    def _merge(self) -> None:
        for index in range(0, self._most, 2):
            torch._foreach_add_(self.sums[index], self.sums[index + 1])
        self.sums = self.sums[::2]
        pairs: Callable[[list[Any]], list[Any]] = lambda of: [a + b for a, b in zip(of[::2], of[1::2], strict=True)]  # noqa: E731
        self.numbers, self.examples = pairs(self.numbers), pairs(self.examples)
        self._squares = {name: pairs(squares) for name, squares in self._squares.items()}
        self._each *= 2

    def _scaled(self, name: str, vector: Sequence[Tensor]) -> list[Tensor]:
        if name == _PLAIN:
            return list(vector)
        return [one * root.view_as(one) for one, root in zip(vector, self._parts.roots, strict=True)]

    def gram(self, name: str) -> Tensor:
        """Return the products of all block sums for each parameter: parameters x blocks x blocks, in float64."""
        known = self._grams.get(name)
        if known is None or known[0] != self.count:
            scaled = [self._scaled(name, sums) for sums in self.sums]
            gram = torch.stack([_products(of_one, of_one) for of_one in zip(*scaled, strict=True)])
            known = self._grams[name] = (self.count, gram)
        return known[1]

    def noise(self, name: str, parameters: list[int] | None, confidence: float) -> BlockNoise:
        """Compute the noise scale of some of the parameters, or of all."""
        chosen = slice(None) if parameters is None else parameters
        return block_noise_scale(
            self.gram(name)[chosen].sum(0).tolist(),
            [float(square[chosen].sum()) for square in self._squares[name]],
            self.numbers,
            self.examples,
            confidence=confidence,
        )


def _products(rows: Sequence[Tensor], columns: Sequence[Tensor]) -> Tensor:
    """Compute the inner products of all rows with all columns, in float64."""
    total = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    length = rows[0].numel()
    for start in range(0, length, _CHUNK):
        left = torch.stack([row.reshape(-1)[start : start + _CHUNK] for row in rows]).cpu().double()
        right = left if rows is columns else torch.stack([c.reshape(-1)[start : start + _CHUNK] for c in columns])
        total += left @ right.cpu().double().T
    return total


def _fill(
    blocks: _Blocks,
    stream: _PutAside,
    compute: _Gradients,
    size_of: Callable[[Any], float],
    confidence: float,
    wanted: float,
    limit: float,
    deadline: float,
) -> tuple[Ending, int]:
    """Add gradients until there are enough, and return why it ended and how many were dropped."""
    dropped, look_at = 0, MIN_BATCHES
    for batch in stream:
        size = check_number("the size of a batch", size_of(batch), above=0)
        dropped += not blocks.add(compute.of(batch), size)
        if blocks.count >= look_at:
            look_at = max(look_at + 1, math.ceil(look_at * _LOOK_AGAIN))
            if relative_half_width(blocks.noise(_PLAIN, None, confidence).noise) <= wanted:
                return Ending.REACHED, dropped
        if blocks.count >= limit:
            return Ending.MAX_BATCHES, dropped
        if time.monotonic() >= deadline and blocks.count >= MIN_BATCHES:
            return Ending.OUT_OF_TIME, dropped
    if blocks.count >= MIN_BATCHES and relative_half_width(blocks.noise(_PLAIN, None, confidence).noise) <= wanted:
        return Ending.REACHED, dropped
    return Ending.OUT_OF_BATCHES, dropped


def _hessian_weighted(
    blocks: _Blocks, stream: _PutAside, each: int, compute: _Gradients, confidence: float
) -> tuple[NoiseScale | None, int, list[str]]:
    """Multiply every block's sum by the Hessian of batches that it does not contain."""
    number = len(blocks.sums)
    kept = stream.take(number * each)
    if len(kept) < number * each:
        return None, 0, [f"No Hessian-weighted noise scale: {number * each} batches are needed, {len(kept)} were left."]
    rows = []
    for index, sums in enumerate(blocks.sums):
        product = [torch.zeros_like(one) for one in sums]
        for batch in kept[index * each : (index + 1) * each]:
            torch._foreach_add_(product, compute.hessian_products(batch, sums), alpha=1 / each)
        rows.append(sum(_products([one], of_all) for one, *of_all in zip(product, *blocks.sums, strict=True)))
    products = torch.cat([torch.as_tensor(row) for row in rows])
    symmetric = (products + products.T) / 2
    sizes = blocks.examples
    squares = [float(symmetric[index, index]) / size for index, size in enumerate(sizes)]
    found = block_noise_scale(symmetric.tolist(), squares, [1] * number, sizes, confidence=confidence)
    return found.noise, number * each, []


def _rows(batch: Any) -> float:
    """Return the first dimension of the first tensor."""
    if isinstance(batch, Tensor):
        return float(batch.shape[0]) if batch.ndim else 1.0
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()
    for value in values:
        rows = _rows(value) if isinstance(value, (Tensor, Mapping, list, tuple)) else 0.0
        if rows:
            return rows
    return 0.0
