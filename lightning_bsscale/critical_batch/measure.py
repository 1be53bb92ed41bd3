"""The order of a probe: the noise scale, the first branch, as many offsets as the time allows, and the answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_bsscale.callbacks.checks.preflight import choose_rule
from lightning_bsscale.callbacks.output.quiet import quiet
from lightning_bsscale.callbacks.trainer.batches import part_of
from lightning_bsscale.critical_batch.branch_file import BranchFile
from lightning_bsscale.critical_batch.plan import BranchPlan, plan_branches
from lightning_bsscale.critical_batch.probe import Probe, ProbeError
from lightning_bsscale.critical_batch.trainers import Trainers
from lightning_bsscale.critical_batch.training_data import TrainingData, fingerprint
from lightning_bsscale.theory.branching import critical_batch, ratio_to_noise_scale
from lightning_bsscale.theory.checks import check_integer, check_number, show
from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.noise_report import NoiseReport
from lightning_bsscale.theory.rules import FactorPath, LearningRateRule
from lightning_bsscale.theory.stored import as_plain

__all__ = ["measure_critical_batch"]

MIN_OFFSETS = 3
MAX_OFFSETS = 16


def measure_critical_batch(
    module: pl.LightningModule,
    train_loader: Any,
    val_loader: Any,
    *,
    record: str | Path,
    datamodule: pl.LightningDataModule | None = None,
    ckpt_path: str | Path | None = None,
    trainer_options: dict[str, Any] | None = None,
    multiples: Sequence[float] = (0.5, 1, 2, 4, 8),
    lr_rule: str | LearningRateRule = "auto",
    lr_cap: float | None = None,
    examples: int | None = None,
    offsets: int | None = None,
    minutes: float = 10.0,
    monitor: str | None = None,
    held_out_examples: int = 2048,
    relative_error: float = 0.2,
    confidence: float = 0.9,
    tolerance: float | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Probe:
    """Measure the critical batch by branches from a checkpoint, and the noise scale at the same parameters.

    Nothing of the caller's is trained: every branch has a copy of the module.

    Args:
        module: The LightningModule, with automatic optimization and a validation step that logs a loss.
        train_loader: What `trainer.fit` would be given; loader batches of another size than the first are left out.
        val_loader: The held-out examples; its batches must come in the same order every time.
        record: File of finished branches (JSON lines). If it exists, the probe resumes from it.
        datamodule: Whose transfer hooks are used, if the loaders are from one.
        ckpt_path: The checkpoint to branch from: weights, optimizer state and learning rate are its. None for the
            module as it is, with a new optimizer at its initial learning rate.
        trainer_options: Options of the Trainer that trained, such as accelerator, precision, gradient_clip_val and
            accumulate_grad_batches. One device.
        multiples: Batches of the branches, relative to the batch at the branching point, ascending.
        lr_rule: How the learning rate follows the batch, as for `BatchSizeScaler`.
        lr_cap: Largest factor on the learning rate; None for no ceiling.
        examples: Examples of each branch; None for 8 steps of the largest batch.
        offsets: Parts of the data to branch on; None for as many as `minutes` allow, from 3 to 16.
        minutes: Time for the whole measurement.
        monitor: The validation metric to compare, a loss; None for `val_loss`, or the only one named so.
        held_out_examples: Largest number of held-out examples to use.
        relative_error: Of the noise scale, as for `measure_noise_scale`.
        confidence: Two-sided confidence of the ratio's interval.
        tolerance: See `theory.branching.critical_batch`.
        seed: Seed of the order of the examples, and of dropout.
        say: Is called with lines about forecast and progress.

    Returns:
        The measurement.

    Raises:
        ProbeError: If it cannot be measured, or not within `minutes`.
    """  # noqa: DOC502
    each = 1 - (1 - check_number("confidence", confidence, above=0, below=1)) / 2
    check_number("minutes", minutes, above=0)
    started = time.monotonic()
    with isolate_rng(), quiet():
        trainers = Trainers(module, val_loader, datamodule, dict(trainer_options or {}), ckpt_path, monitor, seed)
        trainers.limit_held_out(held_out_examples)
        stream = TrainingData(train_loader, seed)
        plan, notes = plan_branches(module, stream.first(), trainers.accumulate, multiples, examples)
        settings = _settings(plan, lr_rule, lr_cap, seed, ckpt_path)
        lines = BranchFile(Path(record), settings)
        start_loss = lines.once("start_loss", lambda: trainers.held_out_loss(None))
        noise, report = _noise(lines, lambda: trainers.noise(train_loader, relative_error, each, 15 * minutes))
        if report is not None:
            say(report.sentence())
        rule = choose_rule(lr_rule, lr_cap, trainers.optimizer())
        run = _Branches(trainers, stream, plan, rule, noise, lines)
        run.finish(0, only_first=True)
        number = _affordable(plan, lines, offsets, 60 * minutes - (time.monotonic() - started), say)
        for offset in range(number):
            run.finish(offset)
            say(f"offset {offset + 1} of {number} done, {_clock(time.monotonic() - started)} so far")
    losses = [[lines.loss(offset, branch.batch_size) for branch in plan.branches] for offset in range(number)]
    answer = critical_batch(settings["batch_sizes"], start_loss, losses, confidence=each, tolerance=tolerance)
    return Probe(
        answer=answer,
        noise=noise,
        report=report,
        ratio=ratio_to_noise_scale(answer, noise),
        batch_size=plan.batch_size,
        examples=plan.loader_batches * plan.rows,
        seconds=lines.seconds,
        notes=tuple(notes),
    )


@dataclass(slots=True)
class _Branches:
    """Makes the branches that are still missing."""

    trainers: Trainers
    stream: TrainingData
    plan: BranchPlan
    rule: LearningRateRule
    noise: NoiseScale
    lines: BranchFile

    def finish(self, offset: int, *, only_first: bool = False) -> None:
        branches = self.plan.branches[:1] if only_first else self.plan.branches
        if all(self.lines.has(offset, branch.batch_size) for branch in branches):
            return
        batches = self.stream.part(offset, self.plan.loader_batches)
        data = fingerprint(batches[0])
        for branch in branches:
            if self.lines.has(offset, branch.batch_size, data):
                continue
            used = batches
            if branch.halves:
                half = self.plan.rows // 2
                pairs = [(part_of(b, 0, half), part_of(b, half, self.plan.rows)) for b in batches]
                used = [part for pair in pairs for part in pair]
            began = time.monotonic()
            loss = self.trainers.branch(used, branch.accumulate, self._factor(branch.batch_size))
            self.lines.add(offset, branch.batch_size, loss, time.monotonic() - began, data)

    def _factor(self, batch_size: float) -> float:
        path = FactorPath()
        if batch_size != self.plan.batch_size:
            path = path.extended(self.rule, self.plan.batch_size, batch_size, self.noise)
        return path.factor(self.rule)


def _noise(lines: BranchFile, measure: Callable[[], NoiseReport]) -> tuple[NoiseScale, NoiseReport | None]:
    """Read the noise scale from the file, or measure it."""
    report: NoiseReport | None = None

    def compute() -> dict[str, Any]:
        nonlocal report
        report = measure()
        return as_plain(report.noise)

    plain = lines.once("noise_scale", compute)
    numbers: dict[str, Any] = {name: v if isinstance(v, bool) else float(v) for name, v in plain.items()}
    return NoiseScale(**numbers), report


def _settings(plan: BranchPlan, lr_rule: object, lr_cap: float | None, seed: int, ckpt_path: Any) -> dict[str, Any]:
    """Return what the branches of one file have in common."""
    return {
        "batch_sizes": [branch.batch_size for branch in plan.branches],
        "loader_batches": plan.loader_batches,
        "rule": show(lr_rule),
        "cap": lr_cap,
        "seed": seed,
        "checkpoint": None if ckpt_path is None else Path(ckpt_path).name,
    }


def _affordable(
    plan: BranchPlan, lines: BranchFile, offsets: int | None, seconds: float, say: Callable[[str], None]
) -> int:
    """Choose the number of offsets before any but the first branch is made, so that no result can stop them."""
    each = lines.slowest() * len(plan.branches)
    number = check_integer("offsets", offsets, at_least=2) if offsets is not None else int(seconds / each)
    if offsets is None and number < MIN_OFFSETS:
        raise ProbeError(
            f"{MIN_OFFSETS} offsets need about {_clock(each * MIN_OFFSETS)} more, but {_clock(max(0.0, seconds))} are "
            "left: allow more minutes, or fewer examples or held-out examples"
        )
    number = min(number, MAX_OFFSETS) if offsets is None else number
    say(
        f"forecast: {number} offsets x {len(plan.branches)} branches of {plan.loader_batches * plan.rows:,} examples, "
        f"about {_clock(each * number)}"
    )
    return int(lines.once("offsets", lambda: number))


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
