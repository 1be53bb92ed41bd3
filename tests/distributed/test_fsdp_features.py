"""What FSDP1 and FSDP2 are used with, through the Trainer: measured as on one process without any of it."""

import functools
import warnings
from dataclasses import dataclass, field

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from lightning_bsscale import GradientNoiseScaleMonitor
from tests.helpers.ddp_runs import loader_of
from tests.helpers.places import here
from tests.helpers.processes import run
from tests.helpers.sharded_models import Block, Net
from tests.helpers.sharded_runs import FsdpOnCpu, Trains, items
from tests.helpers.training import QUIET

pytestmark = pytest.mark.timeout(180)
ONE_PROCESS = {"accelerator": "cpu", "devices": 1}

WINDOWS, MICRO_BATCHES, SIZE = 3, 4, 4  # micro-batches of a window over all ranks; examples of each
CLIPPED = {"gradient_clip_val": 0.1}
CLIPPED_BY_VALUE = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}


class FsdpAsAsked(FsdpOnCpu):
    """With the strategy's own options, as Lightning passes them on."""

    def _setup_model(self, model):
        from torch.distributed.fsdp import FullyShardedDataParallel

        return FullyShardedDataParallel(
            model, mixed_precision=self.mixed_precision_config, device_id=torch.device("cpu"), **self.kwargs
        )


@dataclass(frozen=True)
class Case:
    """How the model is sharded and trained; rel is that of the measured trace."""

    shard: dict = field(default_factory=dict)
    trainer: dict = field(default_factory=dict)
    clips_itself: bool = False
    rel: float = 1e-3


BF16 = 2e-2  # a rounding takes up to 2^-8 of a gradient: room for five of them

ANY = {
    "nothing": Case(),
    "bf16-true": Case(trainer={"precision": "bf16-true"}, rel=BF16),
    "bf16-mixed": Case(trainer={"precision": "bf16-mixed"}, rel=BF16),
    "clipped by value": Case(trainer=CLIPPED_BY_VALUE),
}
CASES = {
    "fsdp1": ANY
    | {
        "clipped by the module": Case(trainer=CLIPPED, clips_itself=True),
    },
    "fsdp2": ANY
    | {
        "MixedPrecisionPolicy": Case(shard={"precision": torch.bfloat16}, rel=BF16),
        "CPUOffloadPolicy": Case(shard={"offload": True}),
        "clipped by norm": Case(trainer=CLIPPED),
    },
}


class KeepsNorms(torch.optim.SGD):
    """Keeps the squared norm of what a rank steps with."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.sq_norms = []

    def step(self, closure=None):
        loss = closure()
        held = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        shards = [grad.to_local() if hasattr(grad, "to_local") else grad for grad in held]
        self.sq_norms.append(sum(shard.double().square().sum().item() for shard in shards))
        super().step()
        return loss


class Made(Trains):
    def __init__(self, shard):
        super().__init__()
        torch.manual_seed(0)
        self.net = Net()
        self.shard = shard

    def configure_model(self):
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            from torch.distributed import fsdp

            options = {"mesh": self.device_mesh["data_parallel"]}
            if "precision" in self.shard:
                options["mp_policy"] = fsdp.MixedPrecisionPolicy(param_dtype=self.shard["precision"])
            if "offload" in self.shard:
                options["offload_policy"] = fsdp.CPUOffloadPolicy(pin_memory=False)  # pinning wants a GPU
            for module in (*self.net.blocks, self.net):
                fsdp.fully_shard(module, **options)

    def configure_optimizers(self):
        return KeepsNorms([p for p in self.parameters() if p.requires_grad], lr=0.0)


class ClipsItself(Made):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.trainer.model.clip_grad_norm_(gradient_clip_val)


def monitored(rank, ranks, kind, case):
    """Of each window trace and |G|² as measured, and the squared norm of this rank's part of what was stepped with."""
    warnings.simplefilter("ignore")
    settings, strategy = ONE_PROCESS, "auto"
    if ranks > 1:
        settings, backend = here().trainer(ranks), here().backend
        fsdp1 = FsdpAsAsked if here().device.type == "cpu" else FSDPStrategy
        if kind == "fsdp1":
            strategy = fsdp1(auto_wrap_policy={Block}, process_group_backend=backend, **case.shard)
        else:
            strategy = ModelParallelStrategy(ranks, 1, process_group_backend=backend)
    monitor = GradientNoiseScaleMonitor(measure_every=1, memory=1.0)
    module = (ClipsItself if case.clips_itself else Made)(case.shard)
    trainer = pl.Trainer(
        **{**QUIET, **case.trainer, **settings},
        strategy=strategy,
        max_epochs=1,
        accumulate_grad_batches=MICRO_BATCHES // ranks,
        use_distributed_sampler=False,
        callbacks=[monitor],
    )
    trainer.fit(module, loader_of(items(WINDOWS * MICRO_BATCHES, (SIZE,)), rank, ranks))
    found = [(made.trace, made.grad_sq) for made in monitor.history]
    return found, trainer.optimizers[0].sq_norms


@functools.cache
def alone():
    """In float32, on one process, sharded and clipped by nobody."""
    return monitored(0, 1, "one process", Case())


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, cases in CASES.items() for name in cases])
def test_measured_as_on_one_process_without_it(kind, name):
    case = CASES[kind][name]
    measured, stepped_with = alone()
    results = run(monitored, 2, 2, kind, case, init=False)
    for found, _ in results:
        assert found == results[0][0]
        for (trace, grad_sq), (true_trace, true_grad_sq) in zip(found, measured, strict=True):
            assert trace == pytest.approx(true_trace, rel=case.rel)
            # It is what is left of the mean's squared norm once its noise is taken away: as wrong as that is.
            assert grad_sq == pytest.approx(true_grad_sq, abs=case.rel * true_trace / (MICRO_BATCHES * SIZE))
    stepped = [sum(shares) for shares in zip(*(sq_norms for _, sq_norms in results), strict=True)]
    if "gradient_clip_val" in case.trainer:
        assert all(after < 0.2 * before for after, before in zip(stepped, stepped_with, strict=True))
    else:
        assert stepped == pytest.approx(stepped_with, rel=case.rel)
    if case.rel > 1e-3:
        assert results[0][0] != [pytest.approx(window, rel=1e-5) for window in measured]
