"""gloo with which FSDP2 works in every torch.

torch 2.7's adds gradients where it is asked for their mean, and says nothing (pytorch issue 162338).
"""

import functools
from unittest import mock

import torch
from torch import distributed


def average_over_gloo():
    """In this process FSDP2 gets means from gloo: torch's own where they are means, else its sums, divided."""
    scatter = distributed.reduce_scatter_tensor
    distributed.reduce_scatter_tensor = _averaging(scatter, scatter)
    distributed.all_reduce = _averaging(distributed.all_reduce, scatter)


def _averaging(reduce, scatter):
    @functools.wraps(reduce)
    def reduced(*args, **options):
        group = options.get("group")
        if options.get("op") != distributed.ReduceOp.AVG or _is_right(scatter, group):
            return reduce(*args, **options)
        assert not options.get("async_op")
        reduce(*args, **options | {"op": distributed.ReduceOp.SUM})
        (args[0] if args else options["output"]).div_(distributed.get_world_size(group))
        # The same torch takes for granted that a stream, also a CPU's, has events where gradients are replicated.
        torch.cpu.Stream.record_event = mock.Mock()
        return None

    return reduced


@functools.cache
def _is_right(scatter, group):
    """Whether the mean of ones is one; every rank of the group asks."""
    if distributed.get_backend(group) != "gloo":
        return True
    mean = torch.empty(1)
    scatter(mean, torch.ones(distributed.get_world_size(group)), op=distributed.ReduceOp.AVG, group=group)
    return mean.item() == 1
