"""Odd checkpoints: of a run that was over, of one without the scaler, saved by others, in the middle of a step."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from tests.helpers.expected_warnings import CANNOT_MEASURE, CKPT_PATH, MID_EPOCH, NONE_BATCH, WITHIN_A_WINDOW
from tests.helpers.training import (
    QUIET,
    ByStep,
    CountsWindows,
    Regression,
    Saves,
    fit,
    one_cycle,
    regression_loader,
    run_of,
    scripted,
)

pytestmark = [
    CANNOT_MEASURE,
    CKPT_PATH,
    MID_EPOCH,
    pytest.mark.filterwarnings("ignore:.*called without a model. The last model of the previous"),
]


def by_step(*windows, **options):
    """Windows of so many loader batches of four, by the number of steps made."""
    return scripted(**{"policy": ByStep([4 * n for n in windows]), **options})


class SavesLast(Saves, ModelCheckpoint):
    """The same, at the end of the list, as Lightning does with every ModelCheckpoint."""

    def __init__(self, path, batch_idx, epoch=0):
        ModelCheckpoint.__init__(self, path.parent, save_top_k=0)
        Saves.__init__(self, path, batch_idx, epoch)

    def on_train_batch_end(self, *args):
        Saves.on_train_batch_end(self, *args)


@pytest.mark.parametrize(
    ("settings", "options"), [({"max_steps": 20}, {}), ({"max_epochs": 9}, {"total_examples": 80})]
)
def test_a_run_that_is_over_stays_over(tmp_path, settings, options):
    module = CountsWindows()
    trainer = fit(module, regression_loader(200), [by_step(2, 4, **options)], **settings)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    again, scaler = CountsWindows(), by_step(2, 4, **options)
    resumed = fit(again, regression_loader(200), [scaler], ckpt_path=tmp_path / "end.ckpt", **settings)
    assert again.windows == []
    assert scaler.examples_seen == 80
    assert not resumed.should_stop
    for ours, theirs in zip(again.parameters(), module.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    # The same by fit on the same Trainer; and with a larger budget it goes on.
    trainer.fit(module, regression_loader(200))
    assert module.windows == []
    if "max_steps" in settings:
        more = CountsWindows()
        fit(more, regression_loader(200), [by_step(4)], ckpt_path=tmp_path / "end.ckpt", max_steps=28)
        assert sum(more.windows) == 8 * 4


@pytest.mark.parametrize("settings", [{"max_epochs": 3}, {"max_steps": 150}])
def test_a_checkpoint_of_a_run_without_the_scaler(tmp_path, settings):
    """Its schedulers are where its own steps took them, and end where the plan ends."""
    path = tmp_path / "bare.ckpt"
    fit(Regression(scheduler=one_cycle(150)), regression_loader(200), [Saves(path, 29, 1)], **settings)
    scaler = by_step(5, 3, 8)
    trainer = fit(Regression(scheduler=one_cycle(150)), regression_loader(200), [scaler], ckpt_path=path, **settings)
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 150
    assert scaler.examples_seen == (150 - 80) * 4


@pytest.mark.parametrize("saves", [Saves, SavesLast])
def test_saved_by_a_callback_before_the_scaler(tmp_path, saves):
    """Weights and step are in that checkpoint, so the window's end is too: nothing is lost."""
    path, at = tmp_path / "before.ckpt", 12  # windows of 1, 3, 4, 4: the fourth ends there
    whole = CountsWindows(scheduler=one_cycle(50))
    callbacks = [saves(path, at - 1), by_step(1, 3, 4, 4)]
    fit(whole, regression_loader(200), callbacks, max_epochs=1, enable_checkpointing=saves is SavesLast)
    assert whole.windows[:4] == [4, 12, 16, 16]
    module, scaler = CountsWindows(scheduler=one_cycle(50)), by_step(1, 3, 4, 4)
    trainer = fit(module, regression_loader(200), [scaler], max_epochs=1, ckpt_path=path)
    assert run_of(scaler).lost_loader_batches == 0
    assert scaler.examples_seen == 200
    assert sum(module.windows) == 200 - 4 * at
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 50


@WITHIN_A_WINDOW
def test_lost_loader_batches_are_gone_from_the_budget_too(tmp_path):
    """A OneCycleLR as long as the budget would otherwise be stepped once too often, and raise."""
    path, options = tmp_path / "mid.ckpt", {"total_examples": 400}
    callbacks = [by_step(4, **options), Saves(path, 6)]
    fit(Regression(scheduler=one_cycle(100)), regression_loader(2000), callbacks, max_epochs=9)
    module, scaler = Regression(scheduler=one_cycle(100)), by_step(4, **options)
    trainer = fit(module, regression_loader(2000), [scaler], max_epochs=9, ckpt_path=path)
    lost = run_of(scaler).lost_loader_batches
    assert lost == 2
    assert scaler.examples_seen + 4 * lost == 400
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 100


@pytest.mark.filterwarnings("ignore:bsscale")
@pytest.mark.parametrize("size", [2, 4, 8])
def test_lost_loader_batches_keep_their_examples_when_a_loader_batch_has_others(tmp_path, size):
    """The budget is 400, and two loader batches of 4 are lost."""
    path, options = tmp_path / "mid.ckpt", {"total_examples": 400}
    fit(Regression(), regression_loader(2000), [by_step(4, **options), Saves(path, 6)], max_epochs=9)
    scaler = by_step(4, **options)
    fit(Regression(), regression_loader(2000, batch_size=size), [scaler], max_epochs=9, ckpt_path=path)
    assert run_of(scaler).lost_loader_batches == 2
    assert 0 <= scaler.examples_seen - (400 - 2 * 4) < size


class GrowsAfterAStepless(CountsWindows):
    """Its first epoch ends with None before the first step; the others have ten loader batches."""

    def train_dataloader(self):
        batch = next(iter(regression_loader(4)))
        items = [batch, None] if self.trainer.current_epoch == 0 else [batch] * 10
        return DataLoader(items, batch_size=None)


@pytest.mark.filterwarnings("ignore:bsscale", "ignore:train_dataloader yielded None")
def test_loaders_that_were_made_anew_count_also_before_the_first_step():
    module = GrowsAfterAStepless()
    settings = dict(max_epochs=3, accumulate_grad_batches=4, reload_dataloaders_every_n_epochs=1)
    trainer = pl.Trainer(**QUIET, **settings, callbacks=[by_step(4)])
    trainer.fit(module)
    assert module.windows == [4 + 16, 16, 8, 16, 16, 8], "with the first epoch's one loader batch, which was lost"


class BreaksInStep(torch.optim.SGD):
    def step(self, closure=None):
        loss = closure()
        if self.breaks and self.param_groups[0]["lr"] > 0.05:
            raise KeyboardInterrupt
        super().step()
        return loss

    breaks = True


class SavesOnException(pl.Callback):
    def __init__(self, path):
        self.path = path

    def on_exception(self, trainer, pl_module, exception):
        trainer.save_checkpoint(self.path)


def test_interrupted_within_a_step_the_checkpoint_has_the_users_rate(tmp_path):
    path = tmp_path / "broken.ckpt"
    module = Regression(lambda p: BreaksInStep(p, lr=0.05))
    trainer = pl.Trainer(**QUIET, max_epochs=1, callbacks=[SavesOnException(path), by_step(2)])
    with pytest.raises(SystemExit):
        trainer.fit(module, regression_loader(80))
    saved = torch.load(path, weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == 0.05
    assert module.optimizers().param_groups[0]["lr"] == 0.05


@NONE_BATCH
def test_none_before_the_first_loader_batch():
    """Lightning steps schedulers for it, so their clock is held from the start of training."""
    loader = DataLoader([None, None, *regression_loader(232)], batch_size=None)
    trainer = fit(Regression(scheduler=one_cycle(60)), loader, [by_step(2, 3)], max_epochs=1)
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 60


def test_a_dry_run_says_of_a_cut_window_what_is_true(tmp_path):
    path = tmp_path / "mid.ckpt"
    settings = dict(max_epochs=1, accumulate_grad_batches=4)
    fit(Regression(), regression_loader(80), [by_step(4, dry_run=True), Saves(path, 5)], **settings)
    with pytest.warns(UserWarning, match="2 loader batches"):
        fit(Regression(), regression_loader(80), [by_step(4, dry_run=True)], ckpt_path=path, **settings)
