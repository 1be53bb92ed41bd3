"""Ranks that differ: in their loaders, in their sizes, in when they end, in what their policy would do."""

import time
from datetime import timedelta

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor, NoiseScalePolicy
from lightning_bsscale.journal import read_journal
from lightning_bsscale.replay import replay
from lightning_bsscale.theory.stored import as_plain
from tests.helpers.ddp_runs import Linear, counting, keeping_epochs, loader_of, regression_items, trainer_of
from tests.helpers.processes import fit_on
from tests.helpers.training import ByStep, run_of

pytestmark = pytest.mark.timeout(180)
in_every_place = pytest.mark.usefixtures("place")


def own_loader(examples, batch_size):
    """A rank's own data, as a user cuts it who does not know of samplers."""
    generator = torch.Generator().manual_seed(examples + batch_size)
    x = torch.randn(examples, 8, generator=generator)
    y = x[:, :2] + 4 * torch.randn(examples, 2, generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


def trained(rank, loaders, folder=None, ckpt=None, epochs=4, **options):
    """What the rank decided, its weights, its rates; `loaders` has the arguments of `own_loader` for each rank."""
    seen = []

    class Notes(pl.Callback):
        def on_train_batch_end(self, *args):
            seen.append(scaler.examples_seen)

    defaults = {
        "policy": NoiseScalePolicy(min_steps=0),
        "measure_every": 2,
        "memory": 0.5,
        "warmup": 0.1,
        "max_micro_batch_size": None,
    }
    scaler = BatchSizeScaler(**{**defaults, **options})
    keep = keeping_epochs(folder)
    trainer = trainer_of(2, [scaler, Notes(), *keep], max_epochs=epochs, enable_checkpointing=bool(keep))
    module = Linear(lr=0.02)
    trainer.fit(module, own_loader(*loaders[rank]), ckpt_path=ckpt)
    return {
        "decisions": [as_plain(record) for record in scaler.decisions],
        "history": [as_plain(made) for made in scaler.history],
        "weights": [parameter.tolist() for parameter in module.parameters()],
        "batch_size": scaler.batch_size,
        "examples_seen": scaler.examples_seen,
        "seen": seen,
        "windows": module.windows,
    }


@in_every_place
@pytest.mark.parametrize(
    ("loaders", "options"),
    [([(400, 4), (397, 4)], {}), ([(600, 6), (200, 2)], {"schedule": "cosine"}), ([(200, 2), (600, 6)], {})],
    ids=str,
)
def test_with_loaders_of_their_own_all_ranks_plan_and_step_alike(loaders, options):
    """As many loader batches, but not as many examples."""
    first, second = fit_on(2, trained, loaders, **options)
    assert first == second
    assert first["examples_seen"] == 4 * sum(examples for examples, _ in loaders)
    assert first["seen"] == sorted(first["seen"])
    assert len(set(first["windows"])) > 1, "the batch grew"


@in_every_place
def test_a_micro_batch_of_all_ranks_has_the_examples_of_all():
    """Where one rank's are larger the unit is their sum."""
    first, _ = fit_on(2, trained, [(800, 16), (100, 2)], policy=ByStep([36]), lr_rule="none", warmup=0, epochs=1)
    assert first["batch_size"] == 36
    whole = [made for made in first["history"] if made["accumulate_grad_batches"] == 2]
    assert whole
    assert all(made["window_examples"] == 36 for made in whole[:-1])


@in_every_place
def test_ranks_with_loaders_of_their_own_resume(tmp_path):
    loaders = [(400, 8), (200, 4)]
    whole, _ = fit_on(2, trained, loaders, folder=str(tmp_path))
    first, second = fit_on(2, trained, loaders, ckpt=str(tmp_path / "epoch=1.ckpt"))
    assert first == second
    for made in (first, whole):
        made["decisions"] = [record | {"situation": None} for record in made["decisions"]]  # it has times
    for name in ("examples_seen", "batch_size", "weights", "history", "decisions"):
        assert first[name] == whole[name], name


def journal_of(rank, folder, with_logger, make):
    logger = CSVLogger(folder, name="", version="log") if with_logger else False
    settings = dict(max_epochs=1, logger=logger, default_root_dir=f"{folder}/root")
    trainer = trainer_of(2, [make(measure_every=2, record=True)], **settings)
    trainer.fit(Linear(lr=0.01), loader_of(regression_items(40, [4]), rank, 2))


@in_every_place
@pytest.mark.parametrize(("with_logger", "make"), [(True, BatchSizeScaler), (False, GradientNoiseScaleMonitor)])
def test_the_first_rank_writes_the_journal_into_the_log_folder(tmp_path, with_logger, make):
    fit_on(2, journal_of, str(tmp_path), with_logger, make)
    journal = tmp_path / ("log" if with_logger else "root") / "bsscale.jsonl"
    _, records = read_journal(journal)
    assert len(records) >= 10
    replayed = list(replay(journal))  # examples and seconds of the other rank are in it, as they arrived
    assert all(one.agrees for one in replayed)
    assert sum(one.kind in {"measurement", "decision"} for one in replayed) == len(records)
    assert replayed[-1].kind == "end" or replayed[-2].kind == "end"
    assert [str(path) for path in tmp_path.rglob("*.jsonl")] == [str(journal)]


@in_every_place
@pytest.mark.parametrize("loaders", [[(400, 4), (397, 4)], [(600, 6), (200, 2)]], ids=str)
def test_a_run_that_grew_on_two_ranks_replays_to_the_decisions_of_both(tmp_path, loaders):
    """The journal is the first rank's; the other one has seen other examples and other seconds."""
    path = tmp_path / "run.jsonl"
    ranks = fit_on(2, trained, loaders, record=str(path), max_micro_batch_size="auto")
    replayed = list(replay(path))
    assert not [one for one in replayed if not one.agrees]
    for kind, name in (("decision", "decisions"), ("measurement", "history")):
        made = [as_plain(one.replayed) for one in replayed if one.kind == kind]
        assert [rank[name] for rank in ranks] == [made, made]
    changes = [one.replayed for one in replayed if one.kind == "decision" and one.replayed.is_change]
    assert len(changes) >= 3
    assert replayed[-1].kind == "end" or replayed[-2].kind == "end"


class SlowAtTheEnd(pl.Callback):
    def on_train_end(self, trainer, pl_module):
        if trainer.global_rank == 0:
            time.sleep(2.5)


def slow_at_the_end(rank):
    callback = BatchSizeScaler(measure_every=4, warmup=0, max_micro_batch_size=None)
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=1))
    trainer = trainer_of(2, [SlowAtTheEnd(), callback], strategy, max_epochs=1)
    trainer.fit(Linear(lr=0.01), loader_of(regression_items(44, [4, 4, 1, 1]), rank, 2))
    return as_plain(run_of(callback).examples)


def test_a_rank_that_is_slow_to_end_fails_nobody():
    """Nothing is asked of another rank when training has ended; the process group's time-out is 1 s."""
    first, second = fit_on(2, slow_at_the_end)
    assert first == second


class Reloads(Linear):
    def train_dataloader(self):
        return own_loader(40, 4)


def reloaded(rank, every, make):
    calls = []
    distributed.all_reduce = counting("all_reduce", distributed.all_reduce, calls)
    trainer = trainer_of(2, [make(measure_every=9)], max_epochs=5, reload_dataloaders_every_n_epochs=every)
    trainer.fit(Reloads(lr=0.01))
    return [numel for _, numel, is_ours in calls if is_ours and numel < 7]


@in_every_place
@pytest.mark.parametrize(
    ("make", "every", "asked"),
    [(BatchSizeScaler, 0, 1), (GradientNoiseScaleMonitor, 1, 5), (BatchSizeScaler, 2, 3)],
)
def test_loaders_are_asked_for_where_they_are_new(make, every, asked):
    for sent in fit_on(2, reloaded, every, make):
        assert sent == [2, 4] * asked


def watched(rank, ranks, epochs, folder=None, ckpt=None):
    monitor, keep = GradientNoiseScaleMonitor(measure_every=1000), keeping_epochs(folder)
    if folder is not None:
        keep.append(ModelCheckpoint(folder, every_n_train_steps=4, save_top_k=-1, filename="{step}"))
    settings = dict(max_epochs=epochs, accumulate_grad_batches=2, enable_checkpointing=bool(keep))
    trainer = trainer_of(ranks, [monitor, *keep], **settings)
    trainer.fit(Linear(lr=0.01), loader_of(regression_items(48, [4]), rank, ranks), ckpt_path=ckpt)
    return run_of(monitor).examples.total


@in_every_place
@pytest.mark.parametrize(
    ("before", "after", "saved", "total"),
    [(4, 2, "epoch=0", 384), (1, 2, "epoch=0", 384), (2, 2, "step=4", 384), (2, 3, "step=4", 64 + 96 + 192)],
)
def test_every_example_is_counted_also_on_another_number_of_ranks(tmp_path, before, after, saved, total):
    """Within an epoch, three windows are counted that no message had brought when the checkpoint was saved."""
    assert fit_on(before, watched, before, 1, str(tmp_path)) == [192] * before
    assert fit_on(after, watched, after, 2, None, str(tmp_path / f"{saved}.ckpt")) == [total] * after
