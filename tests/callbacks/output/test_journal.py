"""A run's journal where the run cannot begin; what is written in one is in scenarios/test_journals.py."""

import lightning.pytorch as pl
import pytest

from lightning_bsscale.callbacks.output.journal import open_journal
from lightning_bsscale.theory.pace import Pace
from lightning_bsscale.theory.profile import RunProfile
from tests.helpers.simulated_run import Host, Program
from tests.helpers.training import QUIET

RUN = Host.begin(Program())


def journal_in(tmp_path):
    trainer = pl.Trainer(**QUIET, default_root_dir=tmp_path)
    return open_journal(trainer, True, RUN.settings, RUN.state, RunProfile(), Pace(), None)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_it_is_closed_where_its_run_cannot_begin(tmp_path, error):
    journal = journal_in(tmp_path)
    with pytest.raises(error), journal.closed_on_error():
        raise error
    assert not (tmp_path / "bsscale.jsonl").exists()  # closed, and removed as it is empty
    journal = journal_in(tmp_path)
    with journal.closed_on_error():
        journal.give_up()
    assert journal.state()["records"] == 1
    journal.close()
