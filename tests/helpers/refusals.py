"""What brings each message of docs/errors.md about that needs no training: one trigger a row, keyed by its message."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

from lightning_bsscale import (
    BatchSizeScaler,
    Capped,
    GradientNoiseScale,
    Limits,
    Linear,
    NoiseScalePolicy,
    Power,
    WarmupCosine,
    functional,
)
from lightning_bsscale.cli import main
from lightning_bsscale.figures import plot_noise_scale
from lightning_bsscale.gradients.parameter_hooks import ParameterHooks
from lightning_bsscale.journal import Journal, read_journal, run_header
from lightning_bsscale.journal_file import MAX_LINE_BYTES
from lightning_bsscale.replay import replay
from lightning_bsscale.theory.policies import Decision, Situation
from lightning_bsscale.theory.records import DecisionRecord
from lightning_bsscale.theory.run import begin_run
from lightning_bsscale.theory.schedules import WarmupStep
from tests.helpers.written_runs import settings_of

TRIGGERS: dict[str, Callable[[], object]] = {}


def trigger(message):
    """Registers the function below as what brings `message` about."""

    def register(function):
        assert message not in TRIGGERS, message
        TRIGGERS[message] = function
        return function

    return register


# ---------------------------------------------------------------- when an object is made

ONE_OF = "policy must be one of …, or an object with decide(situation, limits), got …"
RULE = "rule must be one of …, or an object with ratio(old_batch, new_batch, noise), got …"
TRIGGERS |= {
    ONE_OF: lambda: BatchSizeScaler(policy="grow"),
    f"lr_{RULE}": lambda: BatchSizeScaler(lr_rule="quadratic"),
    "lr_cap must be a finite number at least 1, got …": lambda: BatchSizeScaler(lr_cap=0.5),
    "lr_cap=… is a ceiling on the factor on the rate, and lr_rule='none' leaves the rate as it is": lambda: (
        BatchSizeScaler(lr_cap=8, lr_rule="none")
    ),
    "schedule must be one of …, or a Schedule such as WarmupCosine(final=0.05), got …": lambda: BatchSizeScaler(
        schedule="triangle"
    ),
    "warmup (a float is a share of the budget, an int a number of examples) must be a finite number at least 0 and "
    "below 1, got …": lambda: BatchSizeScaler(warmup=1.0),
    "warmup (as a number of examples) must be an integer of at least 0, got …": lambda: BatchSizeScaler(warmup=-3),
    "warmup=… takes all of total_examples=…": lambda: BatchSizeScaler(warmup=100, total_examples=100),
    "total_examples must be an integer of at least 1, got …": lambda: BatchSizeScaler(total_examples=1e6),
    "max_batch_size must be an integer of at least 1, got …": lambda: BatchSizeScaler(max_batch_size=0),
    "measure_every must be an integer of at least 1, got …": lambda: BatchSizeScaler(measure_every=0),
    "probe_every must be an integer of at least 0, got …": lambda: BatchSizeScaler(probe_every=-1),
    "memory (a share of the budget; 1.0 averages over everything) must be a finite number above 0 and at most 1, "
    "got …": lambda: BatchSizeScaler(memory=5),
    "batch_size_fn must be a function from a batch to a number of examples, or None, got …": lambda: BatchSizeScaler(
        batch_size_fn="len"
    ),
    "dry_run must be True or False, got …": lambda: BatchSizeScaler(dry_run=1),
    "progress_bar must be True or False, got …": lambda: BatchSizeScaler(progress_bar=1),
    "verbose must be True or False, got …": lambda: BatchSizeScaler(verbose=1),
    "log_prefix must be a string, got …": lambda: BatchSizeScaler(log_prefix=None),
    "record must be True, False or a path, got …": lambda: BatchSizeScaler(record=None),
    "record must be True, False or the path of a file, got …": lambda: BatchSizeScaler(record=""),
    "record must be True, False or a path on this machine, got …": lambda: BatchSizeScaler(
        record="s3://runs/run.jsonl"
    ),
    "target_ratio must be a finite number above 0, got …": lambda: NoiseScalePolicy(target_ratio=0),
    "confidence must be a finite number at least 0.5 and below 1, got …": lambda: NoiseScalePolicy(confidence=90),
    "max_growth must be a finite number above 1, got …": lambda: NoiseScalePolicy(max_growth=1),
    "hysteresis must be a finite number at least 1, got …": lambda: NoiseScalePolicy(hysteresis=0.5),
    "cooldown must be a finite number at least 0 and below 1, got …": lambda: NoiseScalePolicy(cooldown=1000),
    "allow_shrink must be True or False, got …": lambda: NoiseScalePolicy(allow_shrink=1),
    "exponent must be a finite number at least 0 and at most 1, got …": lambda: Power(exponent=2),
    "rule must be a LearningRateRule such as Sqrt(), got …": lambda: Capped("sqrt", 8),
    "cap must be a finite number at least 1, got …": lambda: Capped(Linear(), 0.5),
    "final must be a finite number …, got …": lambda: WarmupCosine(final=2),
    "milestones must be a sequence of shares of the budget, got …": lambda: WarmupStep(milestones=0.5),
    "milestones[…] must be a finite number above 0 and below 1, got …": lambda: WarmupStep(milestones=(30, 60)),
    "milestones must rise, got …": lambda: WarmupStep(milestones=(0.5, 0.5)),
    "gamma must be a finite number above 0 and at most 1, got …": lambda: WarmupStep(gamma=0),
    "granularity must be an integer of at least 1, got …": lambda: Limits(
        granularity=0, min_batch_size=1, max_batch_size=2
    ),
    "min_batch_size and max_batch_size must have a multiple of granularity between them, got …": lambda: Limits(
        granularity=8, min_batch_size=9, max_batch_size=15
    ),
}

# ---------------------------------------------------------------- journals and figures

HELD = DecisionRecord(
    situation=Situation(batch_size=8, start_batch_size=8, examples_seen=100),
    limits=Limits(granularity=8, min_batch_size=8, max_batch_size=64),
    decision=Decision(batch_size=8, reason="hold"),
    batch_size=8,
    lr_scale=1.0,
    lr_rule="sqrt",
)
SETTINGS = settings_of(100)
FIRST = run_header(SETTINGS, begin_run(SETTINGS, SETTINGS.plan.begin(epoch_batches=100, epoch_examples=400), epoch=0))
HEADER = json.dumps({"event": "header", "schema": 2, **FIRST, "policy": {"class": "Mine", "options": None}})
OTHER = json.dumps(
    {"event": "header", "schema": 2, **FIRST, "policy": {"class": "NoiseScalePolicy", "options": {"bogus": 1}}}
)


def reading(*lines, end="\n"):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.jsonl")
        path.write_text("\n".join(lines) + end)
        return list(replay(path)) if len(lines) == 1 and '"policy"' in lines[0] else read_journal(path)


def without_matplotlib():
    with mock.patch.dict(sys.modules, {"matplotlib.figure": None}):
        plot_noise_scale([])


@trigger("The journal … ends here (…); training goes on")
def _():
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder, "full.jsonl"), {})
        journal._file.close()
        journal._file = io.FileIO(journal.path)  # as good as full: it takes nothing
        journal._line({})


def replay_overflow():
    huge = {"sum_sq_norms": 1e300, "mean_sq_norm": 1e300, "num_samples": 2, "sum_inverse_sizes": 0.0, "examples": 8.0}
    lines = [
        {"event": "header", "schema": 2, **FIRST},
        {"event": "epoch", "epoch": 0, "batches": 100, "examples": 400, "ready": 0},
        {"event": "window", "start": 0, "length": 2, "lr": 0.1, "has_sums": True},
        {"event": "window", "start": 2, "length": 2, "lr": 0.1, "arrived": {"sums": huge}},
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.jsonl")
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return list(replay(path))


def record_too_long():
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder, "run.jsonl"), {})
        journal.write(replace(HELD, decision=replace(HELD.decision, reason="because " * MAX_LINE_BYTES)))
        journal.close()


TRIGGERS |= {
    "… is not a journal: its first line must be a header": lambda: reading("{}"),
    "… has journal schema …; this version reads …": lambda: reading('{"event": "header", "schema": 99}'),
    "…, line … is no JSON: …": lambda: reading(HEADER, "{"),
    "…, line … is no JSON object, got …": lambda: reading(HEADER, "3"),
    "…, line …: unknown event …": lambda: reading(HEADER, '{"event": "party"}'),
    "…, line … is no whole …: …": lambda: reading(HEADER, '{"event": "decision"}'),
    "…, line … is nested too deeply for a record": lambda: reading(HEADER, "[" * 2000),
    "…, line … is longer than … bytes": lambda: reading(HEADER, " " * MAX_LINE_BYTES),
    "… is …; a journal is a regular file": lambda: read_journal(tempfile.gettempdir()),
    "…, line … holds numbers that … cannot work with (…)": replay_overflow,
    "A record of … bytes is too long for the journal …": record_too_long,
    "… was written with other options of …": lambda: reading(OTHER),
    "… was written with the … …, which is not one of …": lambda: reading(HEADER),
    "The last line of … was cut while it was written": lambda: reading(HEADER, '{"event": "dec', end=""),
    "Plots need matplotlib": without_matplotlib,
}

# ---------------------------------------------------------------- without Lightning

WINDOW = ([9.0, 1.0], 4.0, [4, 4])
TRIGGERS |= {
    "… must be a number (or a tensor of one element), got …": lambda: functional.scale_learning_rate("0.1", 64, 128),
    "… must be a sequence of numbers, got …": lambda: functional.noise_scale(9.0, 4.0, 4),
    "… must have one dimension, got the shape …": lambda: GradientNoiseScale().update(
        torch.ones(2, 2), torch.tensor(4.0), [4, 4]
    ),
    "… must have one entry for each window, as mean_sq_norm has, got …": lambda: functional.noise_scale(9.0, [4.0], 4),
    "micro_sq_norms, mean_sq_norm and micro_batch_sizes must have one entry for each window, got …": lambda: (
        functional.noise_scale([[9.0, 1.0]], [4.0, 4.0], [[4, 4]])
    ),
    "micro_sq_norms and micro_batch_sizes must have the same length of at least 2, got …": lambda: (
        functional.noise_scale([9.0], 4.0, [4])
    ),
    "… must be at least 0, got …": lambda: GradientNoiseScale().update([9.0, -1.0], 4.0, [4, 4]),
    "micro_batch_sizes[…] must be a finite number above 0, got …": lambda: functional.noise_scale(
        [9.0, 1.0], 4.0, [4, 0]
    ),
    "confidence must be a finite number above 0 and below 1, got …": lambda: functional.noise_scale(
        *WINDOW, confidence=90
    ),
    RULE: lambda: functional.scale_learning_rate(0.1, 64, 128, "auto"),
    "… must be a finite number above 0, got …": lambda: functional.steps_and_examples(0, 64),
    "lr must be a finite number at least 0, got …": lambda: functional.scale_learning_rate(-0.1, 64, 128),
    "start_sample was called outside a window": lambda: ParameterHooks([]).start_sample(),
    "end_sample was called without a sample": lambda: ParameterHooks([]).end_sample(1),
}

# ---------------------------------------------------------------- on the command line


class Said(Exception):
    """What a command wrote before it ended with a status other than 0."""


def command(*words):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            status = main(words)
        except SystemExit as end:
            status = end.code
    assert status in (1, 2)
    raise Said(out.getvalue().removeprefix("usage:").split("error: argument --epochs: ")[-1])


@trigger("… is not a journal")
def _():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.jsonl")
        path.write_text("{}\n")
        command("replay", str(path))


@trigger("The demo needs …")
def _():
    with mock.patch("importlib.util.find_spec", return_value=None):
        command("demo")


TRIGGERS |= {
    "no such journal: …": lambda: command("replay", "nowhere.jsonl"),
    "… cannot be read: …": lambda: command("replay", "/" + 300 * "n"),
    "must be a whole number of at least 1, found …": lambda: command("demo", "--epochs", "0"),
}
