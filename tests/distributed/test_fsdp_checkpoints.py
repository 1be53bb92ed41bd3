"""Checkpoints of FSDP1 and FSDP2, a folder or one file: gone on with on as many ranks, on others, without FSDP."""

import functools
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_bsscale import BatchSizeScaler, Decision, Policy
from tests.helpers.ddp_runs import trainer_of
from tests.helpers.expected_warnings import OTHER_START, said_of
from tests.helpers.places import here
from tests.helpers.processes import fit_on
from tests.helpers.sharded_runs import FromPosition, FsdpToOneFile, Trains, fsdp1, fsdp2, items
from tests.helpers.training import ByStep, run_of

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("place")]

LOADER_BATCHES, SIZE = 36, 4  # an epoch over all ranks; examples of each
WINDOWS = [8, 4, 8, 12]  # loader batches over all ranks: 1, 2 and 4 ranks can make each of them


class ForgetsWeights(ModelParallelStrategy):
    def load_checkpoint(self, checkpoint_path, weights_only=None):
        return torch.load(Path(checkpoint_path, "meta.pt"))


class ForgetsMomentum(ModelParallelStrategy):
    def load_checkpoint(self, checkpoint_path, weights_only=None):
        rest = super().load_checkpoint(checkpoint_path, weights_only)
        self.optimizers[0].state.clear()
        return rest


KINDS = {
    "fsdp2, a folder": fsdp2,
    "fsdp2, one file": functools.partial(fsdp2, save_distributed_checkpoint=False),
    "fsdp1, a folder": functools.partial(fsdp1, state_dict_type="sharded"),
    "fsdp1, one file": functools.partial(fsdp1, on_cpu=FsdpToOneFile, state_dict_type="full"),
    "ddp": lambda ranks: None,
    "one device": lambda ranks: None,
    "weights forgotten": functools.partial(fsdp2, strategy=ForgetsWeights),
    "momentum forgotten": functools.partial(fsdp2, strategy=ForgetsMomentum),
}
SHARDED = [kind for kind in KINDS if kind.startswith("fsdp")]


class WithMomentum(Trains):
    """An optimizer with a state, and with the frozen parameters: Lightning numbers those of one file by the model."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class GrowsOnce(Policy):
    def __init__(self, batch_size):
        self.batch_size = batch_size

    def decide(self, situation, limits):
        first = situation.optimizer_steps == 1
        return Decision(batch_size=self.batch_size if first else situation.batch_size, reason="once")


class Ended(NamedTuple):
    said: list
    decisions: list
    measured: dict
    steps: int
    examples: int
    batch_size: int


def trained(rank, ranks, kind, policy, folder=None, ckpt=None, epochs=2, largest=None):
    options = dict(lr_rule="none", warmup=0, max_batch_size=64, split=False, max_micro_batch_size=largest)
    scaler = BatchSizeScaler(policy=policy, measure_every=1, memory=1.0, **options)
    keep = []
    if folder is not None:
        keep = [
            ModelCheckpoint(folder, filename="epoch at {step}", save_top_k=-1, every_n_epochs=1),
            ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=5),
        ]
    settings = dict(enable_checkpointing=bool(keep), max_epochs=epochs)
    trainer = trainer_of(ranks, [scaler, *keep], KINDS[kind](ranks), **settings)
    loader = FromPosition(items(LOADER_BATCHES, (SIZE,))[rank::ranks], batch_size=None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(WithMomentum(), loader, ckpt_path=ckpt)
    return Ended(
        said=said_of(OTHER_START, caught),
        decisions=[(record.situation.optimizer_steps, record.batch_size) for record in scaler.decisions],
        measured={
            made.optimizer_steps: (made.trace, made.grad_sq, made.window_examples, made.examples_seen)
            for made in scaler.history
        },
        steps=trainer.global_step,
        examples=scaler.examples_seen,
        batch_size=scaler.batch_size,
    )


def on(ranks, kind, *args, policy=None, **options):
    return fit_on(ranks, trained, ranks, kind, policy or ByStep([SIZE * n for n in WINDOWS]), *args, **options)


def after_first_epoch(folder):
    return min(folder.glob("epoch*"), key=step_of)


def step_of(path):
    return int(path.stem.rpartition("=")[2])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """By kind, ranks and place: a run that nothing stopped, and the checkpoint after its first epoch."""

    @functools.cache
    def made(kind, ranks, place, options):
        folder = tmp_path_factory.mktemp("checkpoints")
        ended = on(ranks, kind, folder, **dict(options))[0]
        return ended, after_first_epoch(folder)

    return lambda kind, ranks, **options: made(kind, ranks, here(), tuple(options.items()))


def check_goes_on(again, ended, *, lost=()):
    """Each window as in the run that was never stopped, so weights, momentum, data and batch are too."""
    assert again.decisions == ended.decisions
    assert again.steps == ended.steps
    assert again.examples == ended.examples == 2 * LOADER_BATCHES * SIZE
    assert set(again.measured) == set(ended.measured) - set(lost)
    for step, measured in again.measured.items():
        assert measured == pytest.approx(ended.measured[step], rel=1e-4), step


@pytest.mark.parametrize(
    ("kind", "within_an_epoch"),
    [*[(kind, False) for kind in SHARDED], ("fsdp2, a folder", True), ("fsdp1, a folder", True)],
)
def test_on_as_many_ranks_as_if_never_stopped(whole, kind, within_an_epoch):
    ended, path = whole(kind, 2)
    assert path.is_dir() == kind.endswith("a folder")
    again, other = on(2, kind, None, path.with_name("step=5.ckpt") if within_an_epoch else path)
    check_goes_on(again, ended)
    assert again == other
    assert again.said == []
    # An epoch of 18: the last window of each is ragged.
    windows = [examples // 2 // SIZE for _, _, examples, _ in ended.measured.values()]
    assert windows == [1, 2, 4, 6, 4, 1, 4, 6, 4, 2, 2]


@pytest.mark.parametrize("kind", ["fsdp2, a folder", "fsdp1, a folder"])
def test_gathered_windows_go_on_as_if_never_stopped(whole, kind):
    ended, path = whole(kind, 2, largest=3 * SIZE)
    again, other = on(2, kind, None, path.with_name("step=5.ckpt"), largest=3 * SIZE)
    check_goes_on(again, ended)
    assert again == other
    # The same windows, compared in fewer and larger micro-batches.
    each, _ = whole(kind, 2)
    traces = [{step: measured[0] for step, measured in one.measured.items()} for one in (ended, each)]
    assert traces[0].keys() == traces[1].keys()
    assert sum(trace != pytest.approx(traces[1][step]) for step, trace in traces[0].items()) >= 4


@pytest.mark.parametrize("kind", SHARDED)
def test_the_state_is_plain_and_with_lightnings_own(whole, kind):
    """Of a folder's files, the one that is no rank's."""
    ended, path = whole(kind, 2)
    saved = torch.load(path / "meta.pt" if path.is_dir() else path, weights_only=True)
    state = saved["callbacks"]["BatchSizeScaler"]
    assert run_of(state).windows == saved["global_step"]
    assert run_of(state).examples.total == LOADER_BATCHES * SIZE
    assert run_of(state).batch.batch_size == dict(ended.decisions)[saved["global_step"]]


@pytest.mark.parametrize("kind", ["weights forgotten", "momentum forgotten"])
def test_what_a_checkpoint_did_not_bring_back_would_be_seen(whole, kind):
    ended, path = whole("fsdp2, a folder", 2)
    (again, _) = on(2, kind, None, path)
    assert again.decisions == ended.decisions
    with pytest.raises(AssertionError, match="approx"):
        check_goes_on(again, ended)


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        *[(kind, 2, 4) for kind in SHARDED[1:]],
        *[("fsdp2, a folder", 4, 1), ("fsdp1, a folder", 4, 1), ("ddp", 1, 2), ("ddp", 4, 1)],
    ],
)
def test_on_another_number_of_ranks_the_batch_stays(whole, kind, before, after):
    """The loader batches are the same, so all windows are. The message on its way was for other ranks, and is lost."""
    ended, path = whole(kind, before)
    at = step_of(path)
    batch = dict(ended.decisions)[at]
    results = on(after, kind, None, path)
    for again in results:
        check_goes_on(again, ended, lost={at})
    (said,) = results[0].said
    windows = batch // SIZE // after
    assert re.search(rf"\b{after} .*\b{before} devices.*\b{batch} examples.*\b{windows} loader batches", said)


def test_of_a_batch_that_the_ranks_cannot_make_the_nearest_is_taken_and_said(tmp_path):
    """The line compares with what wrote the checkpoint, not with the first start."""
    kind, policy = "fsdp2, a folder", GrowsOnce(32)
    on(2, kind, tmp_path / "two", policy=policy, epochs=1)
    path = after_first_epoch(tmp_path / "two")
    results = on(3, kind, tmp_path / "three", path, policy=policy)
    (said,) = results[0].said
    assert re.search("3 .*2 devices.*32 examples.*36.*3 loader batches", said)
    for again in results:
        assert again.batch_size == 36
        assert [measured[2] for step, measured in again.measured.items() if step > step_of(path)] == [36] * 4
    again, _ = on(2, kind, None, after_first_epoch(tmp_path / "three"), policy=policy, epochs=3)
    (said,) = again.said
    assert re.search("2 .*3 devices.*36 examples.*40", said)
    assert again.batch_size == 40


@pytest.mark.parametrize(
    ("kind", "other", "ranks"),
    [
        ("fsdp2, one file", "one device", 1),
        ("fsdp2, one file", "fsdp1, a folder", 4),
        ("fsdp1, one file", "fsdp2, a folder", 2),
        ("ddp", "fsdp1, a folder", 2),
    ],
)
def test_one_file_is_for_every_strategy(whole, kind, other, ranks):
    ended, path = whole(kind, 2)
    at = step_of(path)
    for again in on(ranks, other, None, path):
        check_goes_on(again, ended, lost=() if ranks == 2 else {at})
