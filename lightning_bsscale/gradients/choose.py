"""Which watcher fits how a model is split over processes."""

from __future__ import annotations

from torch import nn

from lightning_bsscale.gradients.fsdp1 import FlatParameterHooks, fsdp1_units, is_flat
from lightning_bsscale.gradients.fsdp2 import WholeParameterHooks, fsdp2_params, fsdp2_units
from lightning_bsscale.gradients.parameter_hooks import ParameterHooks
from lightning_bsscale.gradients.shard_differences import (
    ShardDifferences,
    UnsupportedSharding,
    check_mesh,
    is_dtensor,
)
from lightning_bsscale.gradients.watcher import GradientWatcher, Parameters

__all__ = ["UnsupportedSharding", "choose_watcher"]


def choose_watcher(model: nn.Module, parameters: Parameters, *, world_size: int) -> GradientWatcher:
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
    trained = [p for p in parameters() if p.requires_grad]
    if fsdp1_units(model) or any(map(is_flat, trained)):
        return FlatParameterHooks(model, parameters, world_size=world_size)
    if not any(map(is_dtensor, trained)):
        return ParameterHooks(parameters, grad_is_own=world_size == 1, num_replicas=world_size)
    for parameter in filter(is_dtensor, trained):
        check_mesh(parameter, world_size)
    held = fsdp2_params(model)
    if not fsdp2_units(model) or any(getattr(p, "is_dtensor", False) for p in held or []):
        raise UnsupportedSharding(
            "parameters were made DTensors by something else than fully_shard: this is tensor parallelism, where "
            "several processes share one micro-batch"
        )
    if held is None:
        return ShardDifferences(parameters, world_size=world_size)
    return WholeParameterHooks(model, parameters, world_size=world_size)
