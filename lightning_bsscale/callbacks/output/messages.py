"""Log lines and warnings during training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.optim import Optimizer

from lightning_bsscale.callbacks.checks.options import RunOptions
from lightning_bsscale.summary import describe_grounds, describe_noise, describe_reason
from lightning_bsscale.theory.checks import show
from lightning_bsscale.theory.numbers import describe_count, describe_number
from lightning_bsscale.theory.policies import Limits
from lightning_bsscale.theory.records import DecisionRecord
from lightning_bsscale.theory.size_search import SizeSearch
from lightning_bsscale.theory.start import Start, describe_change
from lightning_bsscale.verdict import Verdict


def log_start(batch_size: int, limits: Limits, options: RunOptions, *, is_resumed: bool) -> None:
    """Log the first batch size, and the default maximum if the user chose none."""
    if options.max_batch_size is None:
        largest = limits.clip(math.inf)
        begins = "resuming" if is_resumed else "starting"
        grows = "would grow" if options.dry_run else "grows"
        may = f"it {grows} to at most {describe_count(largest)}"
        if largest <= batch_size:
            may = "it cannot grow, as the default limit keeps at least 8 steps in an epoch"
        rank_zero_info(
            f"bsscale: {begins} with a batch of {describe_count(batch_size, options.unit)}; {may} "
            "(to choose, set max_batch_size)."
        )


def warn_changed_start(first: Start, before: Start, now: Start, batch_before: int, batch_size: int, unit: str) -> None:
    """Warn about what differs from the run that is resumed, if anything.

    Args:
        first: the start whose steps the plan counts
        before: the start of the run that wrote the checkpoint
        now: this start
        batch_before: the batch in the checkpoint, in examples
        batch_size: the batch from now on
        unit: what is counted
    """
    changes = describe_change(before, now, unit)
    if changes:
        stays = (
            "stays" if batch_size == batch_before else f"becomes {describe_count(batch_size)}, the nearest possible one"
        )
        rank_zero_warn(
            f"bsscale: resuming with {changes}. The batch of {describe_count(batch_before, unit)} {stays}: "
            f"{batch_size // now.granularity} loader batches per step. Planned steps are still those of the first "
            f"start, {describe_count(first.batch_size, unit)} each.",
            category=UserWarning,
        )


def warn_cut_window(lost: int, rest: int) -> None:
    """Warn that a checkpoint within a window lacks the gradient of its first loader batches.

    Args:
        lost: loader batches of the unfinished window before the checkpoint
        rest: its remaining loader batches, as a window; 0 in a dry run, where Lightning steps with them unchanged
    """
    then = f"the other {rest} form a window" if rest else "the step is made with the others, with the usual divisor"
    rank_zero_warn(
        f"bsscale: the checkpoint was saved within a window. The gradients of the window's first {lost} loader "
        f"batches are lost, and {then}. To lose nothing, save at a window's end with "
        "ModelCheckpoint(every_n_train_steps=...), or at an epoch's end.",
        category=UserWarning,
    )


def warn_repeated_epoch(done: int, announced: int | None, *, waits: bool) -> None:
    """Warn that a resumed run restarts an epoch, because its checkpoint lies beyond the epoch's new length.

    Args:
        done: loader batches of the epoch before the checkpoint
        announced: loader batches of the epoch now
        waits: whether schedulers wait, because epochs end the training
    """
    then = "Step-wise schedulers wait until it reaches their position" if waits else "Its examples count again"
    rank_zero_warn(
        f"bsscale: the checkpoint was saved after {done} loader batches of an epoch that now has {announced}, so "
        f"Lightning restarts that epoch. {then}. To repeat nothing, save at an epoch's end.",
        category=UserWarning,
    )


def warn_dropped_loader_batches(dropped: int, done: int, announced: int | None) -> None:
    """Warn that an epoch ended within a window.

    Args:
        dropped: loader batches of the window, which Lightning drops
        done: loader batches of the epoch
        announced: announced loader batches of the epoch, or None
    """
    of_epoch = f"{done} loader batches" if announced is None else f"{done} of {announced} loader batches"
    rank_zero_warn(
        f"bsscale: dropped the last {dropped} loader batches: the epoch ended after {of_epoch}, and Lightning drops an "
        "unfinished window. If you did not stop training early (EarlyStopping, max_time, on_train_batch_start "
        "returning -1), and the last loader batch was not None, fix the loader's length or limit_train_batches. From "
        "the second epoch on, the real length is used.",
        category=UserWarning,
    )


def log_micro_batches(search: SizeSearch) -> None:
    """Log the size that the search for the largest micro-batch ended with."""
    rank_zero_info(f"bsscale: micro-batches of up to {search.size} examples from now on; {search.ended}.")


def log_decision(record: DecisionRecord, options: RunOptions) -> None:
    """Log a change of the batch, and with `verbose` also a hold."""
    seen = describe_count(record.situation.examples_seen, options.unit)
    old, new = describe_count(record.situation.batch_size), describe_count(record.batch_size)
    grounds, reason = describe_grounds(record), describe_reason(record)
    if record.is_change:
        verb = "would change" if options.dry_run else "changed"
        numbers = "; ".join(filter(None, [f"noise scale {describe_noise(record.situation.noise)}", grounds]))
        rank_zero_info(
            f"bsscale: after {seen} the batch {verb} from {old} to {new}, the "
            f"learning-rate factor to {describe_number(record.lr_scale)} ({record.lr_rule}); {numbers}: {reason}"
        )
    elif options.verbose:
        numbers = f" ({grounds})" if grounds else ""
        rank_zero_info(f"bsscale: after {seen} the batch stays {old}: {reason}{numbers}")


def log_verdict(verdict: Verdict) -> None:
    """Log what a training found, in one paragraph."""
    rank_zero_info(f"bsscale: {verdict}")


def verdict_of_lost_results(record: bool | str | Path) -> Verdict:
    """Return what there is to say where other processes trained, and did not return what they found.

    Args:
        record: the option of that name

    Returns:
        Where the record of the run is.
    """
    headline = "The training ran in other processes, from which no results came back to this one."
    logged = "What the first rank logged is in its output, and what it had decided in the checkpoints"
    if record is False:
        return Verdict(headline, (f"{logged}.",), ("With record=True, a journal keeps what was measured.",))
    name = "bsscale.jsonl in the log folder" if record is True else str(record)
    reason = f"{logged}. The journal, {name}, has all that was measured."
    return Verdict(headline, (reason,), ("Read the journal with the command bsscale summary.",))


def warn_overwritten_factor(optimizer: Optimizer) -> None:
    """Warn that the optimizer overwrites the learning rate, and with it the factor."""
    rank_zero_warn(
        f"bsscale: {type(optimizer).__name__} recomputes its learning rate in each step, so the learning-rate "
        "factor has no effect. From now on the factor is 1, while the batch still grows. Turn off the optimizer's own "
        "schedule and use a scheduler, or set lr_rule='none' and no schedule here. This warning is shown only once.",
        category=UserWarning,
    )


def warn_scheduler_step(pl_module: pl.LightningModule) -> None:
    """Warn about an overridden `lr_scheduler_step` that there are fewer optimizer steps than planned."""
    if is_overridden("lr_scheduler_step", pl_module):
        name = type(pl_module).__name__
        rank_zero_warn(
            f"bsscale: {name}.lr_scheduler_step is overridden. It is called once for each step of your own plan, while "
            "fewer optimizer steps are made as the batch grows. If it passes self.global_step to the scheduler (as "
            "with timm's step_update), the schedule ends too early: pass the scaler's planned_steps instead. If it "
            "does not, ignore this warning.",
            category=UserWarning,
        )


def warn_dropped_windows(many: int, *, has_scaler: bool) -> None:
    """Warn that nothing can be measured.

    Args:
        many: consecutive measured windows with a non-finite gradient
        has_scaler: whether a gradient scaler searches for its scale
    """
    if has_scaler:
        cause = (
            "With 16-bit mixed precision a few are normal at the start, until the loss scale is found; those steps are "
            "skipped. This many mean that the loss itself is NaN or inf, or that the loss scale does not decrease: "
            "check trainer.precision_plugin.scaler.get_scale(), or use precision='bf16-mixed'."
        )
    else:
        cause = (
            "The loss or its gradient is NaN or inf, and by now probably the weights too: lower the learning rate, or "
            "clip the gradient (gradient_clip_val)."
        )
    rank_zero_warn(
        f"bsscale: the last {many} measured windows had a non-finite gradient. They were dropped: the noise scale is "
        f"still that of earlier windows, or unknown. {cause} Trainer(detect_anomaly=True) names the operation. This "
        "warning is shown only once.",
        category=UserWarning,
    )


def warn_changed_gradients(parameter: str | None) -> None:
    """Warn that nothing is measured while the step's gradient is not the mean of the micro-batches' gradients.

    Args:
        parameter: name of the parameter that differs most, if known
    """
    where = f" (most of all for {parameter})" if parameter else ""
    rank_zero_warn(
        f"bsscale: the gradient in .grad at the step{where} is not the mean of its micro-batches' gradients: other "
        "code changes or adds to .grad, for example on_after_backward, an on_before_optimizer_step of a callback "
        "listed before this one, a .backward() within training_step, or a zero_grad that keeps old gradients. The "
        "noise scale would be wrong, so nothing is measured, earlier measurements are discarded, and the batch is "
        "held. Change gradients in tensor hooks that are registered before training, or after this callback, in "
        "on_before_optimizer_step or configure_gradient_clipping of the module; return the whole loss from "
        "training_step. The comparison is repeated from time to time, and measurement resumes when it agrees. This "
        "warning is shown only once.",
        category=UserWarning,
    )


def warn_invalid_decision(policy: Any, answer: Any) -> None:
    """Warn that a policy did not return a decision."""
    rank_zero_warn(
        f"{type(policy).__name__}.decide returned {show(answer)}; expected a Decision with a finite positive "
        "batch_size. The batch is held. This warning is shown only once.",
        category=UserWarning,
    )
