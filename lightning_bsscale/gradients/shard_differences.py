"""Measurement from torch's public view of sharded gradients: DTensors in `.grad`.

It contains a process's share of the squared norm of the mean, and a watcher that needs nothing else: it uses what each
backward pass adds to `.grad`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from lightning_bsscale.gradients.comparison import ComparedParameter, Comparison, HeldGradient
from lightning_bsscale.gradients.norms import squared_norm, sum_dtype
from lightning_bsscale.gradients.watcher import GradientWatcher, Parameters, RawSums

__all__ = [
    "ShardDifferences",
    "UnsupportedSharding",
    "check_mesh",
    "held_shard",
    "is_dtensor",
    "num_holders",
    "shards_of",
    "share_of_shards",
    "weighted_squared_norm",
]

NONE: Final[Mapping[int, Any]] = MappingProxyType({})


class UnsupportedSharding(ValueError):
    """The model is split over processes in a way that hides the gradients of samples."""


def is_dtensor(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor, a class that has moved between versions of torch."""
    return hasattr(tensor, "placements") and hasattr(tensor, "to_local")


def check_mesh(parameter: Any, world_size: int) -> None:
    """Check that a parameter is split only to save memory, so that each process has its own data.

    Args:
        parameter: a DTensor
        world_size: number of processes

    Raises:
        UnsupportedSharding: If it is split along more than one dimension of the mesh, or over some processes only.
    """
    mesh, placements = parameter.device_mesh, parameter.placements
    kinds = [type(placement).__name__ for placement in placements]
    placed = f"a parameter of shape {tuple(parameter.shape)} is placed as {placements} on a mesh of {tuple(mesh.shape)}"
    # Allowed are FSDP, HSDP (replicated groups of shards), and DDP as a mesh of replicas.
    if set(kinds[:-1]) - {"Replicate"} or kinds[-1] not in {"Replicate", "Shard"}:
        raise UnsupportedSharding(
            f"{placed}: this is tensor parallelism, where several processes share one micro-batch. Shard over one "
            "dimension: ModelParallelStrategy(data_parallel_size=<all processes>, tensor_parallel_size=1)"
        )
    if mesh.size() != world_size:
        raise UnsupportedSharding(
            f"{placed}, which is {mesh.size()} of {world_size} processes: all must step with the mean over all"
        )


def num_holders(parameter: Any) -> int:
    """Return the number of processes that hold the same shard of a DTensor, this one included."""
    sizes = zip(parameter.device_mesh.shape, parameter.placements, strict=True)
    return math.prod(size for size, placement in sizes if placement.is_replicate())


def held_shard(parameter: Any) -> HeldGradient:
    """Return this process's shard of a DTensor's gradient, and where it begins."""
    shard, mesh = parameter.grad.to_local(), parameter.device_mesh
    dim, shards = shards_of(parameter)
    if shards == 1:
        return HeldGradient(id(parameter), shard)
    # All shards have the same size, except the last ones, which may be smaller or empty.
    size = -(-parameter.shape[dim] // shards)
    return HeldGradient(id(parameter), shard, dim, mesh.get_local_rank(mesh.ndim - 1) * size)


def shards_of(parameter: Any) -> tuple[int, int]:
    """Return the dimension along which a DTensor is sharded and the number of shards; 1 if it is replicated."""
    placement = parameter.placements[-1]
    return (0, 1) if placement.is_replicate() else (placement.dim, parameter.device_mesh.shape[-1])


def share_of_shards(
    parameters: Iterable[Any], *, factors: Mapping[int, float] = NONE, before: Mapping[int, Tensor] = NONE
) -> Tensor:
    """Compute this process's share of the squared norm of `.grad`, or of what was added to it.

    Args:
        parameters: DTensors; those without a `.grad` count as zero
        factors: by id of a parameter, the factor on its gradient
        before: by id of a parameter, the earlier content of its `.grad`, to subtract

    Returns:
        A 0-d tensor whose sum over processes is the squared norm, without waiting for it.

    Raises:
        UnsupportedSharding: If a gradient has not been reduced.
    """
    shards = []
    with torch.no_grad():
        for p in parameters:
            if p.grad is None:
                continue
            if p.grad.placements != p.placements:
                raise UnsupportedSharding(
                    f"a parameter of shape {tuple(p.shape)} that is placed as {p.placements} has a gradient that is "
                    f"placed as {p.grad.placements}: it was not reduced, and the processes will step apart. Call the "
                    "modules that were sharded, not functions that use their parameters"
                )
            shard = p.grad.to_local()
            if id(p) in before:
                shard = shard - before[id(p)]
            shards.append((shard, factors.get(id(p), 1.0) ** 2 / num_holders(p)))
        return weighted_squared_norm(shards)


def weighted_squared_norm(gradients: Iterable[tuple[Tensor, float]]) -> Tensor:
    """Sum the squares of all elements, each tensor with its weight; 0-d, on the first tensor's device."""
    by_weight: dict[float, list[Tensor]] = {}
    for gradient, weight in gradients:
        if gradient.numel():  # the last processes may have no elements of a small parameter
            by_weight.setdefault(weight, []).append(gradient.detach())
    home = next((group[0].device for group in by_weight.values()), torch.device("cpu"))
    total = torch.zeros((), dtype=sum_dtype(home), device=home)
    for weight, group in by_weight.items():
        total = total + weight * squared_norm(group, home)
    return total


class ShardDifferences(GradientWatcher):
    """Watches sharded parameters through what each backward pass adds to `.grad`.

    It observes each sample's mean over all processes, so a window needs two samples, and every backward pass must
    reduce. It keeps a copy of the shards of `.grad`. In low precision the differences are coarse.

    Args:
        parameters: returns the parameters to watch; called for each window. Those that are not DTensors are left out
        world_size: number of processes
    """

    sees_mean_over_ranks = True

    def __init__(self, parameters: Parameters, *, world_size: int) -> None:
        super().__init__(parameters, world_size=world_size)
        self._sharded: list[Tensor] = []
        self._before: dict[int, Tensor] = {}

    @property
    def watched(self) -> list[Tensor]:
        """The parameters of the open window, or of the last one."""
        return self._sharded

    def _open(self, compared: bool) -> None:
        self._sharded = [p for p in self._trained().values() if is_dtensor(p)]
        if compared and self._sharded:
            # Each process compares its own shards with themselves.
            shards: list[Tensor] = [p.detach().to_local() for p in self._sharded]  # type: ignore[attr-defined]
            named = zip(self._sharded, shards, strict=True)
            listed = [ComparedParameter(id(p), tuple(shard.shape), shard.dtype) for p, shard in named]
            self._comparison = Comparison(listed, shards[0].device, turn=self._turn, on_ranks=False)

    def _begin_sample(self) -> None:
        with torch.no_grad():
            self._before = {key: shard.clone() for key, shard, *_ in self._held()}

    def _end_sample(self, weight: float) -> Tensor:
        before, self._before = self._before, {}
        sq_norm = share_of_shards(self._sharded, before=before)
        if self._comparison is not None:
            added = ((key, shard - before[key] if key in before else shard) for key, shard, *_ in self._held())
            self._comparison.take(added)
        return sq_norm / weight

    def _close(self) -> None:
        self._before = {}

    def _raw_sums(self, loss_scale: Tensor | None) -> RawSums:
        mean = share_of_shards(self._sharded)
        difference = None
        if self._comparison is not None:
            counted = torch.ones(len(self._sharded), dtype=torch.bool)
            difference = self._comparison.difference(self._held(), counted, loss_scale)
        sq_norms = self.sq_norms.sum() if self._sq_norms else torch.zeros_like(mean)
        return RawSums(sq_norms, mean, difference)

    def _held(self) -> list[HeldGradient]:
        grads: Iterable[tuple[int, Any]] = ((id(p), p.grad) for p in self._sharded)
        return [HeldGradient(key, grad.to_local()) for key, grad in grads if grad is not None]
