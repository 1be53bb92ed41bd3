"""Each sample's own gradient where FullyShardedDataParallel (FSDP1) shards the parameters.

Hooks on the parameters that the optimizer holds never fire there: each rank has only its part of them, and the backward
pass goes through one flat parameter a unit, which FSDP gathers. Those are hooked. The gradient that such a hook sees is
this process's own, before it is reduced, in the dtype that it was computed in. There is no second way: between two
backward passes that do not reduce, `.grad` is not what the next one adds to.

What the hooks saw is compared with `.grad` element by element, as on one device: a rank compares the sampled elements
that are in its shard. A parameter whose `.grad` is *zero* at the step is not left out, as one shard does not tell that
of the whole: the comparison finds it.

Every private name of FSDP1 that the package uses is in this file.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_bsscale.gradients.comparison import Compared, Comparison, Held, sharded_dtype
from lightning_bsscale.gradients.shard_differences import UnsupportedSharding, weighted_squared_norm
from lightning_bsscale.gradients.tensor_hooks import TensorHooks
from lightning_bsscale.gradients.watcher import GradientWatcher, Parameters, Seen

__all__ = ["FlatParameterHooks", "fsdp1_units", "is_flat"]


class FlatParameterHooks(GradientWatcher):
    """Watches a model wrapped by FSDP1, by hooks on the flat parameter of each unit.

    Right with every sharding strategy, in and out of `no_sync`, with mixed precision, activation checkpointing, tied
    weights, unused parameters, and units of which a part is frozen.

    Args:
        model: the outermost unit
        parameters: gives the parameters to watch anew for each window: original or flat ones
        world_size: number of processes

    Raises:
        UnsupportedSharding: If this torch has other names for what is needed, if there are parameters of units that are
            not in the model, or if the units span fewer processes than there are.
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
        self._hooks.register(flat, takes=self._take if compared else None)

    def _begin_sample(self) -> None:
        self._hooks.begin()

    def _end_sample(self) -> Tensor:
        return self._hooks.end()

    def _close(self) -> None:
        self._hooks.remove()

    def _seen(self, loss_scale: Tensor | None) -> Seen:
        mean = weighted_squared_norm(
            (p.grad, 1 / unit.num_replicas)
            for unit in self._units.values()
            for p in unit.parameters
            if p.grad is not None
        )
        difference = None
        if self._comparison is not None:
            held = [held for unit in self._units.values() for held in unit.held()]
            # Whether no rank has any is not known: one without its elements holds None there too.
            counted = torch.ones(len(self.watched), dtype=torch.bool)
            difference = self._comparison.difference(held, counted, loss_scale)
        return Seen(self._hooks.of_each.sum(), mean, difference)

    def _new_comparison(self, home: torch.device) -> Comparison:
        listed: list[Compared] = []
        for unit in self._units.values():
            dtype, weight = sharded_dtype(unit.flat), self._world_size / unit.num_replicas
            named = zip(unit.parameters, unit.spans, strict=True)
            listed += [Compared(id(p), (end - start,), dtype, weight, unit.num_replicas) for p, (start, end) in named]
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
                f"versions known here ({error}): use fully_shard (ModelParallelStrategy) instead"
            ) from error
        found = {id(p) for unit in units if unit is not None for p in unit.parameters}
        lost = sum(is_flat(p) and key not in found for key, p in trained.items())
        if lost:
            raise UnsupportedSharding(
                f"{lost} parameters belong to units of FullyShardedDataParallel that are not in the model: give the "
                "outermost one (trainer.strategy.model), not the module in it"
            )
        return {id(unit.flat): unit for unit in units if unit is not None}


@dataclass(frozen=True, slots=True)
class _FlatUnit:
    # One unit of FSDP1, and what of it is watched.
    flat: Tensor
    parameters: list[Tensor]
    spans: list[tuple[int, int]]  # where these are in the flat parameter
    is_whole: bool  # whether they are all of it
    num_replicas: int  # processes that hold the same shard
    device: torch.device  # of the computation; the parameters may wait elsewhere
    shard_start: int  # where in the flat parameter this process's shard begins

    def part_of(self, gradient: Tensor) -> Tensor:
        if self.is_whole:
            return gradient
        return torch.cat([gradient[start:end] for start, end in self.spans])

    def pieces_of(self, part: Tensor) -> Iterable[tuple[int, Tensor]]:
        # Of what `part_of` gave, by id of the parameter.
        offset = 0
        for parameter, (start, end) in zip(self.parameters, self.spans, strict=True):
            begin = start if self.is_whole else offset
            yield id(parameter), part[begin : begin + end - start]
            offset += end - start

    def held(self) -> Iterable[Held]:
        for parameter, (start, _) in zip(self.parameters, self.spans, strict=True):
            if parameter.grad is not None:
                begin = max(0, self.shard_start - start)
                yield Held(id(parameter), parameter.grad.reshape(-1), start=begin)


def _flat_unit(module: Any, trained: dict[int, Tensor], world_size: int) -> _FlatUnit | None:
    handle = module._handle
    if handle is None:  # all of its parameters are in units within it
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
            f"a unit of FullyShardedDataParallel spans {processes} of {world_size} processes: all must see other data, "
            "and step with the mean over all"
        )
    # All shards are of one size, and the last ones padded.
    shard_start = handle.rank * -(-sum(flat._numels_with_padding) // shards) if shards > 1 else 0
    return _FlatUnit(flat, parameters, spans, is_whole, world_size // shards, handle.device, shard_start)


def _watched_part(flat: Any, trained: dict[int, Tensor]) -> tuple[list[Tensor], list[tuple[int, int]]]:
    # Of the original parameters, if it is those that the user holds: the gradient of the flat one has the frozen ones
    # in it too.
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
    """Find the units of FSDP1.

    Args:
        model: the model, as the strategy wrapped it

    Returns:
        The units in it, itself included.
    """
    # A model that is sharded has imported this; the others are spared a second.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return [] if fsdp is None else list(fsdp.FullyShardedDataParallel.fsdp_modules(model))


def is_flat(parameter: Tensor) -> bool:
    """Decide whether FSDP1 manages a parameter.

    Args:
        parameter: as the optimizer holds it

    Returns:
        Whether it is a flat parameter, or was put into one.
    """
    return bool(getattr(parameter, "_is_flat_param", False) or getattr(parameter, "_fsdp_flattened", False))
