"""The callbacks under FSDP1 and FSDP2: measured as in one process, windows exact, the same decisions on every rank."""

import math
import pickle
import warnings

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from lightning_bsscale.gradients import choose as watchers
from lightning_bsscale.theory.stored import as_plain
from tests.helpers.ddp_runs import loader_of
from tests.helpers.places import here
from tests.helpers.processes import run
from tests.helpers.sharded_runs import STRATEGIES, Trains, items
from tests.helpers.training import QUIET, ByStep

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("place")]


def trainer_of(strategy, callbacks, **settings):
    sharded = {"strategy": STRATEGIES[strategy][1]()} if strategy else {}
    settings = {
        **QUIET,
        **here().trainer(2 if strategy else 1),
        **sharded,
        "use_distributed_sampler": False,
        **settings,
    }
    return pl.Trainer(**settings, callbacks=callbacks)


def monitored(rank, strategy, accumulate, sizes):
    warnings.simplefilter("ignore")
    monitor = GradientNoiseScaleMonitor(measure_every=1, memory=1.0)
    trainer = trainer_of(strategy, [monitor], max_epochs=1, accumulate_grad_batches=accumulate)
    ranks = 2 if strategy else 1
    trainer.fit(Trains(), loader_of(items(24, sizes), rank, ranks))
    return [(made.trace, made.grad_sq, made.window_examples, made.examples_seen) for made in monitor.history]


def monitored_without_private_names(rank, accumulate):
    watchers.fsdp2_params = lambda model: None
    warnings.simplefilter("ignore")
    monitor = GradientNoiseScaleMonitor(measure_every=2)
    trainer = trainer_of("fsdp2", [monitor], max_epochs=2, accumulate_grad_batches=accumulate)
    trainer.fit(Trains(), loader_of(items(44), rank, 2))
    return [made.accumulate_grad_batches for made in monitor.history], trainer.global_step


def scaled(rank, strategy, folder=None, ckpt=None, epochs=2):
    warnings.simplefilter("ignore")
    scaler = BatchSizeScaler(
        policy=ByStep([8, 24, 16, 32]), warmup=0, memory=1.0, measure_every=1, max_batch_size=99, probe_every=0
    )
    module = Trains()
    module.lr = 0.01
    keep = [] if folder is None else [ModelCheckpoint(folder, every_n_epochs=1, save_top_k=-1, filename="{epoch}")]
    trainer = trainer_of(strategy, [scaler, *keep], max_epochs=epochs, enable_checkpointing=bool(keep))
    trainer.fit(module, loader_of(items(44), rank, 2), ckpt_path=ckpt)
    decisions = [as_plain(record) for record in scaler.decisions]
    history = [as_plain(made) for made in scaler.history]
    windows = [made.accumulate_grad_batches for made in scaler.history]
    return pickle.dumps((decisions, history, scaler.state_dict())), windows, trainer.global_step, scaler.examples_seen


@pytest.mark.parametrize("strategy", ["fsdp1", "fsdp2"])
@pytest.mark.parametrize("sizes", [(4,), (2, 6, 3, 5)])
def test_measured_as_in_one_process(strategy, sizes):
    ((*alone,),) = run(monitored, 1, None, 4, sizes, init=False)
    assert len(alone) == 6
    for accumulate, expected in ((2, alone), (1, None)):
        for found in run(monitored, 2, strategy, accumulate, sizes, init=False):
            if expected is None:
                assert len(found) == 12  # two ranks are two micro-batches, without accumulation too
            else:
                assert found == [pytest.approx(window, rel=1e-3) for window in expected]


@pytest.mark.parametrize(("accumulate", "measured"), [(3, [3] * 8), (4, [4, 4, 4, 2, 4, 4, 4, 2])])
def test_without_private_names_a_window_of_one_micro_batch_is_no_measurement(accumulate, measured):
    """Epochs of 22: the last window has one micro-batch, or two."""
    for found, steps in run(monitored_without_private_names, 2, accumulate, init=False):
        assert found == measured
        assert steps == 2 * math.ceil(22 / accumulate)


@pytest.mark.parametrize("strategy", ["fsdp1", "fsdp2"])
def test_windows_and_decisions_on_every_rank(strategy):
    results = run(scaled, 2, strategy, init=False)
    assert len({result[0] for result in results}) == 1
    _, windows, steps, examples = results[0]
    # An epoch of 22: the last window of each is ragged, and the last measurement is on its way at the end.
    assert windows[:9] == [1, 3, 2, 4, 1, 3, 2, 4, 1]
    assert sum(windows) == 44
    assert steps == len(windows)
    assert examples == 2 * 44 * 4
