"""The critical batch by branching: short trainings from one checkpoint at several batches, compared on held-out data.

`theory/branching.py` says what is measured and how it is judged. Here the branches are made, each by a Trainer of its
own: the same state, the same examples in the same order, the learning rate by the rule, no scheduler (a branch is a
moment of the training). Finished branches are lines of a file, so that a stopped measurement goes on where it was.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import logging
import math
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_bsscale.callbacks.checks.preflight import choose_rule
from lightning_bsscale.callbacks.trainer.batches import CannotRegroup, part_of, rows_of
from lightning_bsscale.callbacks.trainer.learning_rate import ScopedFactor, reset_to_initial
from lightning_bsscale.functional import measure_noise_scale
from lightning_bsscale.theory.branching import BranchAnswer, Ratio, critical_batch, ratio_to_noise_scale
from lightning_bsscale.theory.checks import check_integer, check_number, show
from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.noise_report import NoiseReport
from lightning_bsscale.theory.rules import FactorPath, LearningRateRule
from lightning_bsscale.theory.stored import as_plain

__all__ = ["Probe", "ProbeError", "measure_critical_batch"]

MIN_OFFSETS = 3
MAX_OFFSETS = 16
STEPS_OF_LARGEST = 8
_OWN: dict[str, Any] = {
    "max_epochs": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


class ProbeError(Exception):
    """Why the critical batch cannot be measured, in one sentence with a way out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The critical batch, the noise scale at the same parameters, and their ratio.

    Attributes:
        answer: The critical batch by branching, with a row for each batch.
        noise: B_simple at the branching point.
        report: The whole measurement of it; None if it was read from the file of a stopped probe.
        ratio: `critical batch / noise scale`, for `NoiseScalePolicy(target_ratio=...)`; its interval covers with the
            confidence asked for, as both intervals are wider (half the error each).
        batch_size: The batch at the branching point, in examples.
        examples: Examples of each branch.
        seconds: Seconds that the branches took, those of a stopped probe included.
        notes: What else the reader must know, as sentences.
    """

    answer: BranchAnswer
    noise: NoiseScale
    report: NoiseReport | None
    ratio: Ratio
    batch_size: float
    examples: float
    seconds: float
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the numbers for `probe.json`: unknown ones are None."""
        noise, answer = self.noise, self.answer
        return {
            "critical_batch_ratio": self.ratio.to_json(),
            "critical_batch_size": Ratio(value=answer.value, low=answer.low, high=answer.high).to_json(),
            "noise_scale": Ratio(value=noise.noise_scale, low=noise.low, high=noise.high).to_json(),
            "resolved": answer.resolved,
            "confidence": 1 - 2 * (1 - answer.confidence),
            "reason": answer.reason,
            "batch_size": self.batch_size,
            "examples_per_branch": self.examples,
            "offsets": answer.offsets,
            "branches": [
                {**{name: _finite(value) for name, value in as_plain(row).items()}, "verdict": row.verdict.value}
                for row in answer.rows
            ],
            "seconds": self.seconds,
            "notes": list(self.notes),
        }


def _finite(value: Any) -> Any:
    return None if value in {"inf", "-inf", "nan"} else value


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
        record: File of finished branches (JSON lines). If it exists, the probe goes on from it.
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
    with isolate_rng(), _quiet():
        trainers = _Trainers(module, val_loader, datamodule, dict(trainer_options or {}), ckpt_path, monitor, seed)
        trainers.limit_held_out(held_out_examples)
        stream = _Stream(train_loader, seed)
        plan, notes = _plan(module, stream.first(), trainers.accumulate, multiples, examples)
        settings = _settings(plan, lr_rule, lr_cap, seed, ckpt_path)
        lines = _Lines(Path(record), settings)
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


@dataclass(frozen=True, slots=True)
class _Branch:
    """One batch: how many loader batches a step has, and whether each is computed as two halves, a step each."""

    batch_size: float
    accumulate: int
    halves: bool = False


@dataclass(frozen=True, slots=True)
class _Plan:
    branches: tuple[_Branch, ...]
    loader_batches: int
    rows: int
    batch_size: float


def _plan(
    module: pl.LightningModule, first: Any, accumulate: int, multiples: Sequence[float], examples: int | None
) -> tuple[_Plan, list[str]]:
    rows, notes = rows_of(first), []
    wanted = [check_number("multiples", multiple, above=0) for multiple in multiples]
    if len(wanted) < 2 or sorted(set(wanted)) != wanted:
        raise ProbeError(f"multiples must be at least two, each larger than the one before, got {list(multiples)}")
    base = accumulate
    if wanted[0] * base == 0.5 and not _can_split(module, first, rows):
        base = 2 * accumulate
        notes.append(
            "A loader batch cannot be split into two steps here, so it is taken as the first multiple, "
            f"{wanted[0]:g}: the others follow from it."
        )
    branches = []
    for multiple in wanted:
        steps = multiple * base
        if steps != round(steps) and steps != 0.5:
            raise ProbeError(
                f"multiples must give whole numbers of loader batches (or half of one), but {multiple:g} x {base} "
                "is not: choose others, such as 0.5 1 2 4 8"
            )
        branches.append(_Branch(steps * rows, max(1, round(steps)), halves=steps == 0.5))
    longest = branches[-1].accumulate
    windows = STEPS_OF_LARGEST if examples is None else max(1, math.ceil(examples / rows / longest))
    return _Plan(tuple(branches), windows * longest, rows, float(accumulate * rows)), notes


def _can_split(module: pl.LightningModule, batch: Any, rows: int) -> bool:
    if rows < 2 or any(isinstance(part, _BatchNorm) for part in module.modules()):
        return False
    try:
        part_of(batch, 0, rows // 2)
    except CannotRegroup:
        return False
    return True


class _Loader:
    """Batches as a loader, so that Lightning does not take a list for several loaders."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)


class _Stream:
    """The training data in an order that depends on the seed alone, part after part."""

    def __init__(self, loader: Any, seed: int) -> None:
        self._loader, self._seed, self._next, self._rows = loader, seed, 0, 0
        self._batches: Iterator[Any] = iter(())

    def first(self) -> Any:
        """Return the first loader batch, and begin anew."""
        with self._seeded(0):
            batch = next(iter(self._loader), None)
        if batch is None:
            raise ProbeError("the training loader yields nothing: pass one with batches")
        self._rows = rows_of(batch)
        return batch

    def part(self, offset: int, length: int) -> list[Any]:
        """Return the loader batches of an offset; the ones before it are read and dropped."""
        if offset < self._next:
            self._next, self._batches = 0, iter(())
        batches: list[Any] = []
        while self._next <= offset:
            with self._seeded(1 + self._next):
                batches = [self._take() for _ in range(length)]
            self._next += 1
        return batches

    def _take(self) -> Any:
        misses = 0
        while misses < 2:
            for batch in self._batches:
                if rows_of(batch) == self._rows:
                    return batch
            self._batches, misses = iter(self._loader), misses + 1
        raise ProbeError(f"the training loader yields no second batch of {self._rows} examples")

    @contextmanager
    def _seeded(self, number: int) -> Iterator[None]:
        with isolate_rng():
            mixed = (1_000_003 * self._seed + number) % 2**31
            torch.manual_seed(mixed)
            random.seed(mixed)
            np.random.seed(mixed)
            generator = getattr(self._loader, "generator", None) if number <= 1 else None
            if isinstance(generator, torch.Generator):
                generator.manual_seed(mixed)
            yield


class _StartState(pl.Callback):
    """Puts a branch into the checkpoint's state, and its factor on the learning rate."""

    def __init__(self, checkpoint: dict[str, Any] | None, factor: float) -> None:
        self._checkpoint, self._factor = checkpoint, factor
        self.optimizer: Any = None
        self._scoped: ScopedFactor | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if len(trainer.optimizers) != 1 or not pl_module.automatic_optimization:
            raise ProbeError("the module must have one optimizer and automatic optimization")
        self.optimizer = trainer.optimizers[0]
        trainer.strategy.lr_scheduler_configs = []  # the learning rate of a branch is that of its moment
        if self._checkpoint is None:
            reset_to_initial(self.optimizer)
        else:
            load_weights(pl_module, self._checkpoint)
            trainer.strategy.load_optimizer_state_dict(self._checkpoint)
        self._scoped = ScopedFactor(self.optimizer)
        self._scoped.change(self._factor, 1.0)

    def on_train_batch_start(self, *_: Any) -> None:
        if self._scoped is not None:
            self._scoped.begin_window()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._scoped is not None:
            self._scoped.remove()


def load_weights(module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
    """Load a checkpoint's weights as Lightning does."""
    module.on_load_checkpoint(checkpoint)
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except (KeyError, RuntimeError) as error:
        raise ProbeError(f"the checkpoint does not fit the module: {' '.join(str(error).split())[:300]}") from error


class _Measuring(_StartState):
    """Measures the noise scale where training would begin, and stops."""

    def __init__(self, checkpoint: dict[str, Any] | None, measure: Callable[..., NoiseReport | None]) -> None:
        super().__init__(checkpoint, 1.0)
        self._measure = measure
        self.report: NoiseReport | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.report = self._measure(trainer, pl_module, self.optimizer)
        trainer.fit_loop.epoch_loop.max_steps = 0


@dataclass(slots=True)
class _Trainers:
    """Makes Trainers: for branches, for the noise scale, and for the held-out loss."""

    module: pl.LightningModule
    val_loader: Any
    datamodule: pl.LightningDataModule | None
    options: dict[str, Any]
    ckpt_path: str | Path | None
    monitor: str | None
    seed: int
    checkpoint: dict[str, Any] | None = None
    accumulate: int = 1
    _limit: int = 1

    def __post_init__(self) -> None:
        accumulate = self.options.pop("accumulate_grad_batches", 1)
        self.accumulate = check_integer("accumulate_grad_batches", accumulate, at_least=1)
        for name in ("max_epochs", "max_steps", "callbacks", "default_root_dir", "val_check_interval", *_OWN):
            self.options.pop(name, None)
        for name in ("limit_train_batches", "limit_val_batches", "min_epochs", "min_steps", "max_time"):
            self.options.pop(name, None)
        self.options["devices"] = self.options.get("devices", 1)
        if self.ckpt_path is not None:
            try:
                self.checkpoint = torch.load(self.ckpt_path, map_location="cpu", weights_only=False)
            except (OSError, RuntimeError, EOFError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise ProbeError(f"the checkpoint {self.ckpt_path} cannot be read: {reason}") from error
            if (
                not isinstance(self.checkpoint, dict)
                or not {"state_dict", "optimizer_states"} <= self.checkpoint.keys()
            ):
                raise ProbeError(f"{self.ckpt_path} is no checkpoint of Lightning's Trainer with an optimizer's state")

    def limit_held_out(self, examples: int) -> None:
        """Use so many held-out examples at most."""
        first = next(iter(self.val_loader), None)
        if first is None:
            raise ProbeError("the validation loader yields nothing: pass one with held-out examples")
        self._limit = max(1, check_integer("held_out_examples", examples, at_least=1) // max(1, rows_of(first)))

    def _trainer(self, callback: pl.Callback, accumulate: int) -> pl.Trainer:
        trainer = pl.Trainer(
            **self.options,
            **_OWN,
            accumulate_grad_batches=accumulate,
            callbacks=[callback],
            limit_val_batches=0,
        )
        if trainer.world_size != 1:
            raise ProbeError(f"branches run on one device, but the Trainer has {trainer.world_size}: pass devices=1")
        return trainer

    def _fit(self, module: pl.LightningModule, callback: pl.Callback, batches: Any, accumulate: int) -> None:
        with isolate_rng():
            torch.manual_seed(self.seed)
            trainer, loader = self._trainer(callback, accumulate), _Loader(batches)
            if self.datamodule is None:
                trainer.fit(module, loader)
            else:
                data: Any = copy.copy(self.datamodule)
                data.train_dataloader = lambda: loader
                trainer.fit(module, datamodule=data)

    def branch(self, batches: Sequence[Any], accumulate: int, factor: float) -> float:
        """Train one branch and return its held-out loss."""
        module = copy.deepcopy(self.module)
        self._fit(module, _StartState(self.checkpoint, factor), batches, accumulate)
        return self.held_out_loss(module)

    def held_out_loss(self, module: pl.LightningModule | None) -> float:
        """Return the monitored metric; without a module that of the state to branch from."""
        if module is None:
            module = copy.deepcopy(self.module)
            if self.checkpoint is not None:
                load_weights(module, self.checkpoint)
        trainer = pl.Trainer(**self.options, **_OWN, limit_val_batches=self._limit)
        data: Any = None
        if self.datamodule is not None:
            data = copy.copy(self.datamodule)
            data.val_dataloader = lambda: self.val_loader
        with isolate_rng():
            torch.manual_seed(self.seed)
            found = trainer.validate(module, None if data else self.val_loader, verbose=False, datamodule=data)
        logged = dict(found[0]) if found else {}
        return float(logged[self._monitored(logged)])

    def _monitored(self, logged: dict[str, float]) -> str:
        candidates = [name for name in logged if "loss" in name.lower()]
        name = self.monitor or ("val_loss" if "val_loss" in logged else candidates[0] if len(candidates) == 1 else "")
        if name not in logged:
            listed = ", ".join(sorted(logged)) or "nothing"
            wanted = repr(self.monitor) if self.monitor else "a loss such as 'val_loss'"
            raise ProbeError(f"validation must log {wanted}, but it logs {listed}: name the metric by `monitor`")
        return name

    def noise(self, loader: Any, relative_error: float, confidence: float, seconds: float) -> NoiseReport:
        """Measure the noise scale at the state to branch from."""

        def measure(trainer: pl.Trainer, module: pl.LightningModule, optimizer: Any) -> NoiseReport:
            def loss(_: Any, batch: Any) -> Tensor:
                batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
                with trainer.precision_plugin.train_step_context():
                    output: Any = module.training_step(*_step_arguments(module, batch))
                found: Tensor = output["loss"] if isinstance(output, dict) else output
                return found

            with _without_logging(module):
                return measure_noise_scale(
                    module,
                    loader,
                    loss,
                    relative_error=relative_error,
                    confidence=confidence,
                    max_seconds=seconds,
                    optimizer=optimizer if self.checkpoint is not None else None,
                    batch_size_fn=rows_of,
                )

        callback = _Measuring(self.checkpoint, measure)
        self._fit(copy.deepcopy(self.module), callback, [next(iter(loader))], 1)
        assert callback.report is not None
        return callback.report

    def optimizer(self) -> Any:
        """Return the optimizer that the module makes, to choose the rule by its class."""
        callback = _Measuring(None, lambda *_: None)
        self._fit(copy.deepcopy(self.module), callback, [next(iter(self.val_loader))], 1)
        return callback.optimizer


def _step_arguments(module: pl.LightningModule, batch: Any) -> list[Any]:
    code = module.training_step.__code__
    return [batch, 0][: max(1, code.co_argcount - 1)]


@contextmanager
def _without_logging(module: pl.LightningModule) -> Iterator[None]:
    names = ("log", "log_dict")
    for name in names:
        module.__dict__[name] = lambda *_, **__: None
    try:
        yield
    finally:
        for name in names:
            del module.__dict__[name]


@dataclass(slots=True)
class _Branches:
    """Makes the branches that are still missing."""

    trainers: _Trainers
    stream: _Stream
    plan: _Plan
    rule: LearningRateRule
    noise: NoiseScale
    lines: _Lines

    def finish(self, offset: int, *, only_first: bool = False) -> None:
        branches = self.plan.branches[:1] if only_first else self.plan.branches
        if all(self.lines.has(offset, branch.batch_size) for branch in branches):
            return
        batches = self.stream.part(offset, self.plan.loader_batches)
        data = _fingerprint(batches[0])
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


def _fingerprint(batch: Any) -> str:
    buffer = io.BytesIO()
    torch.save(batch, buffer)
    return hashlib.sha256(buffer.getvalue()).hexdigest()[:16]


@dataclass(slots=True)
class _Lines:
    """The file of finished branches."""

    path: Path
    settings: dict[str, Any]
    _values: dict[str, Any] = field(default_factory=dict)
    _branches: dict[tuple[int, float], dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.path.exists() or not self.path.stat().st_size:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._append({"settings": self.settings})
            return
        for number, text in enumerate(self.path.read_text(encoding="utf-8").splitlines()):
            try:
                line = json.loads(text)
            except ValueError:
                continue  # torn by a kill: what it held is measured again
            if number == 0 and line.get("settings") != self.settings:
                raise ProbeError(
                    f"{self.path} holds branches of another probe ({show(line.get('settings'))} instead of "
                    f"{show(self.settings)}): name another file, or remove it"
                )
            if "branch" in line:
                self._branches[line["branch"][0], line["branch"][1]] = line
            self._values.update(line.get("value", {}))

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return a value of the file, or compute and write it."""
        if name not in self._values:
            self._values[name] = compute()
            self._append({"value": {name: self._values[name]}})
        return self._values[name]

    def add(self, offset: int, batch_size: float, loss: float, seconds: float, data: str) -> None:
        plain = loss if math.isfinite(loss) else str(loss)
        line = {"branch": [offset, batch_size], "loss": plain, "seconds": round(seconds, 3), "data": data}
        self._branches[offset, batch_size] = line
        self._append(line)

    def has(self, offset: int, batch_size: float, data: str | None = None) -> bool:
        line = self._branches.get((offset, batch_size))
        return line is not None and (data is None or line["data"] == data)

    def loss(self, offset: int, batch_size: float) -> float:
        return float(self._branches[offset, batch_size]["loss"])

    @property
    def seconds(self) -> float:
        return float(sum(line["seconds"] for line in self._branches.values()))

    def slowest(self) -> float:
        return float(max(line["seconds"] for line in self._branches.values()))


def _noise(lines: _Lines, measure: Callable[[], NoiseReport]) -> tuple[NoiseScale, NoiseReport | None]:
    """Read the noise scale from the file, or measure it."""
    report: NoiseReport | None = None

    def compute() -> dict[str, Any]:
        nonlocal report
        report = measure()
        return as_plain(report.noise)

    plain = lines.once("noise_scale", compute)
    numbers: dict[str, Any] = {name: v if isinstance(v, bool) else float(v) for name, v in plain.items()}
    return NoiseScale(**numbers), report


def _settings(plan: _Plan, lr_rule: object, lr_cap: float | None, seed: int, ckpt_path: Any) -> dict[str, Any]:
    """Return what the branches of one file have in common."""
    return {
        "batch_sizes": [branch.batch_size for branch in plan.branches],
        "loader_batches": plan.loader_batches,
        "rule": show(lr_rule),
        "cap": lr_cap,
        "seed": seed,
        "checkpoint": None if ckpt_path is None else Path(ckpt_path).name,
    }


def _affordable(plan: _Plan, lines: _Lines, offsets: int | None, seconds: float, say: Callable[[str], None]) -> int:
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


@contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
