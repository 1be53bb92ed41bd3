"""Where the processes of a test compute, and how they talk: on CPUs, and on GPUs where there are any.

A test takes the fixture `place`, and its processes ask `here()`. One body so runs on CPUs with gloo, on a GPU each with
NCCL, and on one GPU for all with gloo, as NCCL wants a GPU for each process.
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
        """The Trainer's settings."""
        devices = {"devices": 1, "num_nodes": world_size} if self.nodes else {"devices": world_size}
        return {"accelerator": self.accelerator, **devices}

    def environment(self, rank, world_size, visible=None):
        """What a process has to find before it first asks for a GPU.

        `visible` is the parent's CUDA_VISIBLE_DEVICES.
        """
        if not self.nodes:  # no GPU: torch takes one for a mesh of its own choice if there is one
            return {"LOCAL_RANK": f"{rank}", "LOCAL_WORLD_SIZE": f"{world_size}", "CUDA_VISIBLE_DEVICES": ""}
        own = 0 if self.shared else rank
        names = [f"{k}" for k in range(world_size)] if visible is None else visible.split(",")
        gpu = names[own].strip() if own < len(names) else ""
        return {"NODE_RANK": f"{rank}", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "CUDA_VISIBLE_DEVICES": gpu}

    def processes(self, world_size):
        """The environment of each process."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return [self.environment(rank, world_size, visible) for rank in range(world_size)]


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
    """GPUs that this process sees. It asks the driver's NVML where it can, which leaves CUDA as it is.

    Even where it cannot, the processes of a test are as new: they are forked from a server that has never asked.
    """
    import torch

    return torch.cuda.device_count()
