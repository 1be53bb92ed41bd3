"""Each sample's own gradient with parameters sharded by `fully_shard` (FSDP2).

Hooks on the optimizer's parameters never fire with FSDP2: each rank has only a part of them, and the backward pass uses
the whole ("unsharded") parameters, which FSDP gathers. The whole parameters are hooked instead. Such a hook sees this
process's own gradient before the reduction, in the dtype it was computed in.

The whole parameters exist from the first forward pass on, under a private name. torch's public
`set_custom_reduce_scatter` is no substitute: it would show the same gradients, but flattened, only where a backward
pass reduces, not with several parameter groups in a unit, and already divided if the reduction is in float16. What it
replaces can be restored only through a private name. If a version of torch uses other names, the public differences of
`.grad` remain: the norm of each sample's mean over all processes.

The observed gradients are compared with `.grad` element by element, as on one device: each rank compares the sampled
elements in its shard. A parameter whose `.grad` is *zero* at the step is not left out, since one shard does not show
whether the whole is zero; the comparison detects that case.

Every private name of FSDP2 that the package uses is in this file. Parameters that FSDP does not shard, and whose
gradients it does not reduce, are left out of both sums, which agree without them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_bsscale.gradients.comparison import ComparedParameter, Comparison, sharded_dtype
from lightning_bsscale.gradients.shard_differences import (
    UnsupportedSharding,
    held_shard,
    is_dtensor,
    num_holders,
    shards_of,
    share_of_shards,
)
from lightning_bsscale.gradients.tensor_hooks import TensorHooks
from lightning_bsscale.gradients.watcher import GradientWatcher, Parameters, RawSums

__all__ = ["WholeParameterHooks", "fsdp2_groups", "fsdp2_params", "fsdp2_units"]


class WholeParameterHooks(GradientWatcher):
    """Watches a model sharded by `fully_shard` (FSDP2) through hooks on its whole parameters.

    They are hooked between `start_sample` and `end_sample`, since they do not exist before the first forward pass.
    Exact with mixed precision, resharding or not, tied weights, modules used twice, activation checkpointing of any
    kind, unused and frozen parameters, offloading, several parameter groups a unit, replicated groups of shards (HSDP),
    and backward passes that do not reduce. A parameter whose `.grad` is None at the step is left out of both sums.

    Args:
        model: a module that contains all units
        parameters: returns the parameters to watch; called for each window
        world_size: number of processes
    """

    def __init__(self, model: nn.Module, parameters: Parameters, *, world_size: int) -> None:
        super().__init__(parameters, world_size=world_size)
        self._model = model
        self._sharded: dict[int, Tensor] = {}
        self._groups: list[Any] = []
        self._hooks = TensorHooks()
        self._of_each: list[tuple[list[int], Tensor]] = []  # per sample: ids of parameters, squared norms
        self._unsteady: set[int] = set()
        self._is_compared = False

    @property
    def watched(self) -> list[Tensor]:
        """The parameters of the open window, or of the last one."""
        return list(self._sharded.values())

    def _open(self, compared: bool) -> None:
        self._is_compared = compared
        self._sharded = {key: p for key, p in self._trained().items() if is_dtensor(p)}
        self._groups = fsdp2_groups(self._model)
        self._of_each = []
        self._unsteady = set()

    def _begin_sample(self) -> None:
        self._hooks.remove()  # hooks of a sample that never ended
        self._unsteady.update(key for key, p in self._sharded.items() if not p.requires_grad)
        self._hooks.register(self._whole(), sink=self._take if self._is_compared else None)
        if self._is_compared and self._comparison is None and self._hooks.watched:
            self._comparison = self._new_comparison(self._hooks.watched[0].device)
        self._hooks.begin()

    def _end_sample(self, weight: float) -> Tensor:
        sq_norm = self._hooks.end(weight)
        self._hooks.remove()
        sharded = self._ids_of_sharded()
        self._of_each.append(([sharded[id(p)] for p in self._hooks.watched], self._hooks.of_each))
        return sq_norm

    def _close(self) -> None:
        self._hooks.remove()

    def _raw_sums(self, loss_scale: Tensor | None) -> RawSums:
        steady = [p for key, p in self._sharded.items() if key not in self._unsteady]
        stepped = {id(p) for p in steady if p.grad is not None}
        mean = share_of_shards(steady, factors=self._factors())
        sq_norms = torch.zeros_like(mean)
        for (keys, of_each), all_of_them in zip(self._of_each, self._sq_norms, strict=True):
            if stepped.issuperset(keys):
                sq_norms = sq_norms + all_of_them
            else:
                counted = torch.tensor([key in stepped for key in keys]).to(of_each.device, non_blocking=True)
                sq_norms = sq_norms + torch.where(counted, of_each, 0.0).sum()
        return RawSums(sq_norms, mean, self._difference(stepped, loss_scale))

    def _difference(self, stepped: set[int], loss_scale: Tensor | None) -> Tensor | None:
        if self._comparison is None:
            return None
        held = [held_shard(p) for key, p in self._sharded.items() if key in stepped]
        counted = torch.tensor([key in stepped for key in self._sharded])
        return self._comparison.difference(held, counted, loss_scale)

    def _factors(self) -> dict[int, float]:
        return {
            id(p.sharded_param): divisor / p.sharded_param.device_mesh.size()
            for group in self._groups
            if (divisor := _divisor(group)) is not None
            for p in group.fsdp_params
        }

    def _new_comparison(self, home: torch.device) -> Comparison:
        factors = self._factors()
        listed: list[ComparedParameter] = []
        for key, p in self._sharded.items():
            holders, (dim, shards) = num_holders(p), shards_of(p)
            weight = factors.get(key, 1.0) * p.device_mesh.size() / holders  # type: ignore[attr-defined]
            listed.append(ComparedParameter(key, tuple(p.shape), sharded_dtype(p), weight, holders, dim, shards))
        return Comparison(listed, home, turn=self._turn, on_ranks=True)

    def _take(self, gradients: Iterable[tuple[int, Tensor]]) -> None:
        if self._comparison is not None:
            sharded = self._ids_of_sharded()
            self._comparison.take((sharded[key], gradient) for key, gradient in gradients)

    def _ids_of_sharded(self) -> dict[int, int]:
        return {id(p._unsharded_param): id(p.sharded_param) for p in self._held() if hasattr(p, "_unsharded_param")}

    def _held(self) -> list[Any]:
        return [p for group in self._groups for p in group.fsdp_params if id(p.sharded_param) in self._sharded]

    def _whole(self) -> list[Tensor]:
        held = self._held()
        # Before its first forward pass a unit has neither whole parameters nor gradients.
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
        return list({id(p): p for p in whole if p.requires_grad}.values())


def fsdp2_units(model: nn.Module) -> list[Any]:
    """Return the modules in a model that `fully_shard` was called with."""
    for name in ("torch.distributed.fsdp", "torch.distributed._composable.fsdp"):  # the second is older
        kind = getattr(sys.modules.get(name), "FSDPModule", None)
        if kind is not None:
            return [module for module in model.modules() if isinstance(module, kind)]
    return []


def fsdp2_groups(model: nn.Module) -> list[Any]:
    """Return FSDP2's groups of parameters that are gathered and reduced together, each once."""
    # Several modules may share a group. A unit may have several groups, in older versions at most one.
    groups: dict[int, Any] = {}
    for unit in fsdp2_units(model):
        state = unit._get_fsdp_state()
        several = getattr(state, "_fsdp_param_groups", None)
        for group in [state._fsdp_param_group] if several is None else several:
            if group is not None:
                groups[id(group)] = group
    return list(groups.values())


def fsdp2_params(model: nn.Module) -> list[Any] | None:
    """Return FSDP2's object for each parameter, or None if this torch keeps them under other names."""
    try:
        held = [p for group in fsdp2_groups(model) for p in group.fsdp_params]
    except AttributeError:
        return None
    return held if all(hasattr(p, "sharded_param") and hasattr(type(p), "unsharded_param") for p in held) else None


def _divisor(group: Any) -> float | None:
    """Return the divisor of the summed gradients if it is not the number of processes."""
    # torch 2.7 has no such attribute, and another divisor stands where it cannot be read; the comparison detects it.
    divisor = getattr(group, "gradient_divide_factor", None)
    return None if divisor is None else float(divisor)
