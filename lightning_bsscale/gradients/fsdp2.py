"""Each sample's own gradient where `fully_shard` (FSDP2) shards the parameters.

Hooks on the parameters that the optimizer holds never fire there: each rank has only its part of them, and the backward
pass goes through the whole ("unsharded") parameters, which FSDP gathers. Those are hooked. The gradient that such a
hook sees is this process's own, before it is reduced, in the dtype that it was computed in.

The whole parameters exist from the first forward pass on, under a private name. torch's public
`set_custom_reduce_scatter` would show the same gradients, but flat, only where a backward pass reduces, not with
several parameter groups in a unit, and already divided where the reduction is in float16; and what it replaces can be
put back under a private name only. Where this torch has other names, the public differences of `.grad` are left: the
norm of each sample's mean over all processes.

What the hooks saw is compared with `.grad` element by element, as on one device: a rank compares the sampled elements
that are in its shard. A parameter whose `.grad` is *zero* at the step is not left out, as one shard does not tell that
of the whole: the comparison finds it.

Every private name of FSDP2 that the package uses is in this file. Parameters that FSDP does not shard, and whose
gradients it does not reduce, are left out of both sums, which agree without them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_bsscale.gradients.comparison import Compared, Comparison, sharded_dtype
from lightning_bsscale.gradients.shard_differences import (
    UnsupportedSharding,
    held_shard,
    is_dtensor,
    num_holders,
    shards_of,
    share_of_shards,
)
from lightning_bsscale.gradients.tensor_hooks import TensorHooks
from lightning_bsscale.gradients.watcher import GradientWatcher, Parameters, Seen

__all__ = ["WholeParameterHooks", "fsdp2_groups", "fsdp2_params", "fsdp2_units"]


class WholeParameterHooks(GradientWatcher):
    """Watches a model sharded by `fully_shard` (FSDP2), by hooks on its whole parameters.

    They are hooked between `start_sample` and `end_sample`, since before the first forward pass there are none. Right
    with mixed precision, resharding or not, tied weights, modules used twice, activation checkpointing of any kind,
    unused and frozen parameters, offloading, several parameter groups a unit, replicated groups of shards (HSDP), and
    backward passes that do not reduce. A parameter whose `.grad` is None at the step is left out of both sums.

    Args:
        model: a module that holds all units
        parameters: gives the parameters to watch anew for each window
        world_size: number of processes
    """

    def __init__(self, model: nn.Module, parameters: Parameters, *, world_size: int) -> None:
        super().__init__(parameters, world_size=world_size)
        self._model = model
        self._sharded: dict[int, Tensor] = {}
        self._groups: list[Any] = []
        self._hooks = TensorHooks()
        self._of_each: list[tuple[list[int], Tensor]] = []  # of each sample: ids of sharded parameters, their part
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
        self._hooks.remove()  # those of a sample that never ended
        self._unsteady.update(key for key, p in self._sharded.items() if not p.requires_grad)
        self._hooks.register(self._whole(), takes=self._take if self._is_compared else None)
        if self._is_compared and self._comparison is None and self._hooks.watched:
            self._comparison = self._new_comparison(self._hooks.watched[0].device)
        self._hooks.begin()

    def _end_sample(self) -> Tensor:
        sq_norm = self._hooks.end()
        self._hooks.remove()
        sharded = self._ids_of_sharded()
        self._of_each.append(([sharded[id(p)] for p in self._hooks.watched], self._hooks.of_each))
        return sq_norm

    def _close(self) -> None:
        self._hooks.remove()

    def _seen(self, loss_scale: Tensor | None) -> Seen:
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
        return Seen(sq_norms, mean, self._difference(stepped, loss_scale))

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
        listed: list[Compared] = []
        for key, p in self._sharded.items():
            holders, (dim, shards) = num_holders(p), shards_of(p)
            weight = factors.get(key, 1.0) * p.device_mesh.size() / holders  # type: ignore[attr-defined]
            listed.append(Compared(key, tuple(p.shape), sharded_dtype(p), weight, holders, dim, shards))
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
        return list({id(p): p for p in whole if p.requires_grad}.values())


def fsdp2_units(model: nn.Module) -> list[Any]:
    """Find the units of FSDP2.

    Args:
        model: the model

    Returns:
        The modules in it that `fully_shard` was called with.
    """
    for name in ("torch.distributed.fsdp", "torch.distributed._composable.fsdp"):  # the second is older
        kind = getattr(sys.modules.get(name), "FSDPModule", None)
        if kind is not None:
            return [module for module in model.modules() if isinstance(module, kind)]
    return []


def fsdp2_groups(model: nn.Module) -> list[Any]:
    """Find FSDP2's groups of parameters that are gathered and reduced together.

    Args:
        model: the model

    Returns:
        Each group once.
    """
    # Several modules may share a group; a unit may have several, in older versions one at most.
    groups: dict[int, Any] = {}
    for unit in fsdp2_units(model):
        state = unit._get_fsdp_state()
        several = getattr(state, "_fsdp_param_groups", None)
        for group in [state._fsdp_param_group] if several is None else several:
            if group is not None:
                groups[id(group)] = group
    return list(groups.values())


def fsdp2_params(model: nn.Module) -> list[Any] | None:
    """Find what FSDP2 keeps of each parameter.

    Args:
        model: the model

    Returns:
        One object for each parameter; None if this torch keeps them elsewhere.
    """
    try:
        held = [p for group in fsdp2_groups(model) for p in group.fsdp_params]
    except AttributeError:
        return None
    return held if all(hasattr(p, "sharded_param") and hasattr(type(p), "unsharded_param") for p in held) else None


def _divisor(group: Any) -> float | None:
    # What the sum of the gradients is divided by, if not the number of processes; under its name now, or before.
    divisor = getattr(group, "gradient_divide_factor", getattr(group, "reduce_scatter_divide_factor", None))
    return None if divisor is None else float(divisor)
