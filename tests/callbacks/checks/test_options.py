"""Wrong types and wrong values of every option, and NumPy's numbers: what is kept is Python's, or nothing."""

import inspect
import math
import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_bsscale import (
    BatchSizeScaler,
    Capped,
    GradientNoiseScaleMonitor,
    Linear,
    NoiseScalePolicy,
    Power,
    Sqrt,
    WarmupCosine,
)
from lightning_bsscale.theory.schedules import WarmupExponential, WarmupLinear, WarmupStableDecay, WarmupStep

NO_NUMBERS = [
    True,
    np.True_,
    "0.5",
    "",
    b"1",
    [1],
    1j,
    Decimal("0.5"),
    torch.tensor(0.5),
    torch.tensor(3),
    np.array(3),
    np.ones(2),
    float,
    object(),
]
NO_VALUES = [math.nan, math.inf, -math.inf, -1, np.float64("nan"), np.float32(-1), np.int64(-1), 10**400, -Fraction(1)]
NEITHER = [True, 3, 0.5, None, [1], b"x", np.int64(3), torch.tensor(3), np.ones(2), object(), object]


def scaler(**options):
    return BatchSizeScaler(**options)._options


def monitor(**options):
    return GradientNoiseScaleMonitor(**options)._options


def capped(cap):
    return Capped(Linear(), cap)


# Who has it, its name, values beside it that are wrong for it alone, and whether None is right.
NUMBERS = [
    (scaler, "warmup", [1.0, 1.5], False),
    (scaler, "memory", [0, 0.0, 1.5, np.int64(3)], False),
    (monitor, "memory", [0, 0.0, 1.5], False),
    (BatchSizeScaler, "lr_cap", [0, 0.99, np.float32(0.5)], True),
    (NoiseScalePolicy, "target_ratio", [0], False),
    (NoiseScalePolicy, "confidence", [0.4, 1, 90], False),
    (NoiseScalePolicy, "max_growth", [1, 0.5], False),
    (NoiseScalePolicy, "hysteresis", [0, 0.99], False),
    (NoiseScalePolicy, "cooldown", [1, 1000], False),
    (NoiseScalePolicy, "not_before", [1.5], False),
    (NoiseScalePolicy, "step_price", [0], True),
    (NoiseScalePolicy, "example_price", [0], True),
    (Power, "exponent", [1.01], False),
    (capped, "cap", [0, 0.99], False),
    (WarmupCosine, "final", [1.01], False),
    (WarmupLinear, "final", [1.01], False),
    (WarmupExponential, "final", [0, 1.01], False),
    (WarmupStep, "gamma", [0, 1.01], False),
    (WarmupStableDecay, "decay", [0, 1.01], False),
    (WarmupStableDecay, "final", [1.01], False),
]
INTEGERS = [
    (scaler, "total_examples", [0], True),
    (scaler, "max_batch_size", [0], True),
    (scaler, "measure_every", [0], False),
    (scaler, "max_micro_batch_size", [0], True),
    (monitor, "measure_every", [0], False),
    (NoiseScalePolicy, "min_steps", [-1], False),
]
FLAGS = [
    *((scaler, name) for name in ("dry_run", "log_figure", "progress_bar", "verbose")),
    (monitor, "log_figure"),
    *((NoiseScalePolicy, name) for name in ("allow_shrink", "whole_run")),
]


def label(value):
    return f"{type(value).__name__} {str(value)[:20]}"


def refused(make, option, value, error):
    """The message begins with the option, and shows what was received in one line that can be read."""
    with pytest.raises(error) as caught:
        make(**{option: value})
    sentence = str(caught.value)
    assert re.match(rf"{option}\b", sentence), sentence
    if type(value) in (bool, int, float, str, bytes) and len(repr(value)) < 100:
        assert repr(value) in sentence
    assert len(sentence) < 400
    assert "\n" not in sentence
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(("make", "option", "wrong", "or_none"), NUMBERS + INTEGERS)
def test_what_is_no_number_and_what_is_out_of_range(make, option, wrong, or_none):
    for value in NO_NUMBERS + [None] * (not or_none):
        if option != "target_ratio" or not isinstance(value, str):  # there a string is a path
            refused(make, option, value, TypeError)
    if (make, option, wrong, or_none) in NUMBERS:
        for value in [*NO_VALUES, *wrong]:
            if (
                option not in {"warmup", "not_before"} or not isinstance(value, int) or value < 0
            ):  # there an int counts examples
                refused(make, option, value, ValueError)
    else:
        for value in (1.0, 2.5, np.float64(2), Fraction(2), math.nan, math.inf):
            refused(make, option, value, TypeError)
        for value in [-1, np.int64(-1), *wrong]:
            refused(make, option, value, ValueError)
    if or_none:
        make(**{option: None})


@pytest.mark.parametrize(("make", "option"), FLAGS)
@pytest.mark.parametrize("value", [0, 1, np.True_, "yes", "", None, torch.tensor(True), bool], ids=label)
def test_flags_are_true_or_false(make, option, value):
    refused(make, option, value, TypeError)


@pytest.mark.parametrize("option", ["policy", "lr_rule", "schedule"])
@pytest.mark.parametrize("value", [*NEITHER, NoiseScalePolicy, Sqrt, WarmupCosine], ids=label)
def test_objects_of_another_kind(option, value):
    if option == "schedule" and value is None:
        assert scaler(schedule=None).schedule is None
        return
    refused(BatchSizeScaler, option, value, TypeError)


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("policy", ["noise_scale"]),
        ("lr_rule", ["linear", "sqrt", "power", "saturating", "surge", "none", "auto"]),
        ("schedule", ["cosine", "linear", "step", "exponential", "constant"]),
    ],
)
@pytest.mark.parametrize("value", ["", "Noise_Scale", "AUTO", "cosin", " sqrt"])
def test_unknown_names_are_answered_with_the_known_ones(option, names, value):
    with pytest.raises(ValueError, match=re.escape(repr(value))) as caught:
        BatchSizeScaler(**{option: value})
    for name in names:
        assert repr(name) in str(caught.value)
        BatchSizeScaler(**{option: name})


@pytest.mark.parametrize("make", [scaler, monitor])
def test_prefix_function_and_path(make, tmp_path):
    for value in (None, 3, True, b"x", Path("x"), ["x"]):
        refused(make, "log_prefix", value, TypeError)
    assert make(log_prefix="").log_prefix == ""
    for value in NEITHER:
        refused(make, "log_step", value, TypeError)
    for value in ("", "steps", "Examples", "tokens"):
        refused(make, "log_step", value, ValueError)
    assert [make(log_step=value).log_step for value in ("optimizer", "examples")] == ["optimizer", "examples"]
    for value in (3, True, "len", "builtins.len", [len], torch.tensor(3)):
        refused(make, "batch_size_fn", value, TypeError)
    assert make(batch_size_fn=len).batch_size_fn is len
    for value in (None, 1, 0, b"x", ["x"], np.True_):
        refused(make, "record", value, TypeError)
    for value in ("", "  ", Path(), tmp_path, str(tmp_path), ".", "memory://runs/j", Path("gs://bucket/j")):
        refused(make, "record", value, ValueError)
    for value in (True, False, "run.jsonl", tmp_path / "new" / "run.jsonl"):
        assert make(record=value).record == value


@pytest.mark.parametrize("value", [None, 0.5, "0.5", torch.tensor([0.5]), {0.5}, np.array([0.5])], ids=label)
def test_milestones_are_a_sequence(value):
    refused(WarmupStep, "milestones", value, TypeError)


@pytest.mark.parametrize("value", [[True], ["0.5"], [None], [torch.tensor(0.5)]], ids=label)
def test_milestones_are_numbers(value):
    with pytest.raises(TypeError, match=r"milestones\[0\]"):
        WarmupStep(milestones=value)


# ---------------------------------------------------------------- what is kept

KEPT = [
    (scaler, "warmup", np.float64(0.1), 0.1),
    (scaler, "warmup", np.int64(3), 3),
    (scaler, "memory", np.float32(0.5), 0.5),
    (scaler, "memory", 1, 1.0),
    (scaler, "total_examples", np.int64(100), 100),
    (scaler, "max_micro_batch_size", np.uint8(16), 16),
    (monitor, "measure_every", np.int64(2), 2),
    (BatchSizeScaler, "lr_cap", np.float32(8), 8.0),
    *((NoiseScalePolicy, name, np.float32(0.5), 0.5) for name in ("target_ratio", "confidence", "cooldown")),
    *((NoiseScalePolicy, name, np.int64(3), 3.0) for name in ("target_ratio", "max_growth", "hysteresis")),
    (Power, "exponent", Fraction(3, 4), 0.75),
    (capped, "cap", np.int64(8), 8.0),
    *((cls, "final", np.float64(0.5), 0.5) for cls in (WarmupCosine, WarmupLinear, WarmupExponential)),
    (WarmupStep, "gamma", np.float32(0.5), 0.5),
    *((WarmupStableDecay, name, np.float32(0.5), 0.5) for name in ("decay", "final")),
    (WarmupStep, "milestones", [np.float32(0.25), np.float64(0.5)], (0.25, 0.5)),
]


@pytest.mark.parametrize(("make", "option", "given", "kept"), KEPT)
def test_numbers_are_kept_as_pythons_own(make, option, given, kept):
    made = make(**{option: given})
    found = made._options.rule_for.args[1] if option == "lr_cap" else getattr(made, option)
    assert found == kept
    assert type(found) is type(kept)
    if isinstance(kept, tuple):
        assert {type(item) for item in found} == {float}


def test_every_number_of_the_callbacks_is_looked_at_here():
    looked_at = {option for _, option, *_ in NUMBERS + INTEGERS} | {option for _, option in FLAGS}
    looked_at |= {"policy", "lr_rule", "schedule", "batch_size_fn", "log_prefix", "record", "milestones", "rule"}
    looked_at |= {"also_scale", "unit", "split", "merge_fn", "split_fn", "loss_is_mean_over", "log_step", "log_figure"}
    classes = [BatchSizeScaler, GradientNoiseScaleMonitor, NoiseScalePolicy, Power, Capped, WarmupCosine, WarmupStep]
    assert {name for cls in classes for name in inspect.signature(cls).parameters} <= looked_at


# ---------------------------------------------------------------- what is unusual and allowed


@pytest.mark.parametrize(
    "options",
    [
        dict(lr_rule=Capped(Linear(), 8), lr_cap=4),
        dict(lr_rule="auto", lr_cap=1),
        dict(warmup=0, memory=1.0, measure_every=10**9),
        dict(warmup=99, total_examples=100),
        dict(warmup=0.99, total_examples=1),
        dict(max_batch_size=1, total_examples=1),
        dict(schedule="cosine", warmup=0),
        dict(policy=NoiseScalePolicy(hysteresis=4, max_growth=1.5, cooldown=0.9)),
        dict(dry_run=True, schedule="linear", lr_cap=2, total_examples=10),
        dict(lr_rule="none"),
    ],
    ids=lambda options: "-".join(options),
)
def test_unusual_is_not_wrong(options):
    BatchSizeScaler(**options)
