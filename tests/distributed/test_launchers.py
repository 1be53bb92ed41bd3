"""The ways in which Lightning itself starts the processes: a script trains on two, and says what each had to show."""

import copy
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler

import lightning.pytorch as pl
import pytest
import torch
from torch.multiprocessing import ProcessRaisedException

from lightning_bsscale import BatchSizeScaler
from lightning_bsscale.callbacks.state.spawn import Outcome, _SentOutcome
from lightning_bsscale.journal import read_journal
from lightning_bsscale.theory.history import History
from lightning_bsscale.theory.records import DecisionRecord
from lightning_bsscale.theory.stored import as_plain
from lightning_bsscale.verdict import read_facts, verdict_of
from tests.helpers import ending_worker, launched_worker
from tests.helpers.launched_worker import LIFE, on_rank
from tests.helpers.processes import GRACE, fit_on, free_port, script_environment
from tests.helpers.simulated_run import Host, Program
from tests.helpers.training import QUIET, Regression, fit, regression_loader

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

STRATEGIES = ["ddp", "ddp_fork", "ddp_spawn"]  # ddp_notebook is another name of ddp_fork
# The first starts the script again, so it has one of its own.
SCRIPTS = [["ddp"], ["ddp_fork", "ddp_spawn", "ddp_fork-monitor"]]
RUNS = [*STRATEGIES, "ddp_fork-monitor"]
WITHOUT_TIMES = {"seconds_per_loader_batch": None, "seconds_per_step": None}


def started(folder, runs, script=launched_worker):
    with (folder / f"{runs[0]}.txt").open("w") as log:
        return subprocess.Popen(
            [sys.executable, script.__file__, str(folder), *runs],
            env=script_environment(MASTER_PORT=str(free_port())),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def wait_for(scripts, folder, life):
    try:
        for script in scripts:
            assert script.wait(life + GRACE) == 0, [path.read_text() for path in folder.glob("*.txt")]
    finally:
        for script in scripts:
            with suppress(ProcessLookupError):  # nobody is left
                os.killpg(script.pid, signal.SIGKILL)
            script.wait()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Where the scripts wrote, by run; both run at once, as they mostly import."""
    folder = tmp_path_factory.mktemp("launched")
    wait_for([started(folder, runs) for runs in SCRIPTS], folder, LIFE)
    return {run: folder / run for run in RUNS}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The same trainings in two processes of our own."""
    return {kind: trained_on_ranks(tmp_path_factory.mktemp(kind), kind) for kind in ("scaler", "monitor")}


def trained_on_ranks(folder, kind):
    fit_on(2, on_rank, folder, kind)
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
    main = told(folders[name], "main")
    assert (main["process"] == first["process"]) == (name == "ddp")
    assert main["shown"] == first["shown"]
    assert main["shown"]["history"]


@pytest.mark.parametrize("name", RUNS)
def test_the_verdict_is_true_in_the_process_that_called_fit(folders, name):
    """It is the first rank's, which logged it once; the journal says the same."""
    first, main = told(folders[name], "rank-0")["said"], told(folders[name], "main")["said"]
    assert main == first
    assert main["verdict"].startswith(
        "The noise scale was" if name.endswith("monitor") else "The batch grew from 8 to "
    )
    journal = folders[name] / "bsscale.jsonl"
    assert main["journal"] == str(journal)
    assert main["verdict"] == str(verdict_of(read_facts(journal)))
    if "summary" in main:
        changes = [record for record in told(folders[name], "main")["shown"]["decisions"] if is_change(record)]
        assert sum(" -> " in line for line in main["summary"].splitlines()) == len(changes) > 0
    # Two runs of a script may have the same words.
    words = [
        told(folders[other], "main")["said"]["verdict"] for other in next(runs for runs in SCRIPTS if name in runs)
    ]
    logged = next(folders[name].parent / f"{runs[0]}.txt" for runs in SCRIPTS if name in runs).read_text()
    assert logged.count(f"bsscale: {main['verdict']}\n") == words.count(main["verdict"])


def is_change(record):
    return record["batch_size"] != record["situation"]["batch_size"]


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
    assert main["metrics"]["bsscale/batch_size"] == first["shown"]["batch_size"] > 4
    assert main["best_model_path"] == str(folders[strategy] / "last.ckpt")


def letter_to(callback, outcome, folder):
    """As another process would send it through Lightning's pipe."""
    letter = _SentOutcome(callback._channel._name, outcome, str(folder))
    return bytes(ForkingPickler.dumps(copy.deepcopy(letter)))  # Lightning copies it before it is sent


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("copied_by", [copy.copy, copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_a_copy_of_the_callback_gets_nothing_meant_for_the_other(copied_by, used, temporary):
    scaler = BatchSizeScaler(split=False, measure_every=1, max_micro_batch_size=None)
    if used:
        fit(Regression(), regression_loader(40), [scaler], max_epochs=1, accumulate_grad_batches=2)
    before, copied = scaler.batch_size, copied_by(scaler)
    pickle.loads(letter_to(copied, outcome(24), temporary))
    assert (scaler.batch_size, copied.batch_size) == (before, 24)
    pickle.loads(letter_to(scaler, outcome(16), temporary))
    assert (scaler.batch_size, copied.batch_size) == (16, 24)
    assert not list(temporary.iterdir())


def test_what_comes_back_gives_way_to_the_next_training_for_good(temporary):
    scaler = BatchSizeScaler()
    arrived = pickle.loads(letter_to(scaler, outcome(999), temporary))
    assert scaler.batch_size == 999
    assert arrived is None, "it stays in the first Trainer's state, which Lightning copies whenever it trains"
    fit(Regression(), regression_loader(40), [scaler], max_epochs=1)
    assert scaler.batch_size == 4


def short_run():
    program = Program(batches=(2,), accumulate=2)
    return Host.begin(program).train(program.places()).state


def outcome(batch_size):
    run = short_run()
    return Outcome(run=replace(run, batch=replace(run.batch, batch_size=batch_size)))


def big_outcome():
    """What a long training has to show, with every kind of number in it."""
    run = short_run()
    made = replace(run.measured.history[-1], trace=math.nan, grad_sq=-math.inf, examples_seen=10**12)
    history = History([run.measured.history[0], made] * 2048)
    return Outcome(run=replace(run, measured=replace(run.measured, history=history)), journal_path="journal.jsonl")


def test_whatever_its_size_only_a_path_is_sent_and_the_file_is_private(temporary):
    scaler, outcome = BatchSizeScaler(), big_outcome()
    letter = letter_to(scaler, outcome, temporary)
    (path,) = temporary.iterdir()
    assert path.stat().st_size > 10**6
    assert len(letter) < 512
    assert path.stat().st_mode & 0o777 == 0o600
    pickle.loads(letter)
    assert repr(scaler._shown) == repr(outcome)  # by their words, as nan is not equal to itself
    assert not list(temporary.iterdir())


def test_any_other_copy_of_the_state_is_empty_and_writes_no_file(temporary):
    letter = _SentOutcome(BatchSizeScaler()._channel._name, big_outcome(), str(temporary))
    pickled = pickle.dumps(letter)
    assert copy.deepcopy(letter) is letter
    assert not list(temporary.iterdir())
    assert pickle.loads(pickled) is None


def test_a_letter_to_nobody_is_thrown_away(temporary):
    letter = letter_to(BatchSizeScaler(), Outcome(), temporary)  # the callback is gone by now
    assert list(temporary.iterdir())
    pickle.loads(letter)
    assert not list(temporary.iterdir())


def test_without_a_folder_for_temporary_files_it_is_written_beside_the_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    scaler = BatchSizeScaler()
    letter = letter_to(scaler, outcome(8), tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    pickle.loads(letter)
    assert scaler.batch_size == 8
    assert not list(tmp_path.iterdir())


def raised(process_id=1):
    return ProcessRaisedException("on purpose", error_index=1, error_pid=process_id)


@pytest.mark.parametrize("record", [False, True, "runs/bsscale.jsonl"])
def test_results_that_are_lost_are_not_those_of_an_earlier_training(record, temporary):
    scaler = BatchSizeScaler(record=record)
    pickle.loads(letter_to(scaler, outcome(16), temporary))
    assert scaler.batch_size == 16
    trainer = pl.Trainer(**QUIET, default_root_dir=temporary, devices=2, strategy="ddp_fork")
    module = Regression()
    # Lightning refuses a second fit of a Trainer without starting any: what is there stays true.
    scaler.on_exception(trainer, module, NotImplementedError("Calling `trainer.fit()` twice"))
    assert scaler.batch_size == 16
    scaler.on_exception(trainer, module, raised())
    assert (scaler.batch_size, scaler.history, list(scaler.decisions)) == (None, [], [])
    text = str(scaler.verdict())
    assert text.startswith("The training ran in other processes, from which no results came back to this one.")
    assert scaler.summary() == str(copy.deepcopy(scaler).verdict()) == text
    assert ("bsscale summary" in text) == (record is not False)
    assert (str(record) in text) == isinstance(record, str)
    # The results of the next training replace the lost ones.
    pickle.loads(letter_to(scaler, outcome(24), temporary))
    assert scaler.batch_size == 24
    scaler.on_exception(trainer, module, raised())
    scaler = BatchSizeScaler()
    scaler.on_exception(trainer, module, raised())
    fit(Regression(), regression_loader(40), [scaler], max_epochs=1)
    assert scaler.verdict().headline.startswith("The batch stayed at 4")


@pytest.mark.parametrize("at", ["writing", "reading"])
def test_results_that_cannot_be_written_or_read_are_lost_and_said_to_be(at, temporary, monkeypatch):
    scaler = BatchSizeScaler()
    pickle.loads(letter_to(scaler, outcome(16), temporary))
    if at == "writing":
        monkeypatch.setattr(tempfile, "tempdir", str(temporary / "none"))
        with pytest.warns(UserWarning, match="could not be written"):
            letter = letter_to(scaler, outcome(24), temporary / "none")
        pickle.loads(letter)
    else:
        letter = letter_to(scaler, outcome(24), temporary)
        next(temporary.iterdir()).write_text("{")
        with pytest.warns(UserWarning, match="could not be read back"):
            pickle.loads(letter)
    assert scaler.batch_size is None
    assert "no results came back" in str(scaler.verdict())


def test_what_a_killed_training_left_is_replaced_and_a_failed_one_cleans_up(temporary):
    scaler = BatchSizeScaler()
    letter_to(scaler, outcome(8), temporary)
    letter = letter_to(scaler, outcome(16), temporary)
    pickle.loads(letter)
    assert scaler.batch_size == 16
    letter_to(scaler, outcome(8), temporary)
    scaler._channel.clean_up(pl.Trainer(**QUIET, default_root_dir=temporary))
    assert not list(temporary.iterdir())


# ---------------------------------------------------------------- much to send, and bad ends

LAUNCHERS = STRATEGIES[1:]
MUCH = [f"{strategy}:resumed" for strategy in LAUNCHERS]
BAD_ENDS = {
    "ddp_fork:killed": "SIGKILL",
    "ddp_fork:raises": "on purpose",
    "ddp_fork:fails": "on purpose",
    "ddp_fork:interrupted": "SystemExit",
}


def enlarged(path, to):
    """A checkpoint as 10,000 measured windows leave it, of which 4,096 are kept, with 1,000 decisions."""
    checkpoint = torch.load(path)
    state = checkpoint["callbacks"]["BatchSizeScaler"]
    history, decisions = state["run"]["measured"]["history"], state["run"]["decisions"]["records"]
    history[:] = [history[i % len(history)] for i in range(4090)]
    decisions[:] = [decisions[i % len(decisions)] for i in range(1000)]
    torch.save(checkpoint, to)


def ended(folder, runs):
    wait_for([started(folder, runs, ending_worker)], folder, ending_worker.LIFE)
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in runs}


@pytest.fixture(scope="module")
def endings(folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("endings")
    enlarged(folders["ddp_fork"] / "last.ckpt", folder / "big.ckpt")
    return folder, ended(folder, [*MUCH, *BAD_ENDS])


def left_in(folder):
    """What is left of ours; Lightning leaves its own empty folders, and the weights of a killed training."""
    return [path.name for path in folder.rglob("*bsscale*")]


@pytest.mark.parametrize("name", MUCH)
def test_much_comes_back_and_nothing_is_left(endings, name):
    folder, told = endings
    assert told[name]["error"] is None
    assert told[name]["same"]
    assert told[name]["kept"] == [None]
    assert told[name]["history"] > 2048
    assert told[name]["decisions"] >= 1000
    assert not left_in(folder / name)


@pytest.mark.parametrize(("name", "error"), BAD_ENDS.items())
def test_a_bad_end_leaves_no_file(endings, name, error):
    folder, told = endings
    assert error in told[name]["error"]
    assert not left_in(folder / name)
    # Nothing came back, and the callback does not say that it has not been trained.
    said = told[name]["said"]
    assert said["verdict"].startswith("The training ran in other processes, from which no results came back")
    assert "With record=True" in said["verdict"]
    assert said["repr"] == "GradientNoiseScaleMonitor(trained in other processes, no results)"
    assert f"bsscale: {said['verdict']}\n" in (folder / f"{MUCH[0]}.txt").read_text()
    if name.endswith("interrupted"):
        assert (folder / name / "rank-0.json").exists(), "the children trained to their end"
    if name.endswith("killed"):
        assert (folder / name / "found.txt").read_text() == "0o600", "it was there, and private"


@pytest.mark.nightly
@pytest.mark.parametrize("strategy", LAUNCHERS)
def test_ten_thousand_measured_windows_come_back(tmp_path, strategy):
    (told,) = ended(tmp_path, [f"{strategy}:10000"]).values()
    assert told["same"]
    assert told["steps"] == 10_000
    assert told["history"] > 2048, "older ones are thinned"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_checkpoint_and_journal_tell_what_was_decided(folders, strategy):
    decided = told(folders[strategy], "rank-0")["shown"]["decisions"]
    scaler = BatchSizeScaler()
    scaler.load_state_dict(torch.load(folders[strategy] / "last.ckpt")["callbacks"]["BatchSizeScaler"])
    _, records = read_journal(folders[strategy] / "bsscale.jsonl")
    for decisions in (scaler.decisions, [record for record in records if isinstance(record, DecisionRecord)]):
        plain = [as_plain(record) for record in decisions]
        assert [{**record, "situation": record["situation"] | WITHOUT_TIMES} for record in plain] == decided
