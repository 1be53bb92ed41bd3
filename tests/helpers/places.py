"""Where the processes of a test compute, and how they talk: CPUs with gloo, a GPU each with NCCL, one GPU with gloo.

A test takes the fixture `place`, and its processes ask `here()`.
"""

import os
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Processes of one device each. To Lightning they are on one node or, with `nodes`, each on its own."""

    accelerator: str = "cpu"  # as Lightning calls it
    backend: str = "gloo"
    nodes: bool = False
    shared: bool = False  # all on the first GPU

    @property
    def device(self):
        """A process's device: of the GPUs it sees its own only."""
        import torch

        return torch.device("cuda", 0) if self.accelerator == "gpu" else torch.device("cpu")

    @property
    def backends(self):
        """Of a group that takes tensors on the device and on the CPU."""
        return "cpu:gloo,cuda:nccl" if self.backend == "nccl" else self.backend

    def num_gpus(self, world_size):
        return 0 if self.accelerator == "cpu" else 1 if self.shared else world_size

    def trainer(self, world_size):
        devices = {"devices": 1, "num_nodes": world_size} if self.nodes else {"devices": world_size}
        return {"accelerator": self.accelerator, **devices}

    def environment(self, rank, world_size):
        if not self.nodes:  # no GPU: torch takes one for a mesh of its own choice if there is one
            return {"LOCAL_RANK": f"{rank}", "LOCAL_WORLD_SIZE": f"{world_size}", "CUDA_VISIBLE_DEVICES": ""}
        own = 0 if self.shared else rank
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = [f"{k}" for k in range(world_size)] if visible is None else visible.split(",")
        gpu = names[own].strip() if own < len(names) else ""
        return {"NODE_RANK": f"{rank}", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "CUDA_VISIBLE_DEVICES": gpu}

    def processes(self, world_size):
        """What each process has to find before it first asks for a GPU."""
        return [self.environment(rank, world_size) for rank in range(world_size)]


CPU = Place()
CPU_NODES = Place(nodes=True)
CUDA = Place("gpu", "nccl", nodes=True)
SHARED_CUDA = Place("gpu", "gloo", nodes=True, shared=True)

_here = CPU


def here():
    return _here


@contextmanager
def at(place):
    global _here
    before, _here = _here, place
    try:
        yield place
    finally:
        _here = before


def num_gpus():
    """GPUs that this process sees; the processes of a test are as new, as their server has never asked."""
    import torch

    return torch.cuda.device_count()
