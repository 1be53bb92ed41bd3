"""`.grad` changed between backward and step on two ranks: all ranks measure the same, or all refuse."""

import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from lightning_bsscale.gradients import choose as watchers
from lightning_bsscale.gradients.comparison import Difference
from lightning_bsscale.theory import measured as measured_windows
from tests.helpers import ddp_runs
from tests.helpers.expected_warnings import NOT_THE_MEAN, said_of
from tests.helpers.places import here
from tests.helpers.processes import run
from tests.helpers.sharded_models import local

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("place")]


class Cancels(ddp_runs.Linear):
    """Its first layer is trained from the fourth step on."""

    def on_after_backward(self):
        if self.global_step < 4:
            for parameter in self.net[0].parameters():
                parameter.grad = None


class ChangesOnOneRank(ddp_runs.Linear):
    def on_after_backward(self):
        if self.global_rank == 1:
            for parameter in self.parameters():
                parameter.grad *= 1.5


def fit_and_listen(trainer, module, items, rank, ranks):
    """How often it is said that `.grad` is not the mean."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, ddp_runs.loader_of(items, rank, ranks))
    return len(said_of(NOT_THE_MEAN, caught))


def measured(rank, ranks, module, accumulate, kind="monitor"):
    cls, options = (GradientNoiseScaleMonitor, {}) if kind == "monitor" else (BatchSizeScaler, dict(warmup=0))
    callback = cls(measure_every=1, memory=1.0, **options)
    trainer = ddp_runs.trainer_of(ranks, [callback], max_epochs=1, accumulate_grad_batches=accumulate)
    said = fit_and_listen(trainer, module(), ddp_runs.regression_items(80, [4]), rank, ranks)
    decided = [record.batch_size for record in getattr(callback, "decisions", [])]
    return ddp_runs.moments_of(callback), callback.noise_scale, said, decided


def test_a_cancelled_layer_is_left_out_on_all_ranks():
    ((alone, *_),) = run(measured, 1, 1, Cancels, 4, init=False)
    assert len(alone) == 20
    for found, _, said, _ in run(measured, 2, 2, Cancels, 2, init=False):
        assert found == [pytest.approx(window, rel=1e-4) for window in alone]
        assert said == 0


@pytest.mark.parametrize("kind", ["monitor", "scaler"])
def test_all_ranks_refuse_what_one_rank_changes(kind):
    results = run(measured, 2, 2, ChangesOnOneRank, 2, kind, init=False)
    for found, noise, _, decided in results:
        assert found == []
        assert noise is None
        assert len(set(decided)) <= 1
    assert [said for _, _, said, _ in results] == [1, 0]


class Compresses(ddp_runs.Linear):
    """By PowerSGD, which sends matrices of rank 1, from the third step on."""

    def on_train_start(self):
        from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

        state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
        self.trainer.strategy.model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)


def test_a_compression_that_loses_much_is_refused():
    results = run(measured, 2, 2, Compresses, 2, init=False)
    assert [len(found) for found, *_ in results] == [2, 2]  # of the steps before it begins
    assert [noise for _, noise, *_ in results] == [None, None]
    assert [said for _, _, said, _ in results] == [1, 0]


# ---------------------------------------------------------------- FSDP

HALF, OUTPUTS, SIZE, NOISE_SCALE = 32, 3, 4, 64.0


class FsdpOfLayers(FSDPStrategy):
    """Lightning refuses the class itself without a GPU, and wraps for the GPU."""

    def _setup_model(self, model):
        from torch.distributed.fsdp import FullyShardedDataParallel
        from torch.distributed.fsdp.wrap import ModuleWrapPolicy

        return FullyShardedDataParallel(
            model,
            auto_wrap_policy=ModuleWrapPolicy({nn.Linear}),
            device_id=here().device,
            mixed_precision=self.mixed_precision_config,
            use_orig_params=True,
        )


class Layers(nn.Module):
    """Two layers whose gradients are the halves of x, and one that is frozen. No dimension divides by 2 ranks."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.frozen = (nn.Linear(HALF, OUTPUTS, bias=False) for _ in range(3))
        self.frozen.requires_grad_(False)

    def forward(self, x):
        outputs = self.first(x[:, :HALF]) + self.last(x[:, HALF:]) + self.frozen(x[:, HALF:]).detach()
        return outputs.float().sum(1).mean()


class Known(pl.LightningModule):
    """The noise scale is 64 in each layer, and in both together, at any weights."""

    def __init__(self, change=None, dtype=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = Layers()
        self.change, self.dtype_of_computation = change, dtype

    def on_after_backward(self):
        if self.change is not None:
            self.change(self)

    def configure_model(self):
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            from torch.distributed import fsdp

            policy = fsdp.MixedPrecisionPolicy(param_dtype=self.dtype_of_computation)
            for module in (self.net.first, self.net.last, self.net.frozen, self.net):
                fsdp.fully_shard(module, mesh=self.device_mesh["data_parallel"], mp_policy=policy)

    def training_step(self, batch, batch_idx):
        return self.net(batch[0])

    def trained(self, name=""):
        """What this rank has of the gradients."""
        named = [(found, p) for found, p in self.named_parameters() if name in found]
        return [local(p.grad) for _, p in named if p.grad is not None]

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=1e-3)


def adds_noise(module):
    for gradient in module.trained():
        gradient += torch.randn_like(gradient)


def clips(module):
    """Each rank by the norm of its shards."""
    norm = sum(float(gradient.square().sum()) for gradient in module.trained()) ** 0.5
    for gradient in module.trained():
        gradient *= min(1.0, 0.5 / max(norm, 1e-9))


def scales(module, factor=1.1):
    for gradient in module.trained():
        gradient *= factor


def scales_on_one_rank(module):
    scales(module, factor=1.5 if module.global_rank == 1 else 1.0)


def zeroes(module):
    for gradient in module.trained("last"):
        gradient.zero_()


def cancels_last(module):
    for name, parameter in module.named_parameters():
        if "last" in name:
            parameter.grad = None


OF_ALL = [adds_noise, clips, scales, scales_on_one_rank, zeroes]
CHANGES = {"fsdp1": [*OF_ALL, cancels_last], "fsdp2": OF_ALL, "fsdp2 of another torch": [*OF_ALL, cancels_last]}


def known_items(count):
    """A mean of squared norm 1/2 in each half, of OUTPUTS equal rows; unit variance around it."""
    generator = torch.Generator().manual_seed(0)
    means = [torch.randn(HALF, generator=generator) for _ in range(2)]
    mean = torch.cat([part / part.norm() * 0.5**0.5 for part in means])
    return [(mean + torch.randn(SIZE, 2 * HALF, generator=generator),) for _ in range(count)]


def sharded_run(rank, kind, change, windows, precision=None):
    if kind == "fsdp1":
        strategy = FsdpOfLayers(process_group_backend=here().backend)
        module, settings = Known(change), {"precision": precision}
    else:
        strategy = ModelParallelStrategy(2, 1, process_group_backend=here().backend)
        module, settings = Known(change, precision), {}
    monitor = GradientNoiseScaleMonitor(measure_every=1, memory=1.0)
    trainer = ddp_runs.trainer_of(2, [monitor], strategy, max_epochs=1, accumulate_grad_batches=2, **settings)
    said = fit_and_listen(trainer, module, known_items(4 * windows), rank, 2)
    return ddp_runs.moments_of(monitor), monitor.noise_scale, said


def undisturbed(rank, kind, windows):
    measured_windows.COMPARED_EVERY = 1
    return sharded_run(rank, kind, None, windows, "bf16-mixed" if kind == "fsdp1" else torch.bfloat16)


@pytest.mark.parametrize("kind", ["fsdp1", "fsdp2"])
def test_undisturbed_sharded_training_is_never_refused(kind):
    """In mixed precision, with a frozen layer and uneven shards, in 120 windows that are all compared."""
    for found, noise, said in run(undisturbed, 2, kind, 120, init=False):
        assert len(found) == 120
        assert noise.low < NOISE_SCALE < noise.high
        assert noise.noise_scale == pytest.approx(NOISE_SCALE, rel=0.2)
        assert said == 0


def disturbed(rank, kind):
    if kind == "fsdp2 of another torch":
        watchers.fsdp2_params = lambda model: None
    return [sharded_run(rank, kind, change, 8) for change in CHANGES[kind]]


@pytest.mark.parametrize("kind", CHANGES)
def test_all_ranks_refuse_changed_shards(kind):
    for rank, runs in enumerate(run(disturbed, 2, kind, init=False)):
        for change, (found, noise, said) in zip(CHANGES[kind], runs, strict=True):
            assert (found, noise, said) == ([], None, rank == 0), change.__name__


def not_compared(rank, kind):
    Difference.is_explained = True
    return sharded_run(rank, kind, scales, 40)


@pytest.mark.parametrize("kind", ["fsdp1", "fsdp2"])
def test_without_the_comparison_shards_would_be_wrong_and_resolved(kind):
    """The twin."""
    for _, noise, _ in run(not_compared, 2, kind, init=False):
        assert noise.resolved
        assert not noise.low < NOISE_SCALE < noise.high


def test_under_fsdp2_a_gradient_of_none_is_left_out():
    for found, noise, said in run(sharded_run, 2, "fsdp2", cancels_last, 100, init=False):
        assert len(found) == 100
        assert noise.low < NOISE_SCALE < noise.high
        assert noise.trace == pytest.approx(HALF * OUTPUTS, rel=0.1)
        assert said == 0
