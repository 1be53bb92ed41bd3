"""Where the callbacks' numbers go: Lightning's log and the journal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_bsscale.callbacks.checks.options import ScalerOptions, is_remote
from lightning_bsscale.callbacks.measurement import GradientMeasurement
from lightning_bsscale.callbacks.state.resume import Start, describe_change
from lightning_bsscale.journal import Journal
from lightning_bsscale.summary import describe_grounds, describe_noise, describe_number, describe_reason
from lightning_bsscale.theory.policies import Limits
from lightning_bsscale.theory.records import DecisionRecord, Measurement

JOURNAL_NAME = "bsscale.jsonl"


def noise_values(measurement: GradientMeasurement) -> dict[str, float]:
    """The logged numbers of what was measured; those of the estimate from the first one on.

    Args:
        measurement: with its estimate, or without one yet

    Returns:
        key without prefix → value; an unknown upper end is inf
    """
    noise = measurement.noise
    counted: dict[str, float] = {"dropped_windows": measurement.dropped, "limited_windows": measurement.limited}
    if noise is None:
        return counted
    return {
        "noise_scale": noise.noise_scale,
        "noise_scale_low": noise.low,
        "noise_scale_high": noise.high,
        "grad_sq_norm": noise.grad_sq,
        "grad_trace_cov": noise.trace,
        **counted,
    }


def is_log_due(trainer: pl.Trainer) -> bool:
    """Whether to log at this optimizer step: where Lightning's loggers take values, and at an epoch's end.

    Args:
        trainer: the Trainer, in `on_train_batch_end` of a window's last micro-batch

    Returns:
        True also at the last step
    """
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(trainer.should_stop or trainer.is_last_batch or (every and trainer.global_step % every == 0))


def log_values(
    trainer: pl.Trainer, pl_module: pl.LightningModule, prefix: str, values: Mapping[str, float], *, show: bool = False
) -> None:
    """Logs numbers at an optimizer step, for loggers and `callback_metrics`.

    Handed to the loggers directly, as LearningRateMonitor does: `LightningModule.log` would cost more than measuring.

    Args:
        trainer: whose loggers take them
        pl_module: through which the progress bar is reached
        prefix: goes before each key
        values: key → value
        show: whether the progress bar shows the batch
    """
    named = {prefix + key: float(value) for key, value in values.items()}
    # Tensors, as everything there is; on the host, so that nothing is copied to the device and back.
    trainer.callback_metrics.update({key: torch.tensor(value, dtype=torch.float64) for key, value in named.items()})
    # The loggers' step is that of the step just made, counted from 0: Lightning's own metrics of it have the same.
    if trainer.log_every_n_steps:  # type: ignore[attr-defined]
        for logger in trainer.loggers:
            logger.log_metrics(named, step=trainer.global_step - 1)
    if show:
        pl_module.log(prefix + "batch_size", named[prefix + "batch_size"], prog_bar=True, logger=False, batch_size=1)


def say_start(batch_size: int, limits: Limits, options: ScalerOptions, *, goes_on: bool) -> None:
    """Says once where the batch begins, and how far it may go where the user did not choose.

    Args:
        batch_size: the batch in force
        limits: of the batch
        options: the scaler's
        goes_on: whether this is a resumed run
    """
    if options.max_batch_size is None:
        begins = "going on" if goes_on else "starting"
        grows = "would grow" if options.dry_run else "grows"
        rank_zero_info(
            f"bsscale: {begins} at a batch of {batch_size} examples; it {grows} to at most {limits.max_batch_size} "
            "(set max_batch_size to choose)."
        )


def say_resumed(first: Start, before: Start, now: Start, batch_before: int, batch_size: int) -> None:
    """Says what a run that goes on changed; nothing where all is as it was.

    Args:
        first: what the plan is counted in
        before: what the run that wrote the checkpoint was counted in
        now: what it goes on with
        batch_before: the batch in the checkpoint, in examples
        batch_size: the batch from now on
    """
    changes = describe_change(before, now)
    if changes:
        stays = "stays" if batch_size == batch_before else f"becomes {batch_size}, the nearest possible one"
        rank_zero_warn(
            f"bsscale: going on with {changes}. The batch of {batch_before} examples {stays}: "
            f"{batch_size // now.granularity} micro-batches a step. Planned steps are still those of the first start, "
            f"{first.batch_size} examples each.",
            category=UserWarning,
        )


def say_unfinished(lost: int, rest: int) -> None:
    """Says what a checkpoint within a window could not hold.

    Args:
        lost: micro-batches of the unfinished window before the checkpoint
        rest: micro-batches of that window still to come; 0 in a dry run, where Lightning steps with them as it does
    """
    then = f"the other {rest} make a window of their own" if rest else "the others are stepped with, divided as before"
    rank_zero_warn(
        f"bsscale: the checkpoint was saved within a window, and no checkpoint holds the gradient of its first "
        f"{lost} micro-batches; {then}. A checkpoint at a window's end loses "
        "nothing: ModelCheckpoint(every_n_train_steps=...), or at an epoch's end.",
        category=UserWarning,
    )


def say_repeated(done: int, announced: int | None, *, waits: bool) -> None:
    """Say that a resumed run begins an epoch anew, as its checkpoint lies beyond the epoch's new length.

    Args:
        done: micro-batches of the epoch before the checkpoint
        announced: micro-batches that the epoch has now
        waits: whether schedulers wait, as the end of training is that of its epochs
    """
    then = "Step-wise schedulers wait until it is where they are" if waits else "Its examples count again"
    rank_zero_warn(
        f"bsscale: the checkpoint was saved after {done} micro-batches of an epoch that now has {announced}, so "
        f"Lightning begins that epoch anew. {then}. A checkpoint at an epoch's end repeats nothing.",
        category=UserWarning,
    )


def say_lost(lost: int, came: int, announced: int | None) -> None:
    """Says that an epoch ended within a window.

    Args:
        lost: micro-batches of the window, which Lightning drops
        came: micro-batches of the epoch
        announced: how many there should have been, or None
    """
    rank_zero_warn(
        f"bsscale: the last {lost} micro-batches of an epoch were not stepped with, as Lightning drops an unfinished "
        f"window: the epoch ended after {came} micro-batches, announced were {announced or 'unknown many'}. Where "
        "training was stopped (EarlyStopping, max_time) that is all, and also where the epoch was left "
        "(on_train_batch_start returned -1) or its last micro-batch was None. Where the loader is shorter than it "
        "says, or than limit_train_batches, mend that; from the second epoch on its real length is used.",
        category=UserWarning,
    )


def say_decision(record: DecisionRecord, options: ScalerOptions) -> None:
    """One line for a change of the batch, and one for a hold where the user wants to hear it.

    Args:
        record: the decision
        options: the scaler's
    """
    seen, old = describe_number(record.situation.examples_seen), describe_number(record.situation.batch_size)
    grounds, reason = describe_grounds(record), describe_reason(record)
    if record.is_change:
        verb = "would change" if options.dry_run else "changed"
        told = "; ".join(filter(None, [f"noise scale {describe_noise(record.situation.noise)}", grounds]))
        rank_zero_info(
            f"bsscale: after {seen} examples the batch {verb} from {old} to {describe_number(record.batch_size)}, the "
            f"factor on the learning rate to {describe_number(record.lr_scale)} ({record.lr_rule}); {told}: {reason}"
        )
    elif options.verbose:
        told = f" ({grounds})" if grounds else ""
        rank_zero_info(f"bsscale: after {seen} examples the batch stays {old}: {reason}{told}")


def open_journal(
    trainer: pl.Trainer, record: bool | str | Path, header: dict[str, Any], state: Mapping[str, Any] | None
) -> Journal | None:
    """Opens the journal where the user wants one, and says which file it is.

    Args:
        trainer: whose folder is the default
        record: the option: True writes ``bsscale.jsonl`` into the log folder, a path is taken as given
        header: what the first line says
        state: of the run that is resumed; None begins anew

    Returns:
        the journal, or None for `record=False` and on every rank but the first
    """
    if record is False:
        return None
    path = Path(_log_folder(trainer)) / JOURNAL_NAME if record is True else Path(record)
    if not trainer.is_global_zero:
        return None
    resumes = None if state is None else state["journal"]
    journal = Journal(path, header, resumes=resumes)
    with closed_on_error(journal):  # a warning may be made an error
        _say_journal(journal, resumes)
    return journal


@contextmanager
def closed_on_error(journal: Journal | None) -> Iterator[None]:
    """Close a journal where the run that opened it cannot begin.

    Args:
        journal: it, or None

    Yields:
        nothing
    """
    try:
        yield
    except BaseException:
        if journal is not None:
            journal.close()
        raise


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


def journal_state(journal: Journal | None) -> dict[str, Any] | None:
    """What a checkpoint holds of the journal.

    Args:
        journal: it, or None

    Returns:
        its id, path and number of records, or None
    """
    return None if journal is None else journal.state()


def journal_path(journal: Journal | None) -> str | None:
    """The file that a run records to.

    Args:
        journal: it, or None

    Returns:
        its path; None without one, and where it was removed as nothing was recorded
    """
    return None if journal is None or journal.is_removed else str(journal.path)


def write_measurement(journal: Journal | None, measurement: Measurement | None) -> None:
    """Writes a measurement that has arrived.

    Args:
        journal: where, or None
        measurement: what, or None
    """
    if measurement is not None and journal is not None:
        journal.write(measurement)
