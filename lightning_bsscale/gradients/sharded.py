"""Squared norms of each micro-batch's own gradient where parameters are sharded: FSDP2 (`fully_shard`) and FSDP1.

Hooks on the parameters that the optimizer holds never fire there: each rank has only its part of them, and the backward
pass goes through the whole ("unsharded") parameters that FSDP gathers. This file finds those, and hooks them instead.
The gradient that such a hook sees is this process's own, before it is reduced, in the dtype that it was computed in.

* FSDP2: the whole parameters exist from the first forward pass on, under a private name. torch's public
  `set_custom_reduce_scatter` would show the same gradients, but flat, only where a backward pass reduces, not with
  several parameter groups in a unit, and already divided where the reduction is in float16; and what it replaces can be
  put back under a private name only. Where this torch has other names, the public differences of `.grad` are left: the
  norm of each micro-batch's mean over all processes.
* FSDP1: one flat parameter a unit. There is no second way: between two backward passes that do not reduce, `.grad` is
  not what the next one adds to.

What the hooks saw is compared with `.grad` element by element, as on one device: a rank compares the sampled elements
that are in its shard. A parameter whose `.grad` is *zero* at the step is not left out, as one shard does not tell that
of the whole: the comparison finds it.

Every private name of torch's sharding that the package uses is in this file. Parameters that FSDP does not shard, and
whose gradients it does not reduce, are left out of both sums, which agree without them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from lightning_bsscale.gradients.comparison import Compared, GradientSample, Held, not_compared
from lightning_bsscale.gradients.parameter_hooks import ParameterHooks
from lightning_bsscale.gradients.shard_differences import (
    ShardDifferences,
    UnsupportedSharding,
    check_mesh,
    held_shard,
    is_dtensor,
    num_holders,
    shards_of,
    share_of_shards,
    weighted_squared_norm,
)
from lightning_bsscale.gradients.watcher import GradientWatcher, StepSums

__all__ = ["FlatParameterHooks", "UnsupportedSharding", "WholeParameterHooks", "choose_watcher"]

Parameters = Callable[[], Iterable[Tensor]]


def choose_watcher(model: nn.Module, parameters: Parameters, *, world_size: int = 1) -> GradientWatcher:
    """Choose the watcher that fits how a model is split over processes. It waits for no other process.

    All processes choose alike, since they run the same torch on the same model.

    Args:
        model: the model, as the strategy wrapped it: with FSDP1 the outermost unit, not the module in it
        parameters: gives the parameters to watch anew for each window, as the optimizer holds them
        world_size: number of processes, all of which see other data

    Returns:
        The watcher.

    Raises:
        UnsupportedSharding: If there is none.
    """
    trained = _trained(parameters)
    if _fsdp1_units(model) or any(map(_is_flat, trained.values())):
        return FlatParameterHooks(model, parameters, world_size=world_size)
    if not any(map(is_dtensor, trained.values())):
        return ParameterHooks(parameters, grad_is_own=world_size == 1, num_replicas=world_size)
    for parameter in filter(is_dtensor, trained.values()):
        check_mesh(parameter, world_size)
    held = _fsdp2_params(model)
    if not _fsdp2_units(model) or any(getattr(p, "is_dtensor", False) for p in held or []):
        raise UnsupportedSharding(
            "parameters were made DTensors by something else than fully_shard: this is tensor parallelism, where "
            "several processes share one micro-batch"
        )
    return ShardDifferences(parameters) if held is None else WholeParameterHooks(model, parameters)


class WholeParameterHooks:
    """Watches a model sharded by `fully_shard` (FSDP2), by hooks on its whole parameters; a `GradientWatcher`.

    They are hooked between `start_micro_batch` and `end_micro_batch`, since before the first forward pass there are
    none. Right with mixed precision, resharding or not, tied weights, modules used twice, activation checkpointing of
    any kind, unused and frozen parameters, offloading, several parameter groups a unit, replicated groups of shards
    (HSDP), and backward passes that do not reduce.

    Args:
        model: a module that holds all units
        parameters: gives the parameters to watch anew for each window
    """

    micro_batch_is_global: Final = False

    def __init__(self, model: nn.Module, parameters: Parameters) -> None:
        self._model = model
        self._parameters = parameters
        self._sharded: dict[int, Tensor] = {}
        self._groups: list[Any] = []
        self._hooks = ParameterHooks(self._whole)
        self._sq_norms: list[Tensor] = []
        self._of_each: list[tuple[list[int], Tensor]] = []  # of each micro-batch: ids of sharded parameters, their part
        self._unsteady: set[int] = set()
        self._compared = False
        self._sample: GradientSample | None = None
        self._turn = 0
        self._open = False

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches that ended in the open window, or in the last one."""
        return len(self._sq_norms)

    @property
    def watched(self) -> list[Tensor]:
        """The parameters of the open window, or of the last one."""
        return list(self._sharded.values())

    def start_window(self, *, compared: bool = False) -> None:
        """Begin to watch. A window that was open is given up.

        Args:
            compared: whether to compare `.grad` at the step with what the hooks saw
        """
        self._hooks.stop_window()
        self._compared, self._sample = compared, None
        self._sharded = {key: p for key, p in _trained(self._parameters).items() if is_dtensor(p)}
        self._groups = _fsdp2_groups(self._model)
        self._sq_norms = []
        self._of_each = []
        self._unsteady = set()
        self._open = True

    def start_micro_batch(self) -> None:
        """Hook the whole parameters: to be called after the forward pass.

        Raises:
            RuntimeError: If no window is open.
        """
        if not self._open:
            raise RuntimeError("start_micro_batch was called outside a window: call start_window first")
        self._unsteady.update(key for key, p in self._sharded.items() if not p.requires_grad)
        self._hooks.start_window(takes=self._take if self._compared else None)
        if self._compared and self._sample is None and self._hooks.watched:
            self._sample = self._new_sample(self._hooks.watched[0].device)
        self._hooks.start_micro_batch()

    def end_micro_batch(self) -> None:
        """Remove the hooks, and close the micro-batch."""
        self._hooks.end_micro_batch()
        self._sq_norms.append(self._hooks.stop_window()[0])
        sharded = self._ids_of_sharded()
        self._of_each.append(([sharded[id(p)] for p in self._hooks.watched], self._hooks.sq_norm_of_each))

    def stop_window(self) -> Tensor:
        """Stop watching.

        Returns:
            One squared norm for each micro-batch that ended, of this process's own gradient.
        """
        self._hooks.stop_window()
        self._open = False
        return torch.stack(self._sq_norms) if self._sq_norms else torch.zeros(0, dtype=torch.float64)

    def step_sums(self, loss_scale: Tensor | None = None) -> StepSums:
        """Compute the window's sums. A parameter whose `.grad` is None now is left out of both.

        Args:
            loss_scale: what the loss, but not `.grad`, is multiplied by

        Returns:
            The sums. Nothing waits for them.
        """
        stepped = {key for key, p in self._sharded.items() if p.grad is not None} - self._unsteady
        mean = self.local_share_of_mean_squared_norm()
        seen = torch.zeros_like(mean)
        for (keys, of_each), all_of_them in zip(self._of_each, self._sq_norms, strict=True):
            if stepped.issuperset(keys):
                seen = seen + all_of_them
            else:
                counted = torch.tensor([key in stepped for key in keys]).to(of_each.device, non_blocking=True)
                seen = seen + torch.where(counted, of_each, 0.0).sum()
        return StepSums(seen, mean, self._difference(stepped, loss_scale, mean.device))

    def local_share_of_mean_squared_norm(self) -> Tensor:
        """Compute this process's share of the squared norm of the mean, from the shards in `.grad`.

        Returns:
            A 0-d tensor, whose sum over processes is the squared norm. Nothing waits for it.
        """
        steady = [p for key, p in self._sharded.items() if key not in self._unsteady]
        return share_of_shards(steady, factors=self._factors())

    def _factors(self) -> dict[int, float]:
        return {
            id(p.sharded_param): divisor / p.sharded_param.device_mesh.size()
            for group in self._groups
            if (divisor := _divisor(group)) is not None
            for p in group.fsdp_params
        }

    def _new_sample(self, home: torch.device) -> GradientSample:
        factors = self._factors()
        listed: list[Compared] = []
        for key, p in self._sharded.items():
            holders, (dim, shards) = num_holders(p), shards_of(p)
            weight = factors.get(key, 1.0) * p.device_mesh.size() / holders  # type: ignore[attr-defined]
            listed.append(Compared(key, tuple(p.shape), _roughest(p), weight, holders, dim, shards))
        self._turn += 1
        return GradientSample(listed, home, turn=self._turn - 1, on_ranks=True)

    def _take(self, gradients: Iterable[tuple[int, Tensor]]) -> None:
        if self._sample is not None:
            sharded = self._ids_of_sharded()
            self._sample.take((sharded[key], gradient) for key, gradient in gradients)

    def _difference(self, stepped: set[int], loss_scale: Tensor | None, device: torch.device) -> Tensor:
        if self._sample is None:
            return not_compared(device)
        with torch.no_grad():
            held = [held_shard(p) for key, p in self._sharded.items() if key in stepped]
            counted = torch.tensor([key in stepped for key in self._sharded])
            return self._sample.difference(held, counted, loss_scale)

    def _ids_of_sharded(self) -> dict[int, int]:
        return {id(p._unsharded_param): id(p.sharded_param) for p in self._held() if hasattr(p, "_unsharded_param")}

    def _held(self) -> list[Any]:
        return [p for group in self._groups for p in group.fsdp_params if id(p.sharded_param) in self._sharded]

    def _whole(self) -> list[Tensor]:
        held = self._held()
        # A unit has them from its first forward pass on, and no gradient before.
        whole = [p._unsharded_param for p in held if hasattr(p, "_unsharded_param")]
        if self._sharded and not whole:
            raise UnsupportedSharding(
                "no unit of fully_shard has run its forward pass: call the sharded modules, not functions that use "
                "their parameters. Lightning calls training_step without forward, so shard the modules that it calls, "
                "not the LightningModule alone"
            )
        if len(held) < len(self._sharded):
            raise UnsupportedSharding(
                f"{len(self._sharded) - len(held)} of {len(self._sharded)} parameters are DTensors that no unit of "
                "fully_shard holds: shard their modules too, or none"
            )
        return whole


class FlatParameterHooks:
    """Watches a model wrapped by FSDP1, by hooks on the flat parameter of each unit; a `GradientWatcher`.

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

    micro_batch_is_global: Final = False

    def __init__(self, model: nn.Module, parameters: Parameters, *, world_size: int) -> None:
        self._model = model
        self._parameters = parameters
        self._world_size = world_size
        self._units = self._watched_units()
        home = next((unit.device for unit in self._units.values()), None)
        self._hooks = ParameterHooks(
            lambda: [unit.flat for unit in self._units.values()],
            home=home,
            part_of=lambda flat, gradient: self._units[id(flat)].part_of(gradient),
        )
        self._sample: GradientSample | None = None
        self._turn = 0

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches that ended in the open window, or in the last one."""
        return self._hooks.num_micro_batches

    @property
    def watched(self) -> list[Tensor]:
        """The parameters of the open window, or of the last one."""
        return [p for unit in self._units.values() for p in unit.parameters]

    def start_window(self, *, compared: bool = False) -> None:
        """Register the hooks. A window that was open is given up.

        Args:
            compared: whether to compare `.grad` at the step with what the hooks saw
        """
        self._units = self._watched_units()
        self._sample = None
        if compared and self._units:
            self._sample = self._new_sample(next(iter(self._units.values())).device)
        self._hooks.start_window(takes=self._take if compared else None)

    def start_micro_batch(self) -> None:
        """Count gradients from now on. What a micro-batch that never ended had gathered is forgotten."""
        self._hooks.start_micro_batch()

    def end_micro_batch(self) -> None:
        """Close the micro-batch; one without any gradient has norm zero."""
        self._hooks.end_micro_batch()

    def stop_window(self) -> Tensor:
        """Remove the hooks.

        Returns:
            One squared norm for each micro-batch that ended, of this process's own gradient.
        """
        return self._hooks.stop_window()

    def step_sums(self, loss_scale: Tensor | None = None) -> StepSums:
        """Compute the window's sums.

        Args:
            loss_scale: what the loss, but not `.grad`, is multiplied by

        Returns:
            The sums. Nothing waits for them.
        """
        mean = self.local_share_of_mean_squared_norm()
        difference = not_compared(mean.device)
        if self._sample is not None:
            with torch.no_grad():
                held = [held for unit in self._units.values() for held in unit.held()]
                # Whether no rank has any is not known: one without its elements holds None there too.
                counted = torch.ones(len(self.watched), dtype=torch.bool)
                difference = self._sample.difference(held, counted, loss_scale)
        return StepSums(self._hooks.sq_norm_of_each.sum(), mean, difference)

    def local_share_of_mean_squared_norm(self) -> Tensor:
        """Compute this process's share of the squared norm of the mean, from the shards in `.grad`.

        Returns:
            A 0-d tensor, whose sum over processes is the squared norm. Nothing waits for it.
        """
        return weighted_squared_norm(
            (p.grad, 1 / unit.num_replicas)
            for unit in self._units.values()
            for p in unit.parameters
            if p.grad is not None
        )

    def _new_sample(self, home: torch.device) -> GradientSample:
        listed: list[Compared] = []
        for unit in self._units.values():
            dtype, weight, holders = _roughest(unit.flat), self._world_size / unit.num_replicas, unit.num_replicas
            named = zip(unit.parameters, unit.spans, strict=True)
            listed += [Compared(id(p), (end - start,), dtype, weight, holders) for p, (start, end) in named]
        self._turn += 1
        return GradientSample(listed, home, turn=self._turn - 1, on_ranks=True)

    def _take(self, gradients: Iterable[tuple[int, Tensor]]) -> None:
        if self._sample is not None:
            self._sample.take(piece for key, gradient in gradients for piece in self._units[key].pieces_of(gradient))

    def _watched_units(self) -> dict[int, _FlatUnit]:
        trained = _trained(self._parameters)
        try:
            units = [_flat_unit(module, trained, self._world_size) for module in _fsdp1_units(self._model)]
        except AttributeError as error:
            raise UnsupportedSharding(
                f"torch {torch.__version__} keeps the flat parameters of FullyShardedDataParallel elsewhere than the "
                f"versions known here ({error}): use fully_shard (ModelParallelStrategy) instead"
            ) from error
        found = {id(p) for unit in units if unit is not None for p in unit.parameters}
        lost = sum(_is_flat(p) and key not in found for key, p in trained.items())
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


def _fsdp1_units(model: nn.Module) -> list[Any]:
    # A model that is sharded has imported this; the others are spared a second.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return [] if fsdp is None else list(fsdp.FullyShardedDataParallel.fsdp_modules(model))


def _fsdp2_units(model: nn.Module) -> list[Any]:
    for name in ("torch.distributed.fsdp", "torch.distributed._composable.fsdp"):  # the second is older
        kind = getattr(sys.modules.get(name), "FSDPModule", None)
        if kind is not None:
            return [module for module in model.modules() if isinstance(module, kind)]
    return []


def _fsdp2_groups(model: nn.Module) -> list[Any]:
    # Parameters that are gathered and reduced together. Several modules may share a group; a unit may have several, in
    # older versions one at most.
    groups: dict[int, Any] = {}
    for unit in _fsdp2_units(model):
        state = unit._get_fsdp_state()
        several = getattr(state, "_fsdp_param_groups", None)
        for group in [state._fsdp_param_group] if several is None else several:
            if group is not None:
                groups[id(group)] = group
    return list(groups.values())


def _fsdp2_params(model: nn.Module) -> list[Any] | None:
    # None if this torch keeps them elsewhere.
    try:
        held = [p for group in _fsdp2_groups(model) for p in group.fsdp_params]
    except AttributeError:
        return None
    return held if all(hasattr(p, "sharded_param") and hasattr(type(p), "unsharded_param") for p in held) else None


def _divisor(group: Any) -> float | None:
    # What the sum of the gradients is divided by, if not the number of processes; under its name now, or before.
    divisor = getattr(group, "gradient_divide_factor", getattr(group, "reduce_scatter_divide_factor", None))
    return None if divisor is None else float(divisor)


def _roughest(parameter: Tensor) -> torch.dtype:
    # FSDP may compute and reduce in another dtype than the parameters have: the rounding of the roughest is allowed.
    return parameter.dtype if parameter.is_complex() else torch.bfloat16


def _trained(parameters: Parameters) -> dict[int, Tensor]:
    return {id(parameter): parameter for parameter in parameters() if parameter.requires_grad}


def _is_flat(parameter: Tensor) -> bool:
    return bool(getattr(parameter, "_is_flat_param", False) or getattr(parameter, "_fsdp_flattened", False))
