"""What FSDP1 and FSDP2 are used with, through the Trainer: measured as on one process without any of it."""

import functools
from dataclasses import dataclass, field

import pytest
import torch

from lightning_bsscale import GradientNoiseScaleMonitor
from tests.helpers.ddp_runs import loader_of, trainer_of
from tests.helpers.places import CPU, at
from tests.helpers.processes import fit_on
from tests.helpers.sharded_models import local
from tests.helpers.sharded_runs import STRATEGIES, Trains, items

pytestmark = pytest.mark.timeout(180)

WINDOWS, LOADER_BATCHES, SIZE = 3, 4, 4  # loader batches of a window over all ranks; examples of each
CLIPPED = {"gradient_clip_val": 0.1}
CLIPPED_BY_VALUE = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}


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
    "fsdp1": ANY | {"clipped by the module": Case(trainer=CLIPPED, clips_itself=True)},
    "fsdp2": ANY
    | {
        "MixedPrecisionPolicy": Case(shard={"precision": {"param_dtype": torch.bfloat16}}, rel=BF16),
        "CPUOffloadPolicy": Case(shard={"offload": True}),
        "clipped by norm": Case(trainer=CLIPPED),
    },
}


class KeepsNorms(torch.optim.SGD):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.sq_norms = []

    def step(self, closure=None):
        loss = closure()
        shards = [local(p.grad) for group in self.param_groups for p in group["params"] if p.grad is not None]
        self.sq_norms.append(sum(shard.double().square().sum().item() for shard in shards))
        super().step()
        return loss


class Made(Trains):
    def configure_optimizers(self):
        return KeepsNorms([p for p in self.parameters() if p.requires_grad], lr=0.0)


class ClipsItself(Made):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.trainer.model.clip_grad_norm_(gradient_clip_val)


def monitored(rank, ranks, kind, case):
    """Of each window trace and |G|² as measured, and the squared norm of this rank's part of what was stepped with."""
    monitor = GradientNoiseScaleMonitor(measure_every=1, memory=1.0)
    settings = dict(max_epochs=1, accumulate_grad_batches=LOADER_BATCHES // ranks, **case.trainer)
    trainer = trainer_of(ranks, [monitor], STRATEGIES[kind]() if kind else None, **settings)
    module = (ClipsItself if case.clips_itself else Made)(frozen=False, shard=case.shard)
    trainer.fit(module, loader_of(items(WINDOWS * LOADER_BATCHES, (SIZE,)), rank, ranks))
    found = [(made.trace, made.grad_sq) for made in monitor.history]
    return found, trainer.optimizers[0].sq_norms


@functools.cache
def alone():
    """In float32, on one process, sharded and clipped by nobody."""
    with at(CPU):
        return fit_on(1, monitored, 1, None, Case())[0]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, cases in CASES.items() for name in cases])
def test_measured_as_on_one_process_without_it(kind, name):
    case = CASES[kind][name]
    measured, stepped_with = alone()
    results = fit_on(2, monitored, 2, kind, case)
    for found, _ in results:
        assert found == results[0][0]
        for (trace, grad_sq), (true_trace, true_grad_sq) in zip(found, measured, strict=True):
            assert trace == pytest.approx(true_trace, rel=case.rel)
            # It is what is left of the mean's squared norm once its noise is taken away: as wrong as that is.
            assert grad_sq == pytest.approx(true_grad_sq, abs=case.rel * true_trace / (LOADER_BATCHES * SIZE))
    stepped = [sum(shares) for shares in zip(*(sq_norms for _, sq_norms in results), strict=True)]
    if "gradient_clip_val" in case.trainer:
        assert all(after < 0.2 * before for after, before in zip(stepped, stepped_with, strict=True))
    else:
        assert stepped == pytest.approx(stepped_with, rel=case.rel)
    if case.rel > 1e-3:
        assert results[0][0] != [pytest.approx(window, rel=1e-5) for window in measured]
