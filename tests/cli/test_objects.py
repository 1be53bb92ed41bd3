"""Policies, rules and schedules from words, of the package and of one's own."""

import re
import sys
from types import SimpleNamespace

import pytest

from lightning_bsscale.cli.objects import KINDS, make_object, read_value
from lightning_bsscale.cli.own_code import explain, load
from lightning_bsscale.theory.policies import (
    HoldIfWorse,
    Largest,
    Milestones,
    NoiseScalePolicy,
    NormTest,
    Seesaw,
    Sequence,
)
from lightning_bsscale.theory.rules import Capped, Constant, Power, Sqrt
from lightning_bsscale.theory.schedules import WarmupCosine

OWN = """
from lightning_bsscale import Decision


class Mine:
    def __init__(self, patience, *, share=0.5):
        if patience < 0:
            raise RuntimeError("patience must not be negative")
        self.patience, self.share = patience, share

    def decide(self, situation, limits):
        return Decision(batch_size=situation.batch_size // 0, reason="mine")


def make(batch_size=8):
    return Mine(batch_size)


made = Mine(7)
number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a module of the user's own, from which the command is run."""
    (tmp_path / "own_words.py").write_text(OWN)
    (tmp_path / "raises.py").write_text("import os\nx = undefined\n")
    (tmp_path / "syntax.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("own_words", "raises", "syntax"):
        monkeypatch.delitem(sys.modules, name, raising=False)


POLICIES = {
    "seesaw": Seesaw(),
    "meta": NoiseScalePolicy.meta(),
    "NoiseScalePolicy": NoiseScalePolicy(),
    " NoiseScalePolicy( target_ratio = 0.5, allow_shrink=True ) ": NoiseScalePolicy(
        target_ratio=0.5, allow_shrink=True
    ),
    "NoiseScalePolicy(not_before=-0)": NoiseScalePolicy(),
    "Milestones({0.3: 2, 5000: 4})": Milestones({0.3: 2, 5000: 4}),
    "HoldIfWorse(Sequence([Seesaw(), Largest([NormTest(theta=0.5), Seesaw(gate=None)])], at=[0.3]), 'val_loss')": (
        HoldIfWorse(Sequence([Seesaw(), Largest([NormTest(theta=0.5), Seesaw(gate=None)])], at=[0.3]), "val_loss")
    ),
}


@pytest.mark.min_steps
@pytest.mark.parametrize("text", POLICIES)
def test_policies(text):
    assert make_object("--policy", KINDS["policy"], text) == POLICIES[text]


def test_rules_and_schedules():
    rules = {"none": Constant(), "Power(exponent=0.7)": Power(0.7), "Capped(Sqrt(), 8)": Capped(Sqrt(), 8)}
    assert {text: make_object("--rule", KINDS["rule"], text) for text in rules} == rules
    schedules = {"cosine": WarmupCosine(), "WarmupCosine(final=0.1)": WarmupCosine(final=0.1)}
    assert {text: make_object("--schedule", KINDS["schedule"], text) for text in schedules} == schedules


@pytest.mark.parametrize(
    ("text", "patience", "share"),
    [
        ("own_words:Mine(3)", 3, 0.5),
        ("own_words:Mine(patience=4, share=1.0)", 4, 1.0),
        ("own_words:make()", 8, 0.5),
        ("own_words:make(batch_size=9)", 9, 0.5),
        ("own_words:made", 7, 0.5),
    ],
)
def test_ones_own(own, text, patience, share):
    made = make_object("--policy", KINDS["policy"], text)
    assert (type(made).__name__, made.patience, made.share) == ("Mine", patience, share)


def test_ones_own_within_another(own):
    made = make_object("--policy", KINDS["policy"], "HoldIfWorse(own_words.Mine(3))")
    assert made.policy.patience == 3


ALLOWED = "--policy must be one of noise_scale, seesaw, .*, NoiseScalePolicy, .*package.module:Name for your own, got "


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Nobody", f"{ALLOWED}'Nobody'"),
        ("Nobody(3)", ALLOWED),
        ("", ALLOWED),
        ("Seesaw(", ALLOWED),
        ("Seesaw(cut=x)", ALLOWED),
        ("__import__('os').getcwd()", "."),
        ("[Seesaw() for _ in 'ab']", ALLOWED),
        ("Seesaw(**{'cut': 3})", "."),
        ("(" * 5000, ALLOWED),
        ("Seesaw(cats=3)", r"--policy: Seesaw has the options cut, form, gate, .*'cats'"),
        ("Seesaw(1, 2)", "--policy: Seesaw has the options"),
        ("Seesaw(cut=1)", "cut must be a finite number above 1, got 1"),
        ("Seesaw()(3)", "--policy: .* is neither a class nor a function"),
        ("Sqrt()", ALLOWED),
        ("3", "policy must be one of .*decide"),
        ("nowhere:Mine", "--policy nowhere:Mine cannot be loaded: No module named 'nowhere'. Run the command"),
        ("own_words:Nobody", "cannot be loaded: module 'own_words' has no attribute 'Nobody'"),
        ("own_words:Mine", r"--policy: Mine has the options patience, share: missing a required argument"),
        ("own_words:Mine(-1", ALLOWED),
        ("own_words:number", "policy must be one of .*got 3"),
        ("own_words:number(3)", "--policy: 3 cannot be made"),
        (
            "raises:Mine",
            r"raises:Mine cannot be loaded: NameError: name 'undefined' is not defined \(raises.py, line 2\)",
        ),
        ("syntax:Mine", r"syntax:Mine cannot be loaded: .*\(syntax.py, line 1\)"),
    ],
)
def test_what_is_refused_says_what_is_allowed(own, text, said):
    with pytest.raises((TypeError, ValueError), match=re.compile(said, flags=re.DOTALL)) as refused:
        make_object("--policy", KINDS["policy"], text)
    assert len(str(refused.value)) < 500


def test_an_error_in_ones_own_code_has_its_place(own):
    with pytest.raises(RuntimeError) as in_constructor:
        make_object("--policy", KINDS["policy"], "own_words:Mine(-1)")
    assert explain(in_constructor.value) == "RuntimeError: patience must not be negative (own_words.py, line 8)"
    with pytest.raises(ZeroDivisionError) as in_decide:
        load("--policy", "own_words:made").decide(SimpleNamespace(batch_size=8), None)
    assert explain(in_decide.value).endswith(" (own_words.py, line 12)")
    assert explain(in_decide.value.with_traceback(None)) is None  # no frame of the user's


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.5", 0.5),
        ("512", 512),
        ("1e-2", 0.01),
        ("-1", -1),
        ("true", True),
        ("False", False),
        ("none", None),
        ("null", None),
        ("[0.3, 2]", [0.3, 2]),
        ("{0.3: 2}", {0.3: 2}),
        ("measured", "measured"),
        ("runs/probe.json", "runs/probe.json"),
        (" 3 ", 3),
        ("", ""),
        ("(" * 5000, "(" * 5000),
    ],
)
def test_values(text, value):
    assert read_value(text) == value
    assert type(read_value(text)) is type(value)
