"""The callbacks from a YAML file and from flags, through LightningCLI; a wrong option is named there too."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lightning_bsscale import (
    BatchSizeScaler,
    GradientNoiseScaleMonitor,
    HoldIfWorse,
    Largest,
    Milestones,
    NoiseScalePolicy,
    NormTest,
    Power,
    Seesaw,
    Sequence,
    Smith,
)
from lightning_bsscale.callbacks.output.last_line import buried_sentence
from lightning_bsscale.theory.described import describe
from lightning_bsscale.theory.hyperparameters import HyperparameterRule
from lightning_bsscale.theory.policies import POLICIES as BY_NAME
from lightning_bsscale.theory.policies import Policy
from lightning_bsscale.theory.rules import Capped, LearningRateRule, Sqrt
from lightning_bsscale.theory.schedules import Schedule, WarmupCosine
from tests.helpers.lightning_cli import callbacks_from

ROOT = str(Path(__file__).parents[2])


def from_yaml(text, name="BatchSizeScaler"):
    return callbacks_from([{"class_path": f"lightning_bsscale.{name}", "init_args": yaml.safe_load(text)}])


def test_every_kind_of_option():
    text = """
    policy:
      class_path: lightning_bsscale.NoiseScalePolicy
      init_args: {target_ratio: 0.25}
    lr_rule:
      class_path: lightning_bsscale.Capped
      init_args: {rule: {class_path: lightning_bsscale.Sqrt}, cap: 8}
    schedule:
      class_path: lightning_bsscale.WarmupCosine
      init_args: {final: 0.05}
    warmup: 1000
    max_batch_size: 512
    batch_size_fn: builtins.len
    record: runs/journal.jsonl
    dry_run: true
    """
    (scaler,) = from_yaml(text)
    assert scaler._options.policy == NoiseScalePolicy(target_ratio=0.25)
    assert scaler._options.rule_for.args[0] == Capped(Sqrt(), 8)
    assert scaler._options.schedule == WarmupCosine(final=0.05)
    assert scaler._options.warmup == 1000
    assert type(scaler._options.warmup) is int
    assert scaler._options.max_batch_size == 512
    assert scaler._options.batch_size_fn is len
    assert scaler._options.record == "runs/journal.jsonl"
    assert scaler._options.dry_run is True


POLICIES = {
    **{f"policy: {name}": make() for name, make in BY_NAME.items()},
    "policy: {class_path: lightning_bsscale.Seesaw, init_args: {cut: 2, form: sgd, gate: null}}": Seesaw(
        cut=2, form="sgd", gate=None
    ),
    "policy: {class_path: lightning_bsscale.Smith, init_args: {gate: 0.5}}": Smith(gate=0.5),
    "policy: {class_path: lightning_bsscale.NormTest, init_args: {theta: 0.5}}": NormTest(theta=0.5),
    "policy: {class_path: lightning_bsscale.Milestones, init_args: {milestones: {0.3: 2, 5000: 4}}}": Milestones(
        {0.3: 2, 5000: 4}
    ),
    """
    policy:
      class_path: lightning_bsscale.Milestones
      init_args: {milestones: {"0.3": 64, "5_000": 128}, unit: examples}
    """: Milestones({0.3: 64, 5000: 128}, unit="examples"),
    """
    policy:
      class_path: lightning_bsscale.NoiseScalePolicy
      init_args: {min_steps: 7, not_before: 5000, step_price: measured, example_price: 5e-3}
    """: NoiseScalePolicy(min_steps=7, not_before=5000, step_price="measured", example_price=0.005),
    """
    policy:
      class_path: lightning_bsscale.HoldIfWorse
      init_args:
        monitor: val/acc
        mode: max
        policy:
          class_path: lightning_bsscale.Sequence
          init_args:
            at: [0.3, 5000]
            policies:
              - {class_path: lightning_bsscale.NoiseScalePolicy, init_args: {min_steps: 500}}
              - class_path: lightning_bsscale.Seesaw
              - class_path: lightning_bsscale.Largest
                init_args:
                  policies: [{class_path: lightning_bsscale.Seesaw}, {class_path: lightning_bsscale.NormTest}]
    """: HoldIfWorse(
        Sequence([NoiseScalePolicy(min_steps=500), Seesaw(), Largest([Seesaw(), NormTest()])], at=[0.3, 5000]),
        monitor="val/acc",
        mode="max",
    ),
}


@pytest.mark.min_steps
@pytest.mark.parametrize("text", POLICIES)
def test_every_policy(text):
    (scaler,) = from_yaml(text)
    policy = scaler._options.policy
    assert policy == POLICIES[text]
    assert describe(policy) == describe(POLICIES[text])  # an int stays an int: examples, not a share


def test_by_name_and_by_flags():
    (scaler,) = callbacks_from(
        None,
        "--trainer.callbacks+=lightning_bsscale.BatchSizeScaler",
        "--trainer.callbacks.lr_rule=sqrt",
        "--trainer.callbacks.warmup=0.1",
        "--trainer.callbacks.record=true",
        "--trainer.logger=false",
        "--trainer.accelerator=cpu",
    )
    assert scaler._options.rule_for.args[0] == "sqrt"
    assert scaler._options.warmup == 0.1
    assert scaler._options.record is True


SHORT = {
    ("policy=noise_scale",): NoiseScalePolicy(),
    ("policy=NoiseScalePolicy",): NoiseScalePolicy(),
    ("policy=NoiseScalePolicy", "policy.target_ratio=0.25", "policy.cooldown=0"): NoiseScalePolicy(
        target_ratio=0.25, cooldown=0.0
    ),
    ("policy=Milestones", "policy.milestones={0.3: 2, 5000: 4}"): Milestones({0.3: 2, 5000: 4}),
    ("policy=HoldIfWorse", "policy.policy=Seesaw", "policy.policy.cut=4", "policy.monitor=val/acc"): HoldIfWorse(
        Seesaw(cut=4), "val/acc"
    ),
}


@pytest.mark.parametrize("name", ["BatchSizeScaler", "lightning_bsscale.BatchSizeScaler"])
@pytest.mark.parametrize("flags", SHORT, ids=" ".join)
def test_short_names_and_dotted_flags(name, flags):
    given = [f"--trainer.callbacks.{flag}" for flag in flags]
    quiet = ["--trainer.logger=false", "--trainer.accelerator=cpu"]
    (scaler,) = callbacks_from(None, f"--trainer.callbacks+={name}", *given, *quiet)
    policy = scaler._options.policy
    if isinstance(policy, NoiseScalePolicy):  # jsonargparse remembers the default that it has seen first
        policy = replace(policy, min_steps=SHORT[flags].min_steps)
    assert policy == SHORT[flags]


def test_each_class_has_one_name():
    """A dataclass with slots leaves a second class behind, and LightningCLI then refuses the short name of both."""
    for base in (Policy, LearningRateRule, Schedule, HyperparameterRule):
        found = [cls for cls in subclasses(base) if cls.__module__.startswith("lightning_bsscale")]
        names = [cls.__name__ for cls in found]
        assert len(names) == len(set(names)) > 2, names


def subclasses(base):
    for cls in base.__subclasses__():
        yield cls
        yield from subclasses(cls)


def test_the_monitor():
    (monitor,) = from_yaml("measure_every: 4", "GradientNoiseScaleMonitor")
    assert type(monitor) is GradientNoiseScaleMonitor


def test_help_prints_the_options(capsys):
    with pytest.raises(SystemExit):
        callbacks_from(None, "--trainer.callbacks.help=lightning_bsscale.BatchSizeScaler")
    text = " ".join(capsys.readouterr().out.split())
    assert "--trainer.callbacks.warmup" in text
    assert "share of the budget" in text


# ---------------------------------------------------------------- wrong options


# What LightningCLI finds by itself, before anything is made: text of the file, and words on stderr.
REFUSED_BY_TYPE = [
    ("measure_every: often", "measure_every int often"),
    ("warmup: true", "warmup"),
    ("total_examples: 1000000.0", "total_examples"),
    ("max_batch_size: .inf", "max_batch_size"),
    ("dry_run: maybe", "dry_run bool maybe"),
    ("record: 3", "record"),
    ("measure_evry: 4", "measure_evry"),
    ("batch_size_fn: no.such.module", "batch_size_fn 'no'"),
    ("policy: {class_path: lightning_bsscale.Sqrt}", "policy lightning_bsscale.Sqrt Policy"),
    ("lr_rule: {class_path: lightning_bsscale.NoiseScalePolicy}", "lr_rule LearningRateRule"),
    ("schedule: {class_path: torch.optim.lr_scheduler.StepLR}", "schedule Schedule"),
    ("policy: {class_path: lightning_bsscale.NoiseScalePolice}", "policy 'NoiseScalePolice'"),
    ("policy: {class_path: lightning_bsscale.NoiseScalePolicy, init_args: {target: 0.5}}", "'target'"),
    ("policy: {class_path: lightning_bsscale.NoiseScalePolicy, init_args: {cooldown: half}}", "cooldown half"),
]


@pytest.mark.parametrize(("text", "words"), REFUSED_BY_TYPE, ids=[text for text, _ in REFUSED_BY_TYPE])
def test_lightning_cli_names_the_option(text, words, capsys):
    with pytest.raises(SystemExit) as end:
        from_yaml(text)
    assert end.value.code == 2
    said = capsys.readouterr().err.split("error:")[-1]
    assert not [word for word in words.split() if word not in said], said


# What only the callback can know: the same in Python.
REFUSED_BY_VALUE = [
    ("measure_every: 0", lambda: BatchSizeScaler(measure_every=0)),
    ("{lr_rule: none, lr_cap: 8}", lambda: BatchSizeScaler(lr_rule="none", lr_cap=8.0)),
    ("{warmup: 100, total_examples: 100}", lambda: BatchSizeScaler(warmup=100, total_examples=100)),
    ("policy: grow", lambda: BatchSizeScaler(policy="grow")),
    ("record: ''", lambda: BatchSizeScaler(record="")),
    (
        "policy: {class_path: lightning_bsscale.NoiseScalePolicy, init_args: {target_ratio: -1}}",
        lambda: NoiseScalePolicy(target_ratio=-1.0),
    ),
    (
        "policy: {class_path: lightning_bsscale.NoiseScalePolicy, init_args: {target_ratio: probe.json}}",
        lambda: NoiseScalePolicy(target_ratio="probe.json"),
    ),
    ("lr_rule: {class_path: lightning_bsscale.Power, init_args: {exponent: 2}}", lambda: Power(exponent=2.0)),
    ("schedule: {class_path: lightning_bsscale.WarmupCosine, init_args: {final: 2}}", lambda: WarmupCosine(final=2.0)),
]


@pytest.mark.parametrize(("text", "in_python"), REFUSED_BY_VALUE, ids=[text for text, _ in REFUSED_BY_VALUE])
def test_the_callbacks_own_sentence_stands_in_the_error(text, in_python):
    with pytest.raises(Exception, match=r"\w") as own:
        in_python()
    with pytest.raises(ValueError, match=re.escape(str(own.value))) as refused:
        from_yaml(text)
    assert buried_sentence(refused.value) == f"{type(own.value).__name__}: {own.value}"


MAIN = """
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

from lightning_bsscale import BatchSizeScaler

LightningCLI(BoringModel, BoringDataModule, save_config_callback=None)
"""


@pytest.mark.parametrize(
    ("flag", "status", "last"),
    [
        ("measure_every=0", 1, "ValueError: measure_every must be an integer of at least 1, got 0"),
        ("policy=fly", 1, "ValueError: policy must be one of 'noise_scale', "),
        ("measure_every=often", 2, "  Given value: NestedArg(key='measure_every', val='often')"),
    ],
)
def test_the_last_line_of_a_program_is_what_is_wrong(tmp_path, flag, status, last):
    (tmp_path / "main.py").write_text(MAIN)
    words = ["fit", "--trainer.callbacks+=BatchSizeScaler", f"--trainer.callbacks.{flag}", "--trainer.logger=false"]
    command = [sys.executable, "-W", "ignore", "main.py", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ROOT})
    assert done.returncode == status, done.stderr
    assert done.stderr.splitlines()[-1].startswith(last)


def test_other_errors_have_no_last_line():
    with pytest.raises(ValueError, match="measure_every") as own:
        BatchSizeScaler(measure_every=0)
    with pytest.raises(ValueError, match="Does not validate") as others:
        callbacks_from([{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_top_k": -3}}])
    assert [buried_sentence(error) for error in (None, own.value, others.value)] == [None] * 3


@pytest.mark.parametrize(("text", "option"), [("measure_every: x", "measure_every"), ("policy: noise_scale", "policy")])
def test_wrong_options_of_the_monitor(text, option, capsys):
    with pytest.raises(SystemExit):
        from_yaml(text, "GradientNoiseScaleMonitor")
    assert option in capsys.readouterr().err


def test_numbers_that_yaml_reads_as_words():
    """YAML takes 5e-2 for a word; the option's own type decides."""
    (scaler,) = from_yaml("{memory: 5e-2, max_batch_size: 1_000, warmup: 1_000}")
    assert scaler._options.memory == 0.05
    assert scaler._options.max_batch_size == scaler._options.warmup == 1000
    assert type(scaler._options.warmup) is int
