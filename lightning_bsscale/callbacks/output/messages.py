"""What a run says while it trains: log lines and warnings."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.optim import Optimizer

from lightning_bsscale.callbacks.checks.options import RunOptions
from lightning_bsscale.summary import describe_grounds, describe_noise, describe_number, describe_reason
from lightning_bsscale.theory.checks import found
from lightning_bsscale.theory.policies import Limits
from lightning_bsscale.theory.records import DecisionRecord
from lightning_bsscale.theory.start import Start, describe_change


def say_start(batch_size: int, limits: Limits, options: RunOptions, *, is_resumed: bool) -> None:
    """Says once where the batch begins, and how far it may go where the user did not choose.

    Args:
        batch_size: the batch in force
        limits: of the batch
        options: the scaler's
        is_resumed: whether this is a resumed run
    """
    if options.max_batch_size is None:
        begins = "going on" if is_resumed else "starting"
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


def say_decision(record: DecisionRecord, options: RunOptions) -> None:
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


def warn_of_own_computation(optimizer: Optimizer) -> None:
    """Say that the optimizer overwrites what the factor was put on.

    Args:
        optimizer: it
    """
    rank_zero_warn(
        f"bsscale: {type(optimizer).__name__} computes its learning rate anew in each step, so the learning-rate "
        "factor has no effect. From here on the factor is 1, while the batch still grows. Turn the optimizer's own "
        "schedule off and use a scheduler, or set lr_rule='none', and no schedule here. This is said once.",
        category=UserWarning,
    )


def warn_of_scheduler_step(pl_module: pl.LightningModule) -> None:
    """Says that there are fewer optimizer steps than planned, to whoever steps a scheduler by their number.

    Args:
        pl_module: the module
    """
    if is_overridden("lr_scheduler_step", pl_module):
        name = type(pl_module).__name__
        rank_zero_warn(
            f"bsscale: {name}.lr_scheduler_step is overridden, and it is called once for each step of your own plan, "
            "of which fewer optimizer steps are made as the batch grows. If it hands self.global_step to the "
            "scheduler (as with timm's step_update), the schedule ends too early: hand it the scaler's planned_steps "
            "instead. If it does not, ignore this.",
            category=UserWarning,
        )


def warn_of_dropped(many: int, *, has_scaler: bool) -> None:
    """Says that nothing can be measured as it goes.

    Args:
        many: measured windows in a row with a gradient that is not finite
        has_scaler: whether a gradient scaler is looking for its scale
    """
    if has_scaler:
        cause = (
            "With 16-bit mixed precision a few at the start are ordinary, while the loss scale is found, and those "
            "steps are skipped; so many mean that the loss itself is NaN or inf, or that the loss scale does not come "
            "down: look at trainer.precision_plugin.scaler.get_scale(), or use precision='bf16-mixed'."
        )
    else:
        cause = (
            "The loss or its gradient is NaN or inf, and the weights probably too by now: lower the learning rate, or "
            "clip the gradient (gradient_clip_val)."
        )
    rank_zero_warn(
        f"bsscale: the last {many} measured windows held a gradient that is not finite. They were dropped: the noise "
        f"scale is still that of the windows before them, or unknown. {cause} Trainer(detect_anomaly=True) names the "
        "operation. This is said once.",
        category=UserWarning,
    )


def warn_of_changed_gradients(parameter: str | None) -> None:
    """Say that nothing is measured where the step's gradient is not the mean of the micro-batches' gradients.

    Args:
        parameter: name of the one that differs most, where it is known
    """
    where = f" (most of all that of {parameter})" if parameter else ""
    rank_zero_warn(
        f"bsscale: the gradient in .grad at the step{where} is not the mean of what the backward passes of its "
        "micro-batches gave: something else changes or adds to .grad, for example on_after_backward, an "
        "on_before_optimizer_step of a callback listed before this one, a .backward() within training_step, or a "
        "zero_grad that keeps old gradients. A noise scale of the two together would be wrong, so nothing is measured, "
        "what was measured is discarded, and the batch stays. Change gradients in tensor hooks that are registered "
        "before training, or after this callback, in on_before_optimizer_step or configure_gradient_clipping of the "
        "module; return the whole loss from training_step. The comparison is repeated now and then, and measuring "
        "begins again where it agrees. This is said once.",
        category=UserWarning,
    )


def warn_of_no_decision(policy: Any, answer: Any) -> None:
    """Warn that a policy answered something else than a decision.

    Args:
        policy: the policy
        answer: what it answered
    """
    rank_zero_warn(
        f"{type(policy).__name__}.decide answered {found(answer)}; a Decision with a finite positive "
        "batch_size is needed. The batch is held; this is said once.",
        category=UserWarning,
    )
