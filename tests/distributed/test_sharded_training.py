"""The watchers of sharded gradients in a Lightning training, which calls training_step past every module's forward."""

import warnings

import lightning.pytorch as pl
import pytest
import torch
from torch import distributed
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsscale.gradients.choose import choose_watcher
from tests.helpers.oracles import own_sq_norms
from tests.helpers.places import here
from tests.helpers.processes import run
from tests.helpers.sharded_models import WIDTH, hooked, true_mean_sq_norm
from tests.helpers.sharded_runs import STRATEGIES, Training
from tests.helpers.training import QUIET

WINDOW = 3


class Watching(pl.Callback):
    def __init__(self, watched):
        self.watched = watched
        self.windows = []
        self.gradients = []

    def on_train_start(self, trainer, module):
        held = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
        self.watcher = choose_watcher(trainer.strategy.model, lambda: held, world_size=trainer.world_size)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if self.watched and batch_idx % WINDOW == 0:
            self.watcher.start_window()

    def on_before_backward(self, trainer, module, loss):
        if self.watched:
            self.watcher.start_sample()

    def on_after_backward(self, trainer, module):
        if self.watched:
            self.watcher.end_sample(4)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        held = [p for group in optimizer.param_groups for p in group["params"]]
        shards = [p.grad.to_local() if hasattr(p.grad, "to_local") else p.grad for p in held if p.grad is not None]
        self.gradients.append([shard.clone() for shard in shards])
        if self.watched:
            assert self.watcher.stop_window() == WINDOW
            self.windows.append(self.watcher.window_share(loss_divisor=WINDOW).sums.tolist())


def train(strategy, watched):
    module, watching = Training(), Watching(watched)
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(torch.randn(48, WIDTH, generator=generator)), batch_size=4)
    trainer = pl.Trainer(
        **{**QUIET, **here().trainer(2)},
        strategy=STRATEGIES[strategy][1](),
        max_epochs=1,
        accumulate_grad_batches=WINDOW,
        callbacks=[watching],
    )
    trainer.fit(module, loader)
    return module, watching


def train_twice(rank, strategy):
    warnings.simplefilter("ignore")
    module, watching = train(strategy, True)
    windows = [module.batches[k : k + WINDOW] for k in range(0, len(module.batches), WINDOW)]
    plain = module.plain[0].to(here().device)
    expected = [
        (sum(own_sq_norms(plain, window, loss_of)), true_mean_sq_norm(plain, window), len(window)) for window in windows
    ]
    left = hooked(module)
    _, bare = train(strategy, False)
    same = all(
        torch.equal(a, b)
        for some, others in zip(watching.gradients, bare.gradients, strict=True)
        for a, b in zip(some, others, strict=True)
    )
    distributed.destroy_process_group()
    return dict(
        watcher=type(watching.watcher).__name__, found=watching.windows, expected=expected, left=left, same_bits=same
    )


def loss_of(net, x):
    return net(x).square().mean()


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_norms_in_a_training(strategy):
    ranks = run(train_twice, 2, strategy, init=False)
    for found in ranks:
        assert found["watcher"] == STRATEGIES[strategy][0]
        assert found["same_bits"]
        assert found["left"] == 0
        assert len(found["found"]) == len(found["expected"]) == 2
        for (sq_norms, _, *known), (expected, _, length) in zip(found["found"], found["expected"], strict=True):
            assert known == [length, length / 4, 4 * length] == [WINDOW, WINDOW / 4, 4 * WINDOW]
            assert sq_norms == pytest.approx(expected, rel=1e-5)
    for window in range(2):
        mean = sum(found["found"][window][1] for found in ranks)
        # The mean over the window, whose sum over ranks true_mean_sq_norm has.
        assert mean == pytest.approx(ranks[0]["expected"][window][1] / WINDOW**2, rel=1e-5)
