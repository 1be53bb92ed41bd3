"""Whose a journal is: every run writes a file that no other run writes to, and a resumed one continues its own."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor, journal_file
from lightning_bsscale.journal import Journal, read_journal
from lightning_bsscale.theory.records import DecisionRecord
from tests.helpers.training import QUIET, Regression, fit, regression_loader, scripted

ROOT = Path(__file__).parents[2]
MAKE = {
    "scaler": lambda record: scripted(8, 16, measure_every=1, record=record),
    "monitor": lambda record: GradientNoiseScaleMonitor(measure_every=1, record=record),
}


def train(callback, folder, *others, **settings):
    settings = {"max_epochs": 1, "accumulate_grad_batches": 2, "default_root_dir": folder, **settings}
    return fit(Regression(), regression_loader(80), [callback, *others], **settings)


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

TWO_AT_ONCE = """
import os, sys, warnings
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
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TWO_AT_ONCE, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    wrote = [int((tmp_path / f"{number}.txt").read_text()) for number in range(3)]
    assert len(set(wrote)) == 3
    assert sorted(len(measured(path)) for path in tmp_path.glob("*.jsonl")) == sorted(wrote)
    assert files(tmp_path) == ["bsscale-v1.jsonl", "bsscale-v2.jsonl", "bsscale.jsonl"]


class TrainsInside(pl.Callback):
    """Runs a second training within the first one's third step."""

    def __init__(self, callback, folder):
        self.callback, self.folder = callback, folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 3 and not self.callback.history:
            train(self.callback, self.folder)


def test_two_trainers_in_one_process(tmp_path):
    outer, inner = MAKE["scaler"](True), MAKE["scaler"](True)
    train(outer, tmp_path, TrainsInside(inner, tmp_path))
    assert files(tmp_path) == ["bsscale-v1.jsonl", "bsscale.jsonl"]
    assert outer.journal_path == tmp_path / "bsscale.jsonl"
    assert inner.journal_path == tmp_path / "bsscale-v1.jsonl"
    for callback in (outer, inner):
        assert measured(callback.journal_path) == callback.history


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
    assert said()[-1] == f"bsscale: recording to {second.journal_path}, as there is a run.jsonl already."
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


class Breaks(Regression):
    def training_step(self, batch, batch_idx):
        raise RuntimeError("mine")


@pytest.mark.parametrize("kind", MAKE)
def test_a_run_that_fails_before_it_recorded_anything_leaves_no_file(tmp_path, kind):
    callback = MAKE[kind](True)
    trainer = pl.Trainer(
        **QUIET, callbacks=[callback], max_epochs=1, accumulate_grad_batches=2, default_root_dir=tmp_path
    )
    with pytest.raises(RuntimeError, match="mine"):
        trainer.fit(Breaks(), regression_loader(80))
    assert files(tmp_path) == []
    assert callback.journal_path is None


# ---------------------------------------------------------------- remote folders


@pytest.mark.parametrize("make", [BatchSizeScaler, GradientNoiseScaleMonitor])
@pytest.mark.parametrize("path", ["memory://runs/run.jsonl", "s3://bucket/run.jsonl", Path("gs://bucket/run.jsonl")])
def test_a_remote_path_is_refused_when_the_callback_is_made(make, path):
    with pytest.raises(ValueError, match=r"record must be True, False or a path on this machine, got .*://?"):
        make(record=path)


@pytest.mark.parametrize("kind", MAKE)
def test_record_true_with_a_remote_log_folder_is_refused_and_makes_no_folder_of_that_name(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = pl.Trainer(
        **QUIET, callbacks=[MAKE[kind](True)], max_epochs=1, accumulate_grad_batches=2, default_root_dir="memory://runs"
    )
    module = Regression()
    with pytest.raises(MisconfigurationException, match=r"the log folder is 'memory://runs'. Give a local path"):
        trainer.fit(module, regression_loader(80))
    assert trainer.global_step == 0
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
    again = MAKE[kind](True)
    train(again, tmp_path, ckpt_path=checkpoint, max_epochs=2)
    assert again.journal_path == first.journal_path
    assert read_journal(again.journal_path)[0] == header
    assert measured(again.journal_path) == again.history
    kept = torch.load(checkpoint, weights_only=True)["callbacks"][again.state_key]["journal"]["records"]
    assert 0 < kept < lines
    assert read_journal(again.journal_path)[1][: len(records) // 2 - 1] == records[: len(records) // 2 - 1]
    assert said()[-1] == (
        f"bsscale: continuing the journal {first.journal_path} after {kept} records; the {lines - kept} after "
        "them, which the checkpoint does not know of, are replaced."
    )
    assert {path: path.read_bytes() for path in others} == others


def test_another_runs_journal_of_that_name_is_not_continued(tmp_path, said):
    _, checkpoint = saved(tmp_path / "a")
    other, _ = saved(tmp_path / "b")
    before = other.journal_path.read_bytes()
    again = MAKE["scaler"](True)
    train(again, tmp_path / "b", ckpt_path=checkpoint, max_epochs=2)
    assert other.journal_path.read_bytes() == before
    assert again.journal_path == tmp_path / "b" / "bsscale-v1.jsonl"
    assert "is not continued: the file there is of another run" in said()[-2]


def test_a_resumed_run_in_a_new_log_folder_begins_a_journal_that_names_the_other(tmp_path, said):
    first, checkpoint = saved(tmp_path, logger=CSVLogger(tmp_path, version=0))
    before = first.journal_path.read_bytes()
    again = MAKE["scaler"](True)
    train(again, tmp_path, logger=CSVLogger(tmp_path, version=1), ckpt_path=checkpoint, max_epochs=2)
    assert first.journal_path.parent.name == "version_0"
    assert again.journal_path == first.journal_path.parents[1] / "version_1" / "bsscale.jsonl"
    assert first.journal_path.read_bytes() == before
    header, records = read_journal(again.journal_path)
    continued = header["continues"]
    assert (continued["id"], continued["path"]) == (read_journal(first.journal_path)[0]["id"], str(first.journal_path))
    assert [*read_journal(first.journal_path)[1][: continued["records"]], *records][-1].examples_seen == 160
    assert "is not continued: it is not there any more" in said()[-2]


def holding(path, state):
    """Another process that writes to the journal, until its input ends."""
    code = (
        "import json, sys; from lightning_bsscale.journal import Journal\n"
        "journal = Journal(sys.argv[1], {}, resumes=json.loads(sys.argv[2])); print(journal.path, flush=True)\n"
        "sys.stdin.read(); journal.close()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path), json.dumps(state)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().strip() == str(path)
    return process


@pytest.mark.skipif(not journal_file.HAS_LOCKS, reason="no locks here")
def test_a_journal_that_another_process_writes_is_not_written_to(tmp_path):
    first, checkpoint = saved(tmp_path)
    path, state = first.journal_path, first.state_dict()["journal"]
    with holding(path, state) as process:
        before = path.read_bytes()
        again = MAKE["scaler"](True)
        with pytest.warns(UserWarning, match=r"another process is writing to the journal .*bsscale\.jsonl"):
            train(again, tmp_path, ckpt_path=checkpoint, max_epochs=2)
        assert path.read_bytes() == before
        process.stdin.close()
    assert again.journal_path == tmp_path / "bsscale-v1.jsonl"
    assert read_journal(again.journal_path)[0]["continues"]["id"] == state["id"]
    # The lock ended with the process.
    last = MAKE["scaler"](True)
    train(last, tmp_path, ckpt_path=checkpoint, max_epochs=2)
    assert last.journal_path == path


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
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
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


def test_a_forked_child_does_not_write_to_its_parents_journal(tmp_path):
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
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


def test_where_there_are_no_locks_a_journal_that_is_there_is_never_continued(tmp_path, monkeypatch, said):
    monkeypatch.setattr(journal_file, "HAS_LOCKS", False)
    first, checkpoint = saved(tmp_path)
    before = first.journal_path.read_bytes()
    again = MAKE["scaler"](True)
    train(again, tmp_path, ckpt_path=checkpoint, max_epochs=2)
    assert first.journal_path.read_bytes() == before
    assert again.journal_path == tmp_path / "bsscale-v1.jsonl"
    assert "it cannot be locked here" in said()[-2]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("there", ["pipe", "device", "folder", "3 GiB", "NUL bytes", "deep"])
def test_a_resumed_run_opens_nothing_hostile(tmp_path, there):
    first, checkpoint = saved(tmp_path)
    path = first.journal_path
    lines = path.read_bytes().splitlines(keepends=True)
    path.unlink()
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
        broken = b"\0" * 500 + b"\n" if there == "NUL bytes" else b"[" * 100_000 + b"\n"
        path.write_bytes(b"".join([lines[0] if there == "NUL bytes" else broken, broken, *lines[1:]]))
    before = path.read_bytes() if there in {"NUL bytes", "deep"} else None
    started = time.monotonic()
    again = MAKE["scaler"](True)
    train(again, tmp_path, ckpt_path=checkpoint, max_epochs=2)
    assert time.monotonic() - started < 10
    assert again.journal_path == tmp_path / "bsscale-v1.jsonl"
    if before is not None:
        assert path.read_bytes() == before


def test_a_run_that_is_refused_leaves_no_file_and_no_lock(tmp_path):
    """As under ``python -W error``: what is said at the start may be an error."""
    scaler = scripted(record=True)
    trainer = pl.Trainer(**QUIET, callbacks=[scaler], max_epochs=1, default_root_dir=tmp_path)
    with pytest.raises(UserWarning, match="the noise scale cannot be measured"):
        trainer.fit(Regression(), regression_loader(80))
    assert files(tmp_path) == []
