"""Whose a journal is, and that it replays: no two runs write to one file, and each run follows from its journal."""

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, IterableDataset

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor, journal_file
from lightning_bsscale.journal import Journal, RuleEvent, read_journal, read_lines
from lightning_bsscale.replay import replay
from lightning_bsscale.theory.events import WindowEvent
from lightning_bsscale.theory.records import DecisionRecord
from tests.helpers.expected_warnings import (
    CANNOT_MEASURE,
    DROPPED,
    HARDLY_RESOLVED,
    MID_EPOCH,
    NONE_BATCH,
    NOT_MEASURED,
    OTHER_START,
    WITHIN_A_WINDOW,
    WITHOUT_VALIDATION,
    ignored,
)
from tests.helpers.training import ByStep, Regression, Watched, fit, regression_loader, run_of, scripted

ROOT = Path(__file__).parents[2]
MAKE = {
    "scaler": lambda record: scripted(8, 16, measure_every=1, record=record),
    "monitor": lambda record: GradientNoiseScaleMonitor(measure_every=1, record=record),
}


def train(callback, folder, *others, **settings):
    settings = {"max_epochs": 1, "accumulate_grad_batches": 2, "default_root_dir": folder, **settings}
    return fit(Regression(), regression_loader(80), [callback, *others], **settings)


def resumed(checkpoint, folder, kind="scaler", **settings):
    callback = MAKE[kind](True)
    train(callback, folder, ckpt_path=checkpoint, max_epochs=2, **settings)
    return callback


def in_process(code, *words):
    """The words to start a process with, and its environment."""
    return [sys.executable, "-c", code, *map(str, words)], {**os.environ, "PYTHONPATH": str(ROOT)}


def files(folder):
    return sorted(path.name for path in folder.rglob("*.jsonl"))


def measured(path):
    return [record for record in read_journal(path)[1] if not isinstance(record, DecisionRecord)]


@pytest.fixture
def said(caplog):
    """The INFO lines about journals so far."""
    caplog.set_level(logging.INFO, "lightning.pytorch.utilities.rank_zero")
    return lambda: [text for text in caplog.messages if " journal " in text or "recording to" in text]


# ---------------------------------------------------------------- new runs

THREE_AT_ONCE = """
import os, sys, warnings
os.environ["OMP_NUM_THREADS"] = "1"
from pathlib import Path
from tests.scenarios.test_journals import MAKE, train
warnings.simplefilter("ignore")
folder, start, go = Path(sys.argv[1]), *os.pipe()
children = []
for number in range(3):
    if (child := os.fork()) == 0:
        os.close(go)
        os.read(start, 1)  # all begin when the parent closes its end
        callback = MAKE["scaler"](True)
        train(callback, folder, max_epochs=8 + number)
        (folder / f"{number}.txt").write_text(str(len(callback.history)))
        os._exit(0)
    children.append(child)
os.close(go)
sys.exit(max(os.waitpid(child, 0)[1] for child in children))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")
def test_three_processes_that_record_to_one_folder_at_once(tmp_path):
    command, environment = in_process(THREE_AT_ONCE, tmp_path)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    wrote = [int((tmp_path / f"{number}.txt").read_text()) for number in range(3)]
    assert len(set(wrote)) == 3
    assert sorted(len(measured(path)) for path in tmp_path.glob("*.jsonl")) == sorted(wrote)
    assert files(tmp_path) == ["bsscale-v1.jsonl", "bsscale-v2.jsonl", "bsscale.jsonl"]


@pytest.mark.parametrize("kind", MAKE)
def test_a_second_run_replaces_nothing_and_says_where_it_records(tmp_path, kind, said):
    path = tmp_path / "logs" / "run.jsonl"
    first, second = MAKE[kind](path), MAKE[kind](path)
    train(first, tmp_path)
    before = path.read_bytes()
    train(second, tmp_path)
    train(second, tmp_path)  # the same object, on another Trainer
    assert path.read_bytes() == before
    assert said()[0] == f"bsscale: recording to {path}."
    assert files(tmp_path) == ["run-v1.jsonl", "run-v2.jsonl", "run.jsonl"]
    assert (first.journal_path, second.journal_path) == (path, path.with_name("run-v2.jsonl"))
    assert said()[-1] == f"bsscale: recording to {second.journal_path} because run.jsonl exists already."
    assert len({read_journal(path.parent / name)[0]["id"] for name in files(tmp_path)}) == 3


@pytest.mark.parametrize("there", ["notes\n", "", '{"event": "header"', "a dangling link"])
def test_whatever_is_there_stays_as_it_is(tmp_path, there):
    path = tmp_path / "run.jsonl"
    if there == "a dangling link":
        path.symlink_to(tmp_path / "elsewhere.jsonl")
    else:
        path.write_text(there)
    scaler = MAKE["scaler"](path)
    train(scaler, tmp_path)
    assert scaler.journal_path == tmp_path / "run-v1.jsonl"
    assert not (tmp_path / "elsewhere.jsonl").exists()
    assert path.is_symlink() or path.read_text() == there


@WITHOUT_VALIDATION
@pytest.mark.parametrize("kind", MAKE)
def test_a_run_that_fails_or_is_refused_before_it_recorded_anything_leaves_no_file(tmp_path, kind):
    """Refused as under ``python -W error``: what is said at the start may be an error."""
    callback, settings = MAKE[kind](True), dict(max_epochs=1, default_root_dir=tmp_path)
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(Watched(breaks_at=(0, 0)), regression_loader(80), [callback], accumulate_grad_batches=2, **settings)
    with pytest.raises(UserWarning, match=NOT_MEASURED):
        fit(Regression(), regression_loader(20, batch_size=1), [callback], **settings)
    assert files(tmp_path) == []
    assert callback.journal_path is None


# ---------------------------------------------------------------- remote folders


@pytest.mark.parametrize("kind", MAKE)
def test_record_true_with_a_remote_log_folder_is_refused_and_makes_no_folder_of_that_name(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MisconfigurationException, match=r"record=True.*memory://runs"):
        train(MAKE[kind](True), "memory://runs")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- resumed runs


class Saves(pl.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(Path(trainer.default_root_dir, "first.ckpt"))


def saved(folder, kind="scaler", **settings):
    """A training of two epochs, and its checkpoint of the first one's end."""
    callback = MAKE[kind](True)
    train(callback, folder, Saves(), max_epochs=2, **settings)
    return callback, folder / "first.ckpt"


@pytest.mark.parametrize("kind", MAKE)
def test_a_resumed_run_continues_its_own_journal_among_others(tmp_path, kind, said):
    strangers = MAKE[kind](True), MAKE[kind](True)
    train(strangers[0], tmp_path)
    first, checkpoint = saved(tmp_path, kind)
    train(strangers[1], tmp_path)
    others = {one.journal_path: one.journal_path.read_bytes() for one in strangers}
    assert first.journal_path.name == "bsscale-v1.jsonl"
    header, records = read_journal(first.journal_path)
    lines = len(first.journal_path.read_bytes().splitlines()) - 1
    again = resumed(checkpoint, tmp_path, kind)
    assert again.journal_path == first.journal_path
    assert read_journal(again.journal_path)[0] == header
    assert measured(again.journal_path) == again.history
    kept = torch.load(checkpoint, weights_only=True)["callbacks"][again.state_key]["journal"]["records"]
    assert 0 < kept < lines
    assert read_journal(again.journal_path)[1][: len(records) // 2 - 1] == records[: len(records) // 2 - 1]
    assert re.search(rf"{first.journal_path} after {kept} records.* {lines - kept} ", said()[-1])
    assert {path: path.read_bytes() for path in others} == others


def test_a_resumed_run_in_a_new_log_folder_begins_a_journal_that_names_the_other(tmp_path, said):
    first, checkpoint = saved(tmp_path, logger=CSVLogger(tmp_path, version=0))
    before = first.journal_path.read_bytes()
    again = resumed(checkpoint, tmp_path, logger=CSVLogger(tmp_path, version=1))
    assert first.journal_path.parent.name == "version_0"
    assert again.journal_path == first.journal_path.parents[1] / "version_1" / "bsscale.jsonl"
    assert first.journal_path.read_bytes() == before
    header, records = read_journal(again.journal_path)
    continued = header["continues"]
    assert (continued["id"], continued["path"]) == (read_journal(first.journal_path)[0]["id"], str(first.journal_path))
    assert [*read_journal(first.journal_path)[1][: continued["records"]], *records][-1].examples_seen == 160
    assert f"{again.journal_path}, where this run would continue it, is not there" in said()[-2]


WRITES = """
import json, sys
from lightning_bsscale.journal import Journal
journal = Journal(sys.argv[1], {}, resumes=json.loads(sys.argv[2]))
print(journal.path, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not journal_file.HAS_LOCKS, reason="no locks here")
def test_a_journal_that_another_process_writes_is_not_written_to(tmp_path):
    first, checkpoint = saved(tmp_path)
    path, state = first.journal_path, first.state_dict()["journal"]
    command, environment = in_process(WRITES, path, json.dumps(state))
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        assert process.stdout.readline().strip() == str(path)
        before = path.read_bytes()
        with pytest.warns(UserWarning, match=r"another process .*bsscale\.jsonl"):
            again = resumed(checkpoint, tmp_path)
        assert path.read_bytes() == before
        process.stdin.close()
    assert again.journal_path == tmp_path / "bsscale-v1.jsonl"
    assert read_journal(again.journal_path)[0]["continues"]["id"] == state["id"]
    assert resumed(checkpoint, tmp_path).journal_path == path  # the lock ended with the process


KILLED = """
import os, signal, sys, time
from lightning_bsscale.journal import Journal
journal = Journal(sys.argv[1], {})
journal._line({"event": "decision"})
if os.fork() == 0:  # a data loader's worker, which outlives it
    print(os.getpid(), journal.id, flush=True)
    time.sleep(60)
    os._exit(0)
time.sleep(60)
"""


@pytest.mark.skipif(not journal_file.HAS_LOCKS or not hasattr(os, "fork"), reason="no locks, or no fork, here")
def test_a_killed_run_holds_no_lock_also_where_its_children_live_on(tmp_path):
    path = tmp_path / "run.jsonl"
    command, environment = in_process(KILLED, path)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    worker, journal_id = process.stdout.readline().split()
    process.kill()
    process.wait()
    process.stdout.close()
    try:
        again = Journal(path, {}, resumes={"id": journal_id, "path": str(path), "records": 1})
        assert (again.is_continued, again.path, again.kept) == (True, path, 1)
        again.close()
    finally:
        os.kill(int(worker), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_does_not_write_to_its_parents_journal(tmp_path):
    journal = Journal(tmp_path / "run.jsonl", {})
    journal._line({"event": "decision"})
    before = journal.path.read_bytes()
    child = os.fork()
    if child == 0:
        journal._line({"event": "decision"})
        journal.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert journal.path.read_bytes() == before
    journal._line({"event": "decision"})
    assert len(journal.path.read_bytes().splitlines()) == 3
    journal.close()


# What is found in the journal's place, and a word of why it is not continued.
OTHERS = {
    "pipe": "named pipe",
    "device": "a device",
    "folder": "a folder",
    "3 GiB": "longer than",
    "NUL bytes": "damaged in line 2",
    "deep": "nested too deeply",
    "another run's": "another run",
    "no locks": "locked",
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("there", OTHERS)
def test_a_resumed_run_continues_nothing_hostile_and_nothing_of_others(tmp_path, there, said, monkeypatch):
    first, checkpoint = saved(tmp_path)
    path, deep = first.journal_path, b"[" * 100_000 + b"\n"
    header, *lines = path.read_bytes().splitlines(keepends=True)
    path.unlink()
    before = {
        "NUL bytes": b"".join([header, b"\0" * 500 + b"\n", *lines]),
        "deep": b"".join([deep, deep, *lines]),
        "another run's": b"".join([header.replace(first.state_dict()["journal"]["id"].encode(), b"another"), *lines]),
        "no locks": b"".join([header, *lines]),
    }.get(there)
    if there == "pipe":
        os.mkfifo(path)
    elif there == "device":
        path.symlink_to("/dev/zero")
    elif there == "folder":
        path.mkdir()
    elif there == "3 GiB":
        path.touch()
        os.truncate(path, 3 * 2**30)
    else:
        path.write_bytes(before)
        monkeypatch.setattr(journal_file, "HAS_LOCKS", there != "no locks")
    started = time.monotonic()
    again = resumed(checkpoint, tmp_path)
    assert time.monotonic() - started < 10
    assert again.journal_path == tmp_path / "bsscale-v1.jsonl"
    assert before is None or path.read_bytes() == before
    assert OTHERS[there] in said()[-2]


# ---------------------------------------------------------------- whole runs again

POLICY = ByStep([4, 4, 4, 4, 8, 16, 8, 4, 4, 12, 32])


def replayed(path, policy=None):
    """How often each kind agrees."""
    counts = Counter()
    for one in replay(path, policy=policy):
        assert one.agrees, one
        counts[one.kind] += 1
    return counts


def cosine(optimizer, trainer):
    return {"scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100), "interval": "step"}


class Unsized(IterableDataset):
    """Epochs that end before they said, or say nothing."""

    def __iter__(self):
        yield from regression_loader(130, batch_size=None).dataset


def own(**options):
    return BatchSizeScaler(policy=POLICY, warmup=0, memory=1.0, max_batch_size=32, **options)


def built_in(**options):
    return BatchSizeScaler(**{"measure_every": 2, **options})


def dry(**options):
    return own(dry_run=True, **options)


DATA, SHORT = regression_loader(1203, noise=3.0), regression_loader(83)
UNSIZED = DataLoader(Unsized(), batch_size=4)
LOADER_BATCHES = [None if k in {0, 3, 4, 11, 12, 13, 29} else batch for k, batch in enumerate(regression_loader(120))]
WITH_NONE = DataLoader(LOADER_BATCHES, batch_size=None, collate_fn=lambda batch: batch)
# The callback and its options, the data, and the Trainer's settings.
RUNS = {
    "a growing batch": (built_in, {}, DATA, dict(max_epochs=3)),
    "the square root": (built_in, dict(lr_rule="sqrt", lr_cap=1.2), DATA, dict(max_epochs=3)),
    "a schedule": (built_in, dict(schedule="cosine"), DATA, dict(max_epochs=3)),
    "a dry run": (built_in, dict(dry_run=True), DATA, dict(max_epochs=2, accumulate_grad_batches=2)),
    "a monitor": (GradientNoiseScaleMonitor, {}, DATA, dict(max_epochs=2, accumulate_grad_batches=3)),
    "splits": (own, dict(measure_every=3), SHORT, dict(max_epochs=4)),
    "large micro-batches": (own, dict(max_micro_batch_size=64), SHORT, dict(max_epochs=4)),
    "steps": (own, {}, SHORT, dict(max_steps=50, max_epochs=-1)),
    "a budget": (own, dict(total_examples=150), SHORT, dict(max_epochs=4)),
    "ragged epochs": (own, {}, regression_loader(91), dict(max_epochs=4, accumulate_grad_batches=3)),
    "no length": (own, {}, UNSIZED, dict(max_epochs=3, accumulate_grad_batches=2)),
    "a dry run without a length": (dry, {}, UNSIZED, dict(max_epochs=3, accumulate_grad_batches=2)),
    "None": (own, {}, WITH_NONE, dict(max_epochs=3)),
    "None in a dry run": (dry, {}, WITH_NONE, dict(max_epochs=3, accumulate_grad_batches=2)),
}


def expected(test):
    """What is said of some of these runs, and is right."""
    others = ignored(f".*{HARDLY_RESOLVED}", f".*{DROPPED}", OTHER_START)
    for mark in (CANNOT_MEASURE, NONE_BATCH, MID_EPOCH, WITHIN_A_WINDOW, WITHOUT_VALIDATION, others):
        test = mark(test)
    return test


@expected
@pytest.mark.parametrize("name", RUNS)
def test_a_run_replays_whole(tmp_path, name):
    make, options, loader, settings = RUNS[name]
    callback = make(record=tmp_path / "run.jsonl", **options)
    fit(Regression(scheduler=None if "schedule" in name else cosine), loader, [callback], **settings)
    counts = replayed(tmp_path / "run.jsonl", POLICY if make in (own, dry) else None)
    assert counts["window"] == counts["factor"] == run_of(callback).windows
    assert counts["measurement"] == len(callback.history)
    assert counts["decision"] == len(getattr(callback, "decisions", []))
    assert counts["end"] == 1
    if name in {"a growing batch", "the square root", "a schedule"}:
        assert any(record.is_change for record in callback.decisions)


class SavesWithin(pl.Callback):
    """Saves after some loader batches, whatever the window."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx in {6, 7, 8, 9}:
            trainer.save_checkpoint(Path(trainer.default_root_dir, f"{batch_idx}.ckpt"))


@expected
@pytest.mark.parametrize("at", [6, 7, 8, 9])
@pytest.mark.parametrize(("batch_size", "accumulate"), [(4, 2), (8, 2), (2, 2), (4, 3)])
def test_a_resumed_run_replays_whole(tmp_path, at, batch_size, accumulate):
    """From within an epoch and a window, also with other loader batches: in its own journal, and in a new one."""
    settings = dict(max_epochs=3, default_root_dir=tmp_path)
    first = own(record=tmp_path / "run.jsonl")
    module = Regression(scheduler=cosine)
    fit(module, regression_loader(82), [first, SavesWithin()], accumulate_grad_batches=2, **settings)
    assert replayed(tmp_path / "run.jsonl", POLICY)["window"] == run_of(first).windows
    settings |= dict(accumulate_grad_batches=accumulate, ckpt_path=tmp_path / f"{at}.ckpt")
    for name in ("run.jsonl", "new.jsonl"):
        again = own(record=tmp_path / name)
        fit(Regression(scheduler=cosine), regression_loader(82, batch_size=batch_size), [again], **settings)
        assert again.journal_path == tmp_path / name
        counts = replayed(tmp_path / name, POLICY)
        windows = [line for _, line in read_lines(tmp_path / name) if isinstance(line, WindowEvent)]
        assert counts["window"] == len(windows)
        assert (len(windows) == run_of(again).windows) == (name == "run.jsonl")
        assert counts["end"] == 1


class Stops(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.current_epoch == 1 and batch_idx == 4


class BreaksInItsScheduler(Watched):
    def lr_scheduler_step(self, scheduler, metric):
        if self.trainer.global_step >= 8:
            raise RuntimeError("on purpose")
        scheduler.step()


@expected
@pytest.mark.filterwarnings("ignore:.*lr_scheduler_step is overridden")
@pytest.mark.parametrize("how", ["stopped", "in a step", "in a scheduler", "stopped, dry", "in a step, dry"])
def test_a_run_that_ended_early_replays_whole(tmp_path, how):
    scaler = own(record=tmp_path / "run.jsonl", measure_every=1, dry_run="dry" in how)
    kind, is_stopped = BreaksInItsScheduler if "scheduler" in how else Watched, "stopped" in how
    module = kind(make_scheduler=cosine, breaks_at=(1, 4) if "in a step" in how else None)
    callbacks = [scaler, Stops()] if is_stopped else [scaler]
    with contextlib.nullcontext() if is_stopped else pytest.raises(RuntimeError, match="on purpose"):
        fit(module, SHORT, callbacks, max_epochs=3, accumulate_grad_batches=3)
    counts = replayed(tmp_path / "run.jsonl", POLICY)
    assert counts["window"] == run_of(scaler).windows
    assert counts["measurement"] == len(scaler.history)
    assert counts["end"] == 1


class LARS(torch.optim.SGD):
    """Has another rule than SGD."""


class ChangesItsOptimizer(pl.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            pl_module.make_optimizer = lambda parameters: LARS(parameters, lr=0.01)
            trainer.strategy.setup_optimizers(trainer)


@expected
def test_a_run_with_another_optimizer_in_its_middle_replays_whole(tmp_path):
    scaler = own(record=tmp_path / "run.jsonl", measure_every=1)
    fit(Regression(), SHORT, [ChangesItsOptimizer(), scaler], max_epochs=3, accumulate_grad_batches=2)
    rules = [line.rule["class"] for _, line in read_lines(scaler.journal_path) if isinstance(line, RuleEvent)]
    assert rules == ["Linear"]
    assert replayed(scaler.journal_path, POLICY)["window"] == run_of(scaler).windows


@expected
def test_a_second_fit_replays_whole(tmp_path):
    scaler = own(record=tmp_path / "run.jsonl", measure_every=1)
    trainer = fit(Regression(), SHORT, [scaler], max_epochs=1, accumulate_grad_batches=2)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(trainer.lightning_module, SHORT)
    assert scaler.journal_path == tmp_path / "run.jsonl"
    counts = replayed(scaler.journal_path, POLICY)
    assert counts["window"] == run_of(scaler).windows
    assert counts["measurement"] == len(scaler.history)
