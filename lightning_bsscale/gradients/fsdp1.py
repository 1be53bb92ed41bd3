"""Each sample's own gradient with parameters sharded by FullyShardedDataParallel (FSDP1).

Hooks on the optimizer's parameters never fire with FSDP1: each rank has only a part of them, and the backward pass uses
one flat parameter per unit, which FSDP gathers. The flat parameters are hooked instead. Such a hook sees this process's
own gradient before the reduction, in the dtype it was computed in. There is no alternative: between two backward passes
that do not reduce, the next one does not add to `.grad`.

The observed gradients are compared with `.grad` element by element, as on one device: each rank compares the sampled
elements in its shard. A parameter whose `.grad` is *zero* at the step is not left out, since one shard does not show
whether the whole is zero; the comparison detects that case.

Every private name of FSDP1 that the package uses is in this file.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_bsscale.gradients.comparison import ComparedParameter, Comparison, HeldGradient, sharded_dtype
from lightning_bsscale.gradients.shard_differences import UnsupportedSharding, weighted_squared_norm
from lightning_bsscale.gradients.tensor_hooks import TensorHooks
from lightning_bsscale.gradients.watcher import GradientWatcher, Parameters, RawSums

__all__ = ["FlatParameterHooks", "fsdp1_units", "is_flat"]


class FlatParameterHooks(GradientWatcher):
    """Watches a model wrapped by FSDP1 through hooks on the flat parameter of each unit.

    Exact with every sharding strategy, inside and outside `no_sync`, with mixed precision, activation checkpointing,
    tied weights, unused parameters, and partly frozen units.

    Args:
        model: the outermost unit
        parameters: returns the parameters to watch, original or flat; called for each window
        world_size: number of processes

    Raises:
        UnsupportedSharding: If this version of torch uses other private names, if parameters belong to units outside
            the model, or if the units span only some of the processes.
    """

    def __init__(self, model: nn.Module, parameters: Parameters, *, world_size: int) -> None:
        super().__init__(parameters, world_size=world_size)
        self._model = model
        self._units = self._watched_units()
        self._hooks = TensorHooks(
            home=next((unit.device for unit in self._units.values()), None),
            part_of=lambda flat, gradient: self._units[id(flat)].part_of(gradient),
        )

    @property
    def watched(self) -> list[Tensor]:
        """The parameters of the open window, or of the last one."""
        return [p for unit in self._units.values() for p in unit.parameters]

    def _open(self, compared: bool) -> None:
        self._units = self._watched_units()
        if compared and self._units:
            self._comparison = self._new_comparison(next(iter(self._units.values())).device)
        flat = [unit.flat for unit in self._units.values() if unit.flat.requires_grad]
        self._hooks.register(flat, sink=self._take if compared else None)

    def _begin_sample(self) -> None:
        self._hooks.begin()

    def _end_sample(self, weight: float) -> Tensor:
        return self._hooks.end(weight)

    def _close(self) -> None:
        self._hooks.remove()

    def _raw_sums(self, loss_scale: Tensor | None) -> RawSums:
        mean = weighted_squared_norm(
            (p.grad, 1 / unit.num_replicas)
            for unit in self._units.values()
            for p in unit.parameters
            if p.grad is not None
        )
        difference = None
        if self._comparison is not None:
            held = [held for unit in self._units.values() for held in unit.held()]
            # A rank without elements of a parameter has None in `.grad` too, so None says nothing about the whole.
            counted = torch.ones(len(self.watched), dtype=torch.bool)
            difference = self._comparison.difference(held, counted, loss_scale)
        return RawSums(self._hooks.of_each.sum(), mean, difference)

    def _new_comparison(self, home: torch.device) -> Comparison:
        listed: list[ComparedParameter] = []
        for unit in self._units.values():
            dtype, weight = sharded_dtype(unit.flat), self._world_size / unit.num_replicas
            named = zip(unit.parameters, unit.spans, strict=True)
            listed += [
                ComparedParameter(id(p), (end - start,), dtype, weight, unit.num_replicas) for p, (start, end) in named
            ]
        return Comparison(listed, home, turn=self._turn, on_ranks=True)

    def _take(self, gradients: Iterable[tuple[int, Tensor]]) -> None:
        if self._comparison is not None:
            pieces = (piece for key, gradient in gradients for piece in self._units[key].pieces_of(gradient))
            self._comparison.take(pieces)

    def _watched_units(self) -> dict[int, _FlatUnit]:
        trained = self._trained()
        try:
            units = [_flat_unit(module, trained, self._world_size) for module in fsdp1_units(self._model)]
        except AttributeError as error:
            raise UnsupportedSharding(
                f"torch {torch.__version__} keeps the flat parameters of FullyShardedDataParallel elsewhere than the "
                f"supported versions ({error}): use fully_shard (ModelParallelStrategy) instead"
            ) from error
        known = {id(p) for unit in units if unit is not None for p in unit.parameters}
        lost = sum(is_flat(p) and key not in known for key, p in trained.items())
        if lost:
            raise UnsupportedSharding(
                f"{lost} parameters belong to units of FullyShardedDataParallel that are not in the model: pass the "
                "outermost unit (trainer.strategy.model), not the module in it"
            )
        return {id(unit.flat): unit for unit in units if unit is not None}


@dataclass(frozen=True, slots=True)
class _FlatUnit:
    """One unit of FSDP1 and its watched parameters."""

    flat: Tensor
    parameters: list[Tensor]
    spans: list[tuple[int, int]]  # their positions in the flat parameter
    is_whole: bool  # whether all parameters of the unit are watched
    num_replicas: int  # processes that hold the same shard
    device: torch.device  # of the computation; parameters may be offloaded elsewhere
    shard_start: int  # position of this process's shard in the flat parameter

    def part_of(self, gradient: Tensor) -> Tensor:
        if self.is_whole:
            return gradient
        return torch.cat([gradient[start:end] for start, end in self.spans])

    def pieces_of(self, part: Tensor) -> Iterable[tuple[int, Tensor]]:
        """Split the result of `part_of` into pairs of a parameter's id and its gradient."""
        offset = 0
        for parameter, (start, end) in zip(self.parameters, self.spans, strict=True):
            begin = start if self.is_whole else offset
            yield id(parameter), part[begin : begin + end - start]
            offset += end - start

    def held(self) -> Iterable[HeldGradient]:
        for parameter, (start, _) in zip(self.parameters, self.spans, strict=True):
            if parameter.grad is not None:
                begin = max(0, self.shard_start - start)
                yield HeldGradient(id(parameter), parameter.grad.reshape(-1), start=begin)


def _flat_unit(module: Any, trained: dict[int, Tensor], world_size: int) -> _FlatUnit | None:
    handle = module._handle
    if handle is None:  # all of its parameters are in nested units
        return None
    flat = handle.flat_param
    if id(flat) in trained:
        parameters, spans, is_whole = [flat], [(0, sum(flat._numels_with_padding))], True
    else:
        parameters, spans = _watched_part(flat, trained)
        is_whole = len(parameters) == len(flat._params or [])
    if not parameters:
        return None
    shards = handle.world_size if handle.uses_sharded_strategy else 1
    replicating = getattr(module, "_inter_node_pg", None)
    processes = handle.world_size * (replicating.size() if replicating is not None and shards > 1 else 1)
    if processes != world_size:
        raise UnsupportedSharding(
            f"a unit of FullyShardedDataParallel spans {processes} of {world_size} processes: each must have "
            "different data, and step with the mean over all"
        )
    # All shards have the same size; the last ones are padded.
    shard_start = handle.rank * -(-sum(flat._numels_with_padding) // shards) if shards > 1 else 0
    return _FlatUnit(flat, parameters, spans, is_whole, world_size // shards, handle.device, shard_start)


def _watched_part(flat: Any, trained: dict[int, Tensor]) -> tuple[list[Tensor], list[tuple[int, int]]]:
    # With original parameters, the flat gradient contains the frozen ones too.
    parameters: list[Tensor] = []
    spans: list[tuple[int, int]] = []
    originals = iter(flat._params or [])
    offset = 0
    for numel, is_padding in zip(flat._numels_with_padding, flat._is_padding_mask, strict=True):
        original = None if is_padding else next(originals, None)
        if original is not None and id(original) in trained:
            parameters.append(original)
            spans.append((offset, offset + numel))
        offset += numel
    return parameters, spans


def fsdp1_units(model: nn.Module) -> list[Any]:
    """Return the FSDP1 units in a model, itself included."""
    # A sharded model has imported the module already; for other models the import would take a second.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return [] if fsdp is None else list(fsdp.FullyShardedDataParallel.fsdp_modules(model))


def is_flat(parameter: Tensor) -> bool:
    """Return whether FSDP1 manages a parameter of the optimizer: a flat one, or one that was flattened."""
    return bool(getattr(parameter, "_is_flat_param", False) or getattr(parameter, "_fsdp_flattened", False))
