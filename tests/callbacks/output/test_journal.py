"""Where a run's journal is written."""

import json

import lightning.pytorch as pl
import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger

from lightning_bsscale.callbacks.output.journal import open_journal
from tests.helpers.records import DECISION, MEASUREMENT
from tests.helpers.simulated_run import Host, Program
from tests.helpers.training import QUIET

RUN = Host.begin(Program())


def journal_in(tmp_path, record, resumes=None, **settings):
    trainer = pl.Trainer(**{**QUIET, "default_root_dir": tmp_path, **settings})
    return open_journal(trainer, record, RUN.settings, RUN.state, resumes)


def events(path):
    with open(path) as lines:
        return [json.loads(line)["event"] for line in lines]


def test_without_record_there_is_none(tmp_path):
    journal = journal_in(tmp_path, False)
    journal.give_up()
    journal.close()
    assert (journal.path, journal.state(), list(tmp_path.iterdir())) == (None, None, [])


@pytest.mark.parametrize("record", [True, "given"])
def test_it_is_where_the_user_wants_it(tmp_path, record):
    logger = CSVLogger(tmp_path, name="runs", version=3)
    path = tmp_path / "runs" / "version_3" / "bsscale.jsonl" if record is True else tmp_path / "mine.jsonl"
    journal = journal_in(tmp_path, True if record is True else str(path), logger=logger)
    journal._write(MEASUREMENT)
    journal._write(DECISION)
    assert (journal.path, journal.state()["records"]) == (str(path), 2)
    journal.close()
    journal.close()
    assert events(path) == ["header", "measurement", "decision"]
    assert journal.path == str(path)


def test_one_without_a_record_leaves_no_file(tmp_path):
    journal = journal_in(tmp_path, True)
    journal.close()
    assert (journal.path, list(tmp_path.iterdir())) == (None, [])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_it_is_closed_where_its_run_cannot_begin(tmp_path, error):
    journal = journal_in(tmp_path, True)
    with pytest.raises(error), journal.closed_on_error():
        raise error
    assert not (tmp_path / "bsscale.jsonl").exists()  # closed, and removed as it is empty
    journal = journal_in(tmp_path, True)
    with journal.closed_on_error():
        journal.give_up()
    assert journal.state()["records"] == 1
    journal.close()


def test_a_resumed_run_continues_it(tmp_path):
    journal = journal_in(tmp_path, True)
    journal._write(MEASUREMENT)
    state = journal.state()
    journal._write(DECISION)  # beyond the checkpoint
    journal.close()
    again = journal_in(tmp_path, True, resumes=state)
    assert (again.path, again.state()["id"]) == (journal.path, state["id"])
    again.close()
    assert events(again.path) == ["header", "measurement", "resumed"]


def test_a_remote_log_folder_is_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match="memory://runs"):
        journal_in(tmp_path, True, default_root_dir="memory://runs")
