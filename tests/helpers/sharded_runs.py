"""Trainings with sharded parameters: strategies, and the model that they shard."""

from contextlib import nullcontext

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from tests.helpers.places import here
from tests.helpers.sharded_models import WIDTH, Block, Case, Net, shard_fsdp2


class FsdpOnCpu(FSDPStrategy):
    """Lightning refuses the class itself without a GPU, and wraps for the GPU."""

    def _setup_model(self, model):
        from torch.distributed.fsdp import FullyShardedDataParallel

        return FullyShardedDataParallel(
            model, mixed_precision=self.mixed_precision_config, device_id=torch.device("cpu"), **self.kwargs
        )


class FsdpToOneFile(FsdpOnCpu):
    """torch takes what is on a CPU already for a copy, frees the original and dies (pytorch issue 188989)."""

    def setup_environment(self):
        from torch.distributed.fsdp._flat_param import FlatParamHandle

        FlatParamHandle.to_cpu = lambda handle: nullcontext()
        super().setup_environment()


def fsdp1(ranks=2, on_cpu=FsdpOnCpu, **options):
    strategy = on_cpu if here().device.type == "cpu" else FSDPStrategy
    return strategy(auto_wrap_policy={Block}, process_group_backend=here().backend, **options)


def fsdp2(ranks=2, strategy=ModelParallelStrategy, **options):
    return strategy(ranks, 1, process_group_backend=here().backend, **options)


STRATEGIES = {"fsdp1": fsdp1, "fsdp2": fsdp2}


class Trains(pl.LightningModule):
    """The sharded model; `shard` has the options of its units."""

    def __init__(self, lr=0.0, frozen=True, shard=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = Net(frozen=frozen)
        self.lr, self.shard = lr, shard or {}

    def configure_model(self):
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            shard_fsdp2(self.net, Case(shard={**self.shard, "mesh": self.device_mesh["data_parallel"]}))

    def training_step(self, batch, batch_idx):
        return (self.net(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=self.lr)


def items(count, sizes=(4,)):
    generator = torch.Generator().manual_seed(3)
    made = []
    for index in range(count):
        x = torch.randn(sizes[index % len(sizes)], WIDTH, generator=generator)
        made.append((x, torch.randn(x.shape, generator=generator)))
    return made


class FromPosition(torch.utils.data.DataLoader):
    """Resumes where it stood."""

    position = 0

    def __iter__(self):
        self.position %= len(self)
        while self.position < len(self):
            self.position += 1
            yield self.dataset[self.position - 1]

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]
