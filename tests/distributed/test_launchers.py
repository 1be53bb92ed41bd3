"""The ways in which Lightning itself starts the processes: a script trains on two, and says what each had to show."""

import copy
import json
import os
import pickle
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from lightning_bsscale import BatchSizeScaler
from lightning_bsscale.callbacks.resume import Outcome
from lightning_bsscale.callbacks.returned import _Letter
from lightning_bsscale.journal import DecisionRecord, as_plain, read_journal
from tests.distributed import launched_worker
from tests.distributed.launched_worker import LIFE, on_rank
from tests.distributed.processes import GRACE, free_port, run
from tests.zoo import QUIET, Regression, fit, regression_loader

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
STRATEGIES = ["ddp", "ddp_fork", "ddp_notebook", "ddp_spawn"]
# The first starts the script again, so it has one of its own.
SCRIPTS = [["ddp"], ["ddp_fork", "ddp_notebook", "ddp_spawn", "ddp_fork-monitor"]]
RUNS = [*STRATEGIES, "ddp_fork-monitor"]
WITHOUT_TIMES = {"seconds_per_micro_batch": None, "seconds_per_step": None}


def started(folder, runs):
    """The script, started with plain `python`, as a user starts his."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with (folder / f"{runs[0]}.txt").open("w") as log:
        return subprocess.Popen(
            [sys.executable, launched_worker.__file__, str(folder), *runs],
            env=environment | {"MASTER_PORT": str(free_port())},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Where the scripts wrote, by run; both run at once, as they mostly import."""
    folder = tmp_path_factory.mktemp("launched")
    scripts = {runs[0]: started(folder, runs) for runs in SCRIPTS}
    try:
        for name, script in scripts.items():
            assert script.wait(LIFE + GRACE) == 0, (folder / f"{name}.txt").read_text()
    finally:
        for script in scripts.values():
            with suppress(ProcessLookupError):  # nobody is left
                os.killpg(script.pid, signal.SIGKILL)
            script.wait()
    return {run: folder / run for run in RUNS}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The same trainings in two processes of our own."""
    return {kind: trained_on_ranks(tmp_path_factory.mktemp(kind), kind) for kind in ("scaler", "monitor")}


def trained_on_ranks(folder, kind):
    run(on_rank, 2, folder, kind, init=False)
    return told(folder, "rank-0")


def told(folder, by):
    """What that process wrote, but for how long it took."""
    found = json.loads((folder / f"{by}.json").read_text())
    for record in found["shown"].get("decisions", []):
        record["situation"] |= WITHOUT_TIMES
    return found


@pytest.mark.parametrize("name", RUNS)
def test_every_launcher_trains_as_processes_of_our_own_do(folders, expected, name):
    first, second = told(folders[name], "rank-0"), told(folders[name], "rank-1")
    own = expected["monitor" if name.endswith("monitor") else "scaler"]
    for part in ("shown", "windows", "weights"):
        assert first[part] == second[part] == own[part], part
    # The first process is the user's own, or all are new.
    assert (told(folders[name], "main")["process"] == first["process"]) == (name == "ddp")


def test_the_callback_made_a_difference_to_those_trainings(tmp_path, expected):
    alone = trained_on_ranks(tmp_path, None)
    assert set(alone["windows"]) == {1}
    assert set(expected["scaler"]["windows"]) >= {1, 2, 4}, "the batch grew twice"
    assert alone["weights"] == expected["monitor"]["weights"]
    assert alone["weights"] != expected["scaler"]["weights"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_weights_metrics_and_checkpoint_come_back_to_the_process_that_called_fit(folders, strategy):
    first, main = told(folders[strategy], "rank-0"), told(folders[strategy], "main")
    assert main["weights"] == first["weights"]
    assert main["metrics"]["bsscale/batch_size"] == first["shown"]["batch_size"] == 32
    assert main["best_model_path"] == str(folders[strategy] / "last.ckpt")


@pytest.mark.parametrize("name", RUNS)
def test_what_the_callback_has_to_show_comes_back_too(folders, name):
    first, main = told(folders[name], "rank-0"), told(folders[name], "main")
    assert main["shown"] == first["shown"]
    assert main["shown"]["history"]


def letter_to(callback, batch_size):
    """As another process would have written it."""
    letter = _Letter(callback._way_back._name, Outcome(batch_size=batch_size))
    letter._sender += 1
    return pickle.dumps(letter)


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("copied_by", [copy.copy, copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_a_copy_of_the_callback_gets_nothing_meant_for_the_other(copied_by, used):
    scaler = BatchSizeScaler(probe_every=0, measure_every=1)
    if used:
        fit(Regression(), regression_loader(40), [scaler], max_epochs=1, accumulate_grad_batches=2)
    before, copied = scaler.batch_size, copied_by(scaler)
    pickle.loads(letter_to(copied, 24))
    assert (scaler.batch_size, copied.batch_size) == (before, 24)
    pickle.loads(letter_to(scaler, 16))
    assert (scaler.batch_size, copied.batch_size) == (16, 24)


def test_what_comes_back_gives_way_to_the_next_training_for_good():
    """The letter stays in the first Trainer's state, which Lightning copies whenever it trains or validates."""
    scaler = BatchSizeScaler()
    letter = letter_to(scaler, 999)
    pickle.loads(letter)
    assert scaler.batch_size == 999
    fit(Regression(), regression_loader(40), [scaler], max_epochs=1)
    pickle.loads(letter)
    assert scaler.batch_size == 4


def test_a_letter_is_not_opened_where_it_was_written():
    scaler = BatchSizeScaler()
    pickle.loads(pickle.dumps(_Letter(scaler._way_back._name, Outcome(batch_size=8))))
    assert scaler.batch_size is None


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_checkpoint_and_journal_tell_what_was_decided(folders, strategy):
    decided = told(folders[strategy], "rank-0")["shown"]["decisions"]
    scaler = BatchSizeScaler()
    scaler.load_state_dict(torch.load(folders[strategy] / "last.ckpt")["callbacks"]["BatchSizeScaler"])
    _, records = read_journal(folders[strategy] / "bsscale.jsonl")
    for decisions in (scaler.decisions, [record for record in records if isinstance(record, DecisionRecord)]):
        plain = [as_plain(record) for record in decisions]
        assert [{**record, "situation": record["situation"] | WITHOUT_TIMES} for record in plain] == decided


class Normalised(Regression):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 2))


def synchronised(rank, *callbacks):
    strategy = DDPStrategy(process_group_backend="gloo")
    trainer = pl.Trainer(
        **QUIET, devices=2, strategy=strategy, sync_batchnorm=True, max_epochs=1, callbacks=list(callbacks)
    )
    trainer.fit(Normalised(), regression_loader(40))


@pytest.mark.parametrize("callbacks", [[], [BatchSizeScaler()]], ids=["without", "with"])
def test_torch_synchronises_batch_norm_on_gpus_only(callbacks):
    with pytest.raises(ValueError, match="SyncBatchNorm layers only work with GPU modules"):
        run(synchronised, 2, *callbacks, init=False)
