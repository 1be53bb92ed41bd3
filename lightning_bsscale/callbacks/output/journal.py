"""The run's journal: which file it is written to, and the messages about that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_bsscale.callbacks.checks.options import is_remote
from lightning_bsscale.journal import Journal
from lightning_bsscale.theory.records import DecisionRecord, Measurement

JOURNAL_NAME = "bsscale.jsonl"


class RunJournal:
    """Writes the records of a run if the user wants a journal; otherwise, and on other ranks, it does nothing.

    Args:
        trainer: the Trainer, whose log folder is the default
        record: the option: True writes ``bsscale.jsonl`` into the log folder, a path is used as it is
        header: content of the first line
        resumes: the journal entry of the resumed checkpoint, or None
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        record: bool | str | Path,
        header: Mapping[str, Any],
        resumes: Mapping[str, Any] | None,
    ) -> None:
        self._journal: Journal | None = None
        if record is False:
            return
        path = Path(_log_folder(trainer)) / JOURNAL_NAME if record is True else Path(record)
        if trainer.is_global_zero:
            self._journal = Journal(path, dict(header), resumes=resumes)
            with self.closed_on_error():  # a warning may be turned into an error
                _log_journal(self._journal, resumes)

    @contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Close the journal if the run that opened it cannot begin."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def write(self, record: Measurement | DecisionRecord | None) -> None:
        """Append a record, if there is one."""
        if self._journal is not None and record is not None:
            self._journal.write(record)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._journal is not None:
            self._journal.close()

    @property
    def path(self) -> str | None:
        """The journal's file; None without a journal, or if the file was removed because nothing was recorded."""
        return None if self._journal is None or self._journal.is_removed else str(self._journal.path)

    def state(self) -> dict[str, Any] | None:
        """Return the journal's id, path and number of records for a checkpoint, or None."""
        return None if self._journal is None else self._journal.state()


def _log_folder(trainer: pl.Trainer) -> str:
    # Called on every rank: Lightning broadcasts the first rank's log folder, and waits for all of them.
    folder = str(trainer.log_dir or trainer.default_root_dir)
    if is_remote(folder):
        raise MisconfigurationException(
            f"record=True writes a local file into the log folder, but the log folder is {folder!r}. Pass a local path "
            "such as record='runs/bsscale.jsonl', and copy the file after training."
        )
    return folder


def _log_journal(journal: Journal, resumes: Mapping[str, Any] | None) -> None:
    if journal.is_continued:
        replaced = f"; {journal.replaced} later records, unknown to the checkpoint, are replaced"
        rank_zero_info(
            f"bsscale: continuing the journal {journal.path} after {journal.records} records"
            f"{replaced if journal.replaced else ''}."
        )
        return
    if resumes is not None and journal.in_use:
        rank_zero_warn(
            f"bsscale: another process is writing to the journal {resumes['path']} of the resumed run, so this run "
            f"records to {journal.path}. Is the same training running twice?",
            category=UserWarning,
        )
        return
    if resumes is not None:
        rank_zero_info(
            f"bsscale: the resumed run's journal {resumes['path']} is not continued: {journal.not_continued}."
        )
    why = "" if journal.path == journal.requested else f" because {journal.requested.name} exists already"
    rank_zero_info(f"bsscale: recording to {journal.path}{why}.")
