"""The order of a probe: the noise scale, the first branch, as many offsets as the time allows, and the answer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_bsscale.callbacks.output.quiet import quiet
from lightning_bsscale.callbacks.trainer.batches import part_of, rows_of
from lightning_bsscale.callbacks.trainer.chosen_rules import choose_rule
from lightning_bsscale.critical_batch.branch_file import BranchFile
from lightning_bsscale.critical_batch.checkpoint import BranchingPoint, branching_point
from lightning_bsscale.critical_batch.plan import BranchPlan, plan_branches
from lightning_bsscale.critical_batch.probe import Probe, ProbeError
from lightning_bsscale.critical_batch.trainers import Trainers
from lightning_bsscale.critical_batch.training_data import TrainingData, fingerprint
from lightning_bsscale.theory.branching import critical_batch, ratio_to_noise_scale
from lightning_bsscale.theory.checks import check_integer, check_number, show
from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.noise_report import NoiseReport
from lightning_bsscale.theory.rules import FOR_FIXED_BATCHES, LearningRateRule
from lightning_bsscale.theory.stored import as_plain

__all__ = ["measure_critical_batch"]

MIN_OFFSETS = 3
MAX_OFFSETS = 64


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
            accumulate_grad_batches. One device. Where the checkpoint holds the state of a `BatchSizeScaler`, its batch
            and factor are used instead of accumulate_grad_batches.
        multiples: Batches of the branches, relative to the batch at the branching point, ascending.
        lr_rule: How the learning rate follows the batch, as for `BatchSizeScaler`; but ``"auto"`` is the square root
            for Adam and its relatives, since a branch has no decay in which a steeper rule pays.
        lr_cap: Largest factor on the learning rate; None for no ceiling.
        examples: Examples of each branch; None for 8 steps of the largest batch.
        offsets: Parts of the data to branch on; None for as many as `minutes` allow, from 3 to 64.
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
        first = stream.first()
        point = branching_point(trainers.checkpoint, rows_of(first), trainers.accumulate)
        plan, notes = plan_branches(module, first, point.accumulate, multiples, examples)
        settings = _settings(plan, point, lr_rule, lr_cap, seed, ckpt_path)
        lines = BranchFile(Path(record), settings)
        start_loss = lines.once("start_loss", lambda: trainers.held_out_loss(None))
        noise, report = _noise(lines, lambda: trainers.noise(train_loader, relative_error, each, 15 * minutes))
        if report is not None:
            say(report.sentence())
        rule = choose_rule(lr_rule, lr_cap, FOR_FIXED_BATCHES, trainers.optimizer())
        run = _Branches(trainers, stream, plan, point, rule, noise, lines)
        number = _all_offsets(run, offsets, started, 60 * minutes, say)
    losses = [[lines.loss(offset, branch.batch_size) for branch in plan.branches] for offset in range(number)]
    earlier = [lines.earlier(offset, plan.branches[0].batch_size) for offset in range(number)]
    answer = critical_batch(settings["batch_sizes"], start_loss, losses, earlier, confidence=each, tolerance=tolerance)
    return Probe(
        answer=answer,
        noise=noise,
        report=report,
        ratio=ratio_to_noise_scale(answer, noise),
        start_loss=start_loss,
        batch_size=plan.batch_size,
        examples=plan.examples,
        seconds=lines.seconds,
        notes=(*point.notes, *notes),
    )


@dataclass(slots=True)
class _Branches:
    """Makes the branches that are still missing."""

    trainers: Trainers
    stream: TrainingData
    plan: BranchPlan
    point: BranchingPoint
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
            looks = self.plan.looks if branch is self.plan.branches[0] else []
            began, factor = time.monotonic(), self._factor(branch.batch_size)
            loss, earlier = self.trainers.branch(used, branch.accumulate, factor, looks)
            self.lines.add(offset, branch.batch_size, loss, time.monotonic() - began, data, earlier)

    def _factor(self, batch_size: float) -> float:
        path = self.point.path
        if batch_size != self.plan.batch_size:
            path = path.extended(self.rule, self.plan.batch_size, batch_size, self.noise)
        return path.factor(self.rule) * self.point.schedule

    def seconds(self) -> float:
        """Forecast the seconds of an offset, from the medians of what its branches took before.

        Over the same examples a larger batch takes no longer than a smaller one, so a branch that was held up by
        something else is not believed.

        Returns:
            The seconds.
        """
        least, total = math.inf, 0.0
        for branch in self.plan.branches:
            median = self.lines.median_seconds(branch.batch_size)
            least = least if median is None else min(least, median)
            total += least
        return total


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


def _settings(
    plan: BranchPlan, point: BranchingPoint, lr_rule: object, lr_cap: float | None, seed: int, ckpt_path: Any
) -> dict[str, Any]:
    """Return what the branches of one file have in common."""
    return {
        "batch_sizes": [branch.batch_size for branch in plan.branches],
        "loader_batches": plan.loader_batches,
        "looks": plan.looks,
        "factor": point.path.product * point.schedule,
        "rule": show(lr_rule),
        "cap": lr_cap,
        "seed": seed,
        "checkpoint": None if ckpt_path is None else Path(ckpt_path).name,
    }


def _all_offsets(
    run: _Branches, offsets: int | None, started: float, seconds: float, say: Callable[[str], None]
) -> int:
    """Make all branches, and return the number of offsets: those asked for, or as many as the time allows.

    The clock alone decides, and never a loss, so that no result can stop the measurement.

    Args:
        run: Makes the branches of an offset.
        offsets: The number asked for, or None.
        started: When the measurement began.
        seconds: What it may take.
        say: Is called with the forecast.

    Returns:
        The number of offsets.

    Raises:
        ProbeError: If the time is too short for the fewest.
    """
    wanted = None if offsets is None else check_integer("offsets", offsets, at_least=2)
    wanted = run.lines.known("offsets", wanted)
    run.finish(0, only_first=True)
    number = 0
    while number < (MAX_OFFSETS if wanted is None else wanted):
        each, passed = max(1e-3, run.seconds()), time.monotonic() - started  # a clock may not see a short branch
        affordable = number + int(max(0.0, seconds - passed) / each)
        if wanted is None and number == 0 and affordable < MIN_OFFSETS:
            raise ProbeError(
                f"{MIN_OFFSETS} offsets need about {_clock(each * MIN_OFFSETS)}, but "
                f"{_clock(max(0.0, seconds - passed))} are left: allow more minutes, or fewer examples or held-out "
                "examples"
            )
        if wanted is None and number >= MIN_OFFSETS and affordable <= number:
            break
        total = min(max(affordable, MIN_OFFSETS), MAX_OFFSETS) if wanted is None else wanted
        left = f"about {_clock(each * (total - number))} to go"
        if number == 0:
            say(
                f"forecast: {total} offsets of {len(run.plan.branches)} branches over {run.plan.examples:,} examples "
                f"each, {left}"
            )
        elif number & (number - 1) == 0:
            say(f"offset {number} of {'' if wanted else 'about '}{total} done after {_clock(passed)}, {left}")
        run.finish(number)
        number += 1
    say(f"{number} offsets done after {_clock(time.monotonic() - started)}")
    return int(run.lines.once("offsets", lambda: number))


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
