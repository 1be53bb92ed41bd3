"""The run's journal: where it is written, and what is said of it."""

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
    """Writes what a run records, where the user wants a journal; elsewhere, and on other ranks, nothing.

    Args:
        trainer: whose log folder is the default
        record: the option: True writes ``bsscale.jsonl`` into the log folder, a path is taken as given
        header: what the first line says
        resumes: the journal entry of the checkpoint that is resumed, or None
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
            with self.closed_on_error():  # a warning may be made an error
                _say_journal(self._journal, resumes)

    @contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Close the journal where the run that opened it cannot begin.

        Yields:
            nothing
        """
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
        """The file that is recorded to; None without one, and where it was removed as nothing was recorded."""
        return None if self._journal is None or self._journal.is_removed else str(self._journal.path)

    def state(self) -> dict[str, Any] | None:
        """Return what a checkpoint holds of the journal: its id, path and number of records, or None."""
        return None if self._journal is None else self._journal.state()


def _log_folder(trainer: pl.Trainer) -> str:
    # On every rank: Lightning tells all of them the first one's log folder, and waits until all ask.
    folder = str(trainer.log_dir or trainer.default_root_dir)
    if is_remote(folder):
        raise MisconfigurationException(
            f"record=True writes into the log folder, and a journal is a local file; the log folder is {folder!r}. "
            "Give a local path, record='runs/bsscale.jsonl', and copy the file after training."
        )
    return folder


def _say_journal(journal: Journal, resumes: Mapping[str, Any] | None) -> None:
    if journal.is_continued:
        beyond = f"; the {journal.replaced} after them, which the checkpoint does not know of, are replaced"
        rank_zero_info(
            f"bsscale: continuing the journal {journal.path} after {journal.records} records"
            f"{beyond if journal.replaced else ''}."
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
    taken = "" if journal.path == journal.requested else f", as there is a {journal.requested.name} already"
    rank_zero_info(f"bsscale: recording to {journal.path}{taken}.")
