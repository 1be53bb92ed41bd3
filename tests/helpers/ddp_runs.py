"""What the processes of the DDP tests do: each function trains on one rank, and returns plain Python."""

import pickle
import sys
import time
import warnings

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed, nn
from torch.utils.data import DataLoader

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor, HoldIfWorse, NoiseScalePolicy
from lightning_bsscale.theory.stored import as_plain
from tests.helpers.places import here
from tests.helpers.training import QUIET, ByStep, KeepsRates, KeepSteps, run_of, scripted


def loader_of(items, rank=0, ranks=1):
    """Each item is a loader batch; item i goes to rank i modulo ranks (Lightning's own sampler would shuffle)."""
    return DataLoader(items[rank::ranks], batch_size=None)


def trainer_of(ranks, callbacks, strategy=None, **settings):
    strategy = strategy or (DDPStrategy(process_group_backend=here().backend) if ranks > 1 else "auto")
    settings = {**QUIET, **here().trainer(ranks), "use_distributed_sampler": False, **settings}
    return pl.Trainer(**settings, strategy=strategy, callbacks=callbacks)


def keeping_epochs(folder):
    """Keeps a checkpoint of each epoch as FOLDER/epoch=N.ckpt; nothing without a folder."""
    return [] if folder is None else [ModelCheckpoint(folder, every_n_epochs=1, save_top_k=-1, filename="{epoch}")]


class OneHots(pl.LightningModule):
    def __init__(self, total, epochs):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(epochs, total))
        self.steps, self.reductions = [], 0

    def on_train_start(self):
        model = self.trainer.strategy.model
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model.register_comm_hook(None, self.count)

    def count(self, state, bucket):
        self.reductions += 1
        ranks = distributed.get_world_size()
        work = distributed.all_reduce(bucket.buffer(), async_op=True).get_future()
        return work.then(lambda future: future.value()[0] / ranks)

    def training_step(self, batch, batch_idx):
        return self.weight[self.current_epoch, batch].mean()  # of several, if they are gathered

    def on_before_optimizer_step(self, optimizer):
        grad = self.weight.grad
        self.steps.append({tuple(i): round(float(grad[tuple(i)]), 6) for i in grad.nonzero().tolist()})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def one_hots(rank, ranks, total, windows, epochs, accumulate, largest):
    options = dict(lr_rule="none", max_batch_size=999, max_micro_batch_size=largest)
    scaler = scripted(policy=ByStep([ranks * n for n in windows]), **options)
    logger, module = KeepSteps(), OneHots(total, epochs)
    items = [torch.tensor([i]) for i in range(total)]
    settings = dict(max_epochs=epochs, logger=logger, log_every_n_steps=1, accumulate_grad_batches=accumulate)
    trainer = trainer_of(ranks, [scaler], **settings)
    trainer.fit(module, loader_of(items, rank, ranks))
    assert trainer.accumulate_grad_batches == accumulate
    logged = [step for step, metrics in logger.logged if "bsscale/batch_size" in metrics]
    return module.steps, module.reductions, trainer.global_step, scaler.examples_seen, logged


class Linear(pl.LightningModule):
    """A linear regression; rank 1 may be slow, or hold a NaN."""

    def __init__(self, lr=0.0, slow=0.0, nan_at=None, optimizer=torch.optim.SGD):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))
        self.lr, self.slow, self.nan_at, self.optimizer = lr, slow, nan_at, optimizer
        self.windows, self.came = [], 0

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.came += 1
        if self.global_rank == 1:
            time.sleep(self.slow)
            if self.current_epoch == 0 and batch_idx == self.nan_at:
                x = x * float("nan")
        return nn.functional.mse_loss(self.net(x), y)

    def on_before_optimizer_step(self, optimizer):
        self.windows.append(self.came)
        self.came = 0
        if self.nan_at is not None:  # the weights are to stay finite
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad.nan_to_num_(0.0)

    def configure_optimizers(self):
        return self.optimizer(self.net.parameters(), lr=self.lr)


def regression_items(count, sizes, noise=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(8, 2, generator=generator)
    items = []
    for index in range(count):
        x = torch.randn(sizes[index % len(sizes)], 8, generator=generator)
        items.append((x, x @ truth + noise * torch.randn(len(x), 2, generator=generator)))
    return items


def monitored(rank, ranks, accumulate, items, kind="monitor", model=Linear, ddp=None, **settings):
    """The windows' moments, measured with a rate of zero; `items` are the arguments of `regression_items`."""
    if kind == "monitor":
        callback = GradientNoiseScaleMonitor(measure_every=1, memory=1.0)
    else:
        callback = BatchSizeScaler(dry_run=True, measure_every=1, memory=1.0, warmup=0)
    strategy = None if ddp is None else DDPStrategy(process_group_backend=here().backend, **ddp)
    trainer = trainer_of(ranks, [callback], strategy, max_epochs=1, accumulate_grad_batches=accumulate, **settings)
    trainer.fit(model(), loader_of(regression_items(*items), rank, ranks))
    return moments_of(callback)


def moments_of(callback):
    return [(made.trace, made.grad_sq, made.window_examples, made.examples_seen) for made in callback.history]


class Unused(Linear):
    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(2, 2)


class Compressed(Linear):
    def on_train_start(self):
        self.trainer.strategy.model.register_comm_hook(None, rounds_to_bfloat16)


def rounds_to_bfloat16(state, bucket):
    """What torch's own bf16_compress_hook does where there is NCCL."""
    rounded = bucket.buffer().to(torch.bfloat16).float()
    work = distributed.all_reduce(rounded, async_op=True).get_future()
    return work.then(lambda future: future.value()[0] / distributed.get_world_size())


def grows(rank, items, disturbed=None, counted=False):
    """A run of the real policy that grows; what every rank decided and did, as bytes."""
    calls = []
    if counted:
        for name in ("all_reduce", "barrier", "broadcast", "broadcast_object_list", "all_gather", "all_gather_object"):
            setattr(distributed, name, counting(name, getattr(distributed, name), calls))
    policy = NoiseScalePolicy(min_steps=0)
    scaler = BatchSizeScaler(policy=policy, measure_every=2, warmup=0.05, max_micro_batch_size=None)
    module = Linear(lr=0.01, optimizer=KeepsRates, **(disturbed or {}))
    trainer = trainer_of(2, [scaler], max_epochs=3)
    trainer.fit(module, loader_of(regression_items(*items), rank, 2))
    decided = pickle.dumps(
        (
            [as_plain(record) for record in scaler.decisions],
            [as_plain(made) for made in scaler.history],
            module.windows,
            trainer.optimizers[0].used,
            scaler.examples_seen,
            {name: value for name, value in scaler.state_dict().items() if name != "pace"},  # by each rank's clock
        )
    )
    changes = [record.batch_size for record in scaler.decisions if record.is_change]
    return decided, changes, len(scaler.history), calls


class LogsByRank(Linear):
    """Each rank logs its own number at every validation, or only the first one does."""

    def __init__(self, logged_by):
        super().__init__(lr=0.01)
        self.logged_by = logged_by

    def validation_step(self, batch, batch_idx):
        if self.logged_by == "one":
            self.log("metric", float(self.global_step), rank_zero_only=True)
        else:
            self.log("metric", self.global_step + 2.0 * self.global_rank)


def watches(rank, logged_by):
    """What the ranks know of a metric, and decide by it."""
    policy = HoldIfWorse(ByStep([8 * (1 + step // 10) for step in range(200)]), "metric")
    scaler = BatchSizeScaler(policy=policy, warmup=0, max_micro_batch_size=None)
    trainer = trainer_of(2, [scaler], max_epochs=1, val_check_interval=10, num_sanity_val_steps=1)
    items = regression_items(160, [4])
    trainer.fit(LogsByRank(logged_by), loader_of(items, rank, 2), loader_of(items[:2], rank, 2))
    values = [(one.examples_seen, one.value) for one in run_of(scaler).metrics]
    return values, [(record.situation.examples_seen, record.batch_size) for record in scaler.decisions]


class LogsLosses(Linear):
    """Logs at steps, at epochs and in validation."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss)
        self.log("epoch_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", Linear.training_step(self, batch, batch_idx), sync_dist=True)


class TakesFigures(KeepSteps):
    """A logger as Comet's is for pictures."""

    def __init__(self):
        super().__init__()
        self.experiment, self.figures = self, []

    def log_figure(self, figure_name=None, figure=None, overwrite=False, step=None):
        self.figures.append(figure_name)


def logs(rank):
    """The rows of a rank's logger, its pictures and losses, and what was warned about."""
    logger = TakesFigures()
    scaler = BatchSizeScaler(measure_every=2, warmup=0, log_figure=True)
    items = regression_items(40, [4])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = trainer_of(2, [scaler], max_epochs=2, logger=logger, log_every_n_steps=4, val_check_interval=10)
        trainer.fit(LogsLosses(lr=0.01), loader_of(items, rank, 2), loader_of(items[:2], rank, 2))
    said = [str(one.message) for one in caught if "bsscale" in str(one.message) or "examples_seen" in str(one.message)]
    return logger.logged, logger.figures, sorted(scaler.losses), said


def counting(name, function, calls):
    def counted(*args, **kwargs):
        is_ours = "lightning_bsscale" in sys._getframe(1).f_code.co_filename
        calls.append((name, args[0].numel() if is_ours else None, is_ours))
        return function(*args, **kwargs)

    return counted


def of_other_length(rank, callback):
    """Every rank has a loader of its own, and they differ."""
    items = regression_items(12 if rank == 0 else 10, [4])
    trainer = trainer_of(2, [callback()], max_epochs=1, accumulate_grad_batches=2)
    try:
        trainer.fit(Linear(lr=0.01), loader_of(items))
    except Exception as error:
        return type(error).__name__, str(error)
    return None


class ShortOfMemory(OneHots):
    """One rank runs out of memory in micro-batches of more than two examples, at its n-th pass."""

    def __init__(self, total, epochs, fails):
        super().__init__(total, epochs)
        self.register_buffer("passes", torch.zeros(()))  # so DDP waits for all ranks at the first pass of a window
        self.fails, self.sizes = fails, []

    def training_step(self, batch, batch_idx):
        rank, place, since = self.fails
        fails = self.global_rank == rank and len(batch) > 2 and len(self.sizes) >= since
        self.sizes.append(len(batch))
        self.passes += 1
        if fails and place == "forward":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        loss = super().training_step(batch, batch_idx)
        self.log("loss", batch.float().mean(), on_step=False, on_epoch=True, sync_dist=True)
        if place == "synced log":
            self.log("synced", loss, on_step=True, sync_dist=True)
        if fails and place == "synced log":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return FailsBackward.apply(loss) if fails and place == "backward" else loss


class FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, grad):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")


def short_of_memory(rank, ranks, windows, fails, batch_size=4, total=88, **options):
    """The weight of every example in every step, and what the ranks know."""
    scaler = scripted(policy=ByStep([ranks * batch_size * n for n in windows]), **{"lr_rule": "none", **options})
    module = ShortOfMemory(total, 1, fails)
    loader = DataLoader(torch.arange(rank, total, ranks), batch_size=batch_size)
    trainer = trainer_of(ranks, [scaler], max_epochs=1)
    trainer.fit(module, loader)
    run = run_of(scaler)
    logged = float(trainer.callback_metrics["loss"])
    return (
        module.steps,
        module.reductions,
        trainer.global_step,
        module.sizes,
        run.row_limit,
        len(scaler.history),
        logged,
    )
