"""Trainings with sharded parameters: strategies, and the model that they shard."""

import copy

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy

from tests.helpers.places import here
from tests.helpers.sharded_models import WIDTH, Block, Net


class FsdpOnCpu(FSDPStrategy):
    """Lightning refuses the class itself without a GPU, and wraps for the GPU."""

    def _setup_model(self, model):
        from torch.distributed.fsdp import FullyShardedDataParallel
        from torch.distributed.fsdp.wrap import ModuleWrapPolicy

        cpu = torch.device("cpu")
        return FullyShardedDataParallel(
            model, auto_wrap_policy=ModuleWrapPolicy({Block}), device_id=cpu, use_orig_params=True
        )


def ddp():
    return DDPStrategy(process_group_backend=here().backend)


def fsdp1():
    if here().device.type == "cpu":
        return FsdpOnCpu()
    return FSDPStrategy(auto_wrap_policy={Block}, process_group_backend=here().backend)


def fsdp2():
    return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend=here().backend)


STRATEGIES = {
    "ddp": ("ParameterHooks", ddp),
    "fsdp1": ("FlatParameterHooks", fsdp1),
    "fsdp2": ("WholeParameterHooks", fsdp2),
}


class Training(pl.LightningModule):
    """Keeps an unsharded copy of its network, and each window's data."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = Net(frozen=True)
        self.plain = [copy.deepcopy(self.net)]  # in a list: it is nobody's parameter
        self.batches = []

    def configure_model(self):
        from torch.distributed.fsdp import fully_shard

        if isinstance(self.trainer.strategy, ModelParallelStrategy) and self.net.scale.__class__ is torch.nn.Parameter:
            mesh = self.device_mesh["data_parallel"]
            for block in self.net.blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(self.net, mesh=mesh)

    def training_step(self, batch, batch_idx):
        self.batches.append(batch[0])
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.0)


class Trains(Training):
    """The sharded model, with a rate and data that it does not keep."""

    lr = 0.0

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
