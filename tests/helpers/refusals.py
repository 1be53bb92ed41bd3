"""Everything that can be wrong without a training, and what brings it about."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_bsscale import (
    BatchSizeScaler,
    Beta2,
    Capped,
    Constant,
    GradientNoiseScale,
    GradientNoiseScaleMonitor,
    HoldIfWorse,
    Largest,
    Limits,
    Linear,
    Milestones,
    NoiseScalePolicy,
    NormTest,
    Power,
    Seesaw,
    Sequence,
    Smith,
    WarmupCosine,
    WeightDecay,
    functional,
)
from lightning_bsscale.cli import main
from lightning_bsscale.figures import DrawnRun, plot_comparison, plot_noise_scale
from lightning_bsscale.gradients.parameter_hooks import ParameterHooks
from lightning_bsscale.journal import Journal, read_journal, run_header
from lightning_bsscale.journal_file import MAX_LINE_BYTES
from lightning_bsscale.record_lists import DecisionList
from lightning_bsscale.replay import replay
from lightning_bsscale.simulation.optimum import best_schedule
from lightning_bsscale.simulation.pictures import draw_forecast
from lightning_bsscale.simulation.quadratic import NoisyQuadratic
from lightning_bsscale.theory.hyperparameters import HyperparameterRule, scaled_values
from lightning_bsscale.theory.run import begin_run
from lightning_bsscale.theory.schedules import WarmupStableDecay, WarmupStep
from lightning_bsscale.verdict import read_facts
from lightning_bsscale.what_if import what_if
from tests.helpers.records import DECISION
from tests.helpers.written_runs import settings_of, write_run

ARGUMENT_OR_COMBINATION = (TypeError, ValueError, MisconfigurationException)


@dataclass(frozen=True)
class Case:
    """Something wrong, the words that its message must hold, and what may be raised where it is not a warning."""

    run: Callable[[], object]
    words: str = ""
    error: tuple[type[Exception], ...] = ARGUMENT_OR_COMBINATION


CASES: list[Case] = []


class Broken(HyperparameterRule):
    keys = ("eps",)

    def scaled(self, group, ratio):
        return {"eps": float("nan")}


def probed(content):
    """A policy that reads a probe's file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "probe.json")
        path.write_text(json.dumps(content))
        return NoiseScalePolicy(target_ratio=path)


def case(function):
    """Adds the function below as a case."""
    CASES.append(Case(function))
    return function


# ---------------------------------------------------------------- when an object is made

CASES += [
    Case(lambda: BatchSizeScaler(policy="grow")),
    Case(lambda: BatchSizeScaler(lr_rule="quadratic")),
    Case(lambda: BatchSizeScaler(lr_cap=0.5)),
    Case(lambda: BatchSizeScaler(lr_cap=8, lr_rule="none"), "lr_cap=8 lr_rule"),
    Case(lambda: BatchSizeScaler(lr_cap=8, lr_rule=Constant()), "lr_cap=8 lr_rule"),
    Case(lambda: BatchSizeScaler(schedule="triangle")),
    Case(lambda: BatchSizeScaler(also_scale="beta1")),
    Case(lambda: BatchSizeScaler(also_scale=[Beta2])),
    Case(lambda: BatchSizeScaler(also_scale=["beta2", Beta2(floor=0.9)])),
    Case(lambda: BatchSizeScaler(warmup=1.0)),
    Case(lambda: BatchSizeScaler(warmup=-3)),
    Case(lambda: BatchSizeScaler(warmup=100, total_examples=100)),
    Case(lambda: BatchSizeScaler(total_examples=1e6)),
    Case(lambda: BatchSizeScaler(max_batch_size=0)),
    Case(lambda: BatchSizeScaler(measure_every=0)),
    Case(lambda: BatchSizeScaler(loss_is_mean_over="tokens")),
    Case(lambda: GradientNoiseScaleMonitor(loss_is_mean_over="batch_size_fn")),
    Case(lambda: BatchSizeScaler(max_micro_batch_size=0)),
    Case(lambda: BatchSizeScaler(max_micro_batch_size="large")),
    *(Case(lambda cls=cls: cls(split="half")) for cls in (BatchSizeScaler, GradientNoiseScaleMonitor)),
    Case(lambda: BatchSizeScaler(merge_fn="cat")),
    Case(lambda: BatchSizeScaler(split_fn=3)),
    Case(lambda: BatchSizeScaler(memory=5)),
    Case(lambda: BatchSizeScaler(batch_size_fn="len")),
    Case(lambda: BatchSizeScaler(dry_run=1)),
    Case(lambda: BatchSizeScaler(progress_bar=1)),
    Case(lambda: BatchSizeScaler(verbose=1)),
    Case(lambda: BatchSizeScaler(log_prefix=None)),
    Case(lambda: BatchSizeScaler(log_step=1), "'optimizer' 'examples'"),
    *(Case(lambda cls=cls: cls(log_step="tokens")) for cls in (BatchSizeScaler, GradientNoiseScaleMonitor)),
    *(Case(lambda cls=cls: cls(log_figure="end")) for cls in (BatchSizeScaler, GradientNoiseScaleMonitor)),
    Case(lambda: BatchSizeScaler(unit=None)),
    Case(lambda: GradientNoiseScaleMonitor(unit="")),
    Case(lambda: BatchSizeScaler(unit="tokens\nof a kind")),
    Case(lambda: BatchSizeScaler(record=None)),
    Case(lambda: BatchSizeScaler(record="")),
    Case(lambda: BatchSizeScaler(record="s3://runs/run.jsonl")),
    Case(lambda: NoiseScalePolicy(target_ratio=0)),
    Case(lambda: NoiseScalePolicy(confidence=90)),
    Case(lambda: NoiseScalePolicy(max_growth=1)),
    Case(lambda: NoiseScalePolicy(hysteresis=0.5)),
    Case(lambda: NoiseScalePolicy(cooldown=1000)),
    Case(lambda: NoiseScalePolicy(min_steps=-1)),
    Case(lambda: NoiseScalePolicy(allow_shrink=1)),
    Case(lambda: NoiseScalePolicy(whole_run=1)),
    Case(lambda: NoiseScalePolicy(target_ratio="no/such.json")),
    Case(lambda: probed({})),
    Case(lambda: probed({"critical_batch_ratio": 2})),
    Case(lambda: probed({"critical_batch_ratio": {"value": None, "low": 0.5, "high": None}}), "'low': 0.5"),
    Case(lambda: NoiseScalePolicy(not_before=1.5)),
    Case(lambda: NoiseScalePolicy(not_before=1)),
    Case(lambda: NoiseScalePolicy(step_price="clock", example_price=1)),
    Case(lambda: NoiseScalePolicy(step_price=1, example_price=0)),
    Case(lambda: NoiseScalePolicy(step_price=1)),
    Case(lambda: Seesaw(cut=1)),
    Case(lambda: Smith(gate=0)),
    Case(lambda: Seesaw(form="lion")),
    Case(lambda: NormTest(theta=1)),
    Case(lambda: Milestones(4)),
    Case(lambda: Milestones({})),
    Case(lambda: Milestones({0.5: 2, 0.3: 4})),
    Case(lambda: Milestones({0.5: 2}, unit="tokens")),
    Case(lambda: HoldIfWorse(Seesaw(), monitor=3)),
    Case(lambda: HoldIfWorse(Seesaw(), mode="less")),
    Case(lambda: HoldIfWorse(Seesaw(), tolerance=-1)),
    Case(lambda: HoldIfWorse("seesaw")),
    Case(lambda: Largest([Seesaw(), Seesaw])),
    Case(lambda: Largest(Seesaw())),
    Case(lambda: Largest([Seesaw()])),
    Case(lambda: Sequence([Seesaw(), Smith()], at=0.5)),
    Case(lambda: Sequence([Seesaw(), Smith()], at=[])),
    Case(lambda: Sequence([Seesaw(), Smith(), Smith()], at=[0.5, 0.3])),
    Case(lambda: Power(exponent=2)),
    Case(lambda: scaled_values(Broken(), {}, 2.0)),
    Case(lambda: WeightDecay(exponent=2)),
    Case(lambda: Beta2(floor=1)),
    Case(lambda: Capped("sqrt", 8)),
    Case(lambda: Capped(Linear(), 0.5)),
    Case(lambda: WarmupCosine(final=2)),
    Case(lambda: WarmupStep(milestones=0.5)),
    Case(lambda: WarmupStep(milestones=(30, 60))),
    Case(lambda: WarmupStep(milestones=(0.5, 0.5))),
    Case(lambda: WarmupStep(gamma=0)),
    Case(lambda: WarmupStableDecay(decay=20)),
    Case(lambda: Limits(granularity=0, min_batch_size=1, max_batch_size=2)),
    Case(lambda: Limits(granularity=8, min_batch_size=9, max_batch_size=15)),
]

# ---------------------------------------------------------------- journals and figures

SETTINGS = settings_of(100)
FIRST = run_header(SETTINGS, begin_run(SETTINGS, SETTINGS.plan.begin(epoch_batches=100, epoch_examples=400), epoch=0))
HEADER = json.dumps({"event": "header", "schema": 2, **FIRST, "policy": {"class": "Mine", "options": None}})
OTHER = json.dumps(
    {"event": "header", "schema": 2, **FIRST, "policy": {"class": "NoiseScalePolicy", "options": {"bogus": 1}}}
)


def reading(*lines, end="\n", by=read_journal):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.jsonl")
        path.write_text("\n".join(lines) + end)
        by(path)


def replaying(*lines):
    reading(*lines, by=lambda path: list(replay(path)))


def without_pandas():
    with mock.patch.dict(sys.modules, {"pandas": None}):
        DecisionList().to_dataframe()


def without_matplotlib():
    with mock.patch.dict(sys.modules, {"matplotlib.figure": None}):
        plot_noise_scale(DrawnRun())


@case
def journal_on_a_full_disk():
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
    replaying(*map(json.dumps, lines))


def record_too_long():
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder, "run.jsonl"), {})
        journal.write(replace(DECISION, decision=replace(DECISION.decision, reason="because " * MAX_LINE_BYTES)))
        journal.close()


CASES += [
    Case(lambda: reading("{}")),
    Case(lambda: reading('{"event": "header", "schema": 99}')),
    Case(lambda: reading(HEADER, "{")),
    Case(lambda: reading(HEADER, "3")),
    Case(lambda: reading(HEADER, '{"event": "party"}')),
    Case(lambda: reading(HEADER, '{"event": "decision"}')),
    Case(lambda: reading(HEADER, "[" * 2000)),
    Case(lambda: reading(HEADER, " " * MAX_LINE_BYTES)),
    Case(lambda: read_journal(tempfile.gettempdir())),
    Case(replay_overflow),
    Case(record_too_long),
    Case(lambda: replaying(OTHER)),
    Case(lambda: replaying(HEADER)),
    Case(lambda: reading(HEADER, '{"event": "dec', end="")),
    Case(without_pandas, "pip install pandas", (ModuleNotFoundError,)),
    Case(lambda: reading(json.dumps({"event": "header", "schema": 2, **FIRST}), by=read_facts), "Pass the journal"),
    Case(lambda: reading(json.dumps({"event": "header", "schema": 2, **FIRST, "pace": {}}), by=read_facts)),
    Case(lambda: plot_comparison("runs/demo/bsscale.jsonl")),
    Case(lambda: plot_comparison({"loss": [1.0], "steps": [1]})),
    Case(lambda: plot_comparison({"fixed 8": 8}), "fixed 8"),
    Case(lambda: plot_comparison([{"loss": [1.0, 0.5], "steps": [1]}])),
    Case(lambda: plot_comparison([{"loss": [1.0], "steps": [1]}], loss="val_loss"), "loss val_loss"),
    Case(without_matplotlib, "pip install lightning-bsscale[plot]", (ModuleNotFoundError,)),
]

# ---------------------------------------------------------------- simulation


GRID = {"units": 1, "unit": 1, "batches": [1], "rates": [0.1], "price": 0.0}


def forecast_without_matplotlib():
    with mock.patch.dict(sys.modules, {"matplotlib.figure": None}):
        draw_forecast(None)


CASES += [
    Case(lambda: best_schedule(NoisyQuadratic(curvature=[1.0, 2.0, 3.0], noise=1.0), 1.0, **GRID)),
    Case(forecast_without_matplotlib, "pip install lightning-bsscale[plot]", (ModuleNotFoundError,)),
]

# ---------------------------------------------------------------- without Lightning

WINDOW = ([9.0, 1.0], 4.0, [4, 4])
CASES += [
    Case(lambda: functional.scale_learning_rate("0.1", 64, 128)),
    Case(lambda: functional.noise_scale(9.0, 4.0, 4)),
    Case(lambda: GradientNoiseScale().update(torch.ones(2, 2), torch.tensor(4.0), [4, 4])),
    Case(lambda: functional.noise_scale(9.0, [4.0], 4)),
    Case(lambda: functional.noise_scale([[9.0, 1.0]], [4.0, 4.0], [[4, 4]])),
    Case(lambda: functional.noise_scale([9.0], 4.0, [4])),
    Case(lambda: GradientNoiseScale().update([9.0, -1.0], 4.0, [4, 4])),
    Case(lambda: functional.noise_scale([9.0, 1.0], 4.0, [4, 0])),
    Case(lambda: functional.noise_scale(*WINDOW, confidence=90)),
    Case(lambda: functional.scale_learning_rate(0.1, 64, 128, "auto")),
    Case(lambda: functional.steps_and_examples(0, 64)),
    Case(lambda: functional.scale_learning_rate(-0.1, 64, 128)),
    Case(lambda: ParameterHooks([]).start_sample(), "start_sample", (RuntimeError,)),
    Case(lambda: ParameterHooks([]).end_sample(4), "end_sample", (RuntimeError,)),
]

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
    raise Said(
        re.sub(r".*error: argument --[a-z-]+: ", "", out.getvalue(), flags=re.DOTALL).removeprefix("usage:").strip()
    )


def plan(*words, **files):
    """Plan with files that hold these texts; a word names one by its name in braces."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder, name) for name in files}
        for name, text in files.items():
            paths[name].write_text(text)
        command("plan", *(word.format(**paths) for word in words))


KNOWN = ("--critical-batch", "480")
LOSS = ("--examples", "1M", "--at-batch", "32")


def demo_without_its_packages():
    with mock.patch("importlib.util.find_spec", return_value=None):
        command("demo")


def plan_of_a_run(loader_batches, *words):
    with tempfile.TemporaryDirectory() as folder:
        path = write_run(Path(folder, "j"), 60)
        path.write_text("".join(path.read_text().splitlines(keepends=True)[: 1 + loader_batches]))
        command("plan", "--journal", str(path), *words)


def with_journal(*words):
    """A command for the journal of a run; a word `{j}` is its path."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_run(Path(folder, "j"), 60)
        command(*(word.replace("{j}", str(path)) for word in words))


def summary_without_a_verdict():
    with tempfile.TemporaryDirectory() as folder:
        path = write_run(Path(folder, "j"), 60)
        # A run that was killed, and whose first loader batches held nothing.
        text = path.read_text().replace('"first":{"granularity":4', '"first":{"granularity":0')
        path.write_text(text.partition('{"event":"end"')[0])
        command("summary", str(path))


class Fails:
    def decide(self, situation, limits):
        raise RuntimeError("mine")


def what_if_below_the_first_batch():
    with tempfile.TemporaryDirectory() as folder:
        what_if(write_run(Path(folder, "j"), 60), max_batch_size=4)


CASES += [
    Case(what_if_below_the_first_batch),
    Case(summary_without_a_verdict, error=(Said,)),
    Case(lambda: with_journal("plot", "{j}", "-o", "{j}"), error=(Said,)),
    Case(lambda: with_journal("report", "{j}", "-o", "{j}/x"), error=(Said,)),
    Case(lambda: with_journal("replay", "{j}", "--policy", "Mine"), error=(Said,)),
    Case(lambda: with_journal("replay", "{j}", "--policy", "Seesaw(cuts=2)"), error=(Said,)),
    Case(lambda: with_journal("replay", "{j}", "--policy", "math:pi(3)"), error=(Said,)),
    Case(lambda: with_journal("replay", "{j}", "--policy", "nowhere:Mine"), error=(Said,)),
    Case(lambda: with_journal("replay", "{j}", "--policy", f"{__name__}:Fails"), "mine", error=(Said,)),
    Case(lambda: with_journal("replay", "{j}", "--set", "target_ratio"), error=(Said,)),
    Case(lambda: with_journal("replay", "{j}", "--set", "measure_every=1"), error=(Said,)),
    Case(lambda: plan(*KNOWN, *LOSS, "--out", "plan.nonsense"), error=(Said,)),
    Case(lambda: plan("--critical-batch", "1e300", "--examples", "1e300", "--at-batch", "1"), error=(Said,)),
    Case(lambda: command("demo", "--seed", "1.5"), error=(Said,)),
    Case(lambda: reading("{}", by=lambda path: command("replay", str(path))), error=(Said,)),
    Case(demo_without_its_packages, "pip install", error=(Said,)),
    Case(lambda: command("replay", "nowhere.jsonl"), error=(Said,)),
    Case(lambda: command("replay", "/" + 300 * "n"), error=(Said,)),
    Case(lambda: command("demo", "--epochs", "0"), error=(Said,)),
    Case(lambda: plan(*KNOWN, *LOSS, "--lr", "-1"), error=(Said,)),
    Case(lambda: plan(*KNOWN, *LOSS, "--ranks", "0.5"), error=(Said,)),
    Case(lambda: plan(*LOSS), error=(Said,)),
    Case(lambda: plan(*LOSS, "--probe", "{a}", "--ratio", "1", a='{"noise_scale": null}'), error=(Said,)),
    Case(lambda: plan(*LOSS, "--probe", "{a}", a='{"noise_scale": {"value": 9}}'), error=(Said,)),
    Case(lambda: plan("--critical-batch", "3", "9", *LOSS), error=(Said,)),
    Case(lambda: plan("--critical-batch", "3", "4", "9", *LOSS), error=(Said,)),
    Case(lambda: plan(*KNOWN), error=(Said,)),
    Case(lambda: plan(*KNOWN, *LOSS[:2]), error=(Said,)),
    Case(lambda: plan(*KNOWN, *LOSS, "--seconds-per-step", "1"), error=(Said,)),
    Case(lambda: plan(*KNOWN, *LOSS, "--price", "1"), error=(Said,)),
    Case(
        lambda: reading('{"event":"header","schema":2}', by=lambda path: command("plan", "--journal", str(path))),
        error=(Said,),
    ),
    Case(lambda: plan(*KNOWN, "--probe", "{a}", a="{"), error=(Said,)),
    Case(lambda: plan(*KNOWN, "--probe", "{a}", a="{}"), error=(Said,)),
    Case(lambda: plan(*KNOWN, "--probe", "{a}", a='{"noise_scale": 3}'), error=(Said,)),
    Case(lambda: plan(*KNOWN, "--probe", "nowhere.json"), error=(Said,)),
    Case(lambda: plan_of_a_run(0), error=(Said,)),
    Case(lambda: plan_of_a_run(9, "--at-batch", "3", *KNOWN), error=(Said,)),
]
