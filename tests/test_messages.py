"""docs/errors.md holds every message of the package, and each of its rows can be brought about."""

import ast
import functools
import inspect
import re
import warnings
from pathlib import Path

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException

import lightning_bsscale
from lightning_bsscale.theory.schedules import SCHEDULES
from tests.helpers.refusals import Said
from tests.helpers.refusals_of_training import TRIGGERS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_bsscale"
ROW = re.compile(r"^\| `([^`]+)`( \*warning\*)? \| (.+?) \| (.+?) \|$", flags=re.MULTILINE)
PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
ROWS = {message: bool(warning) for message, warning, *_ in ROW.findall(PAGE)}
SAYS = {"rank_zero_warn", "warnings.warn", "warn"}
ARGUMENT_OR_COMBINATION = {TypeError, ValueError, MisconfigurationException}
OTHER_CLASSES = {
    "Plots need matplotlib": ModuleNotFoundError,
    "start_sample was called outside a window": RuntimeError,
    "end_sample was called without a sample": RuntimeError,
    "no such journal: …": Said,
    "… cannot be read: …": Said,
    "… is not a journal": Said,
    "must be a whole number of at least 1, found …": Said,
    "The demo needs …": Said,
}
# Sentences of the source that have no row, and why.
EXEMPT = {
    ("__init__.py", "module … has no attribute …"): "Python's own words for a misspelt name",
    ("gradients/reduce.py", "vector must be 1-d, found … dimensions"): "measurement.py makes that vector itself",
    ("journal.py", "a number of … digits is too large"): "part of `…, line … is no JSON: …`",
    ("journal.py", "… is no number of JSON's, and is written as a string"): "the same",
    ("theory/stored.py", "…"): "part of `…, line … is no whole …: …`",
    ("replay.py", "lacks …"): "the same",
    ("theory/windows.py", "start must be below epoch_batches (…), got …"): (
        "Lightning gives no micro-batch after the announced last one"
    ),
    ("callbacks/checks/preflight.py", "…"): "hands on the sentence of theory/rules/choose.py, as another class",
}


def regex(message, *, whole=False):
    pattern = ".*?".join(re.escape(part) for part in message.split("…"))
    return re.compile(pattern + (r"\Z" if whole else ""), flags=re.DOTALL)


@functools.cache
def said(message):
    """What the row's trigger brings about: the class of the error (None for a warning), and the sentence."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            TRIGGERS[message]()
        except Exception as error:
            return type(error), str(error)
    ours = [str(warning.message) for warning in caught if regex(message).match(str(warning.message))]
    assert len(ours) == 1, f"said {len(ours)} times: {message}"
    return None, ours[0]


@pytest.mark.parametrize("message", ROWS, ids=lambda message: message[:60])
def test_every_row_comes_about(message):
    error, sentence = said(message)
    assert regex(message).match(sentence), sentence
    if ROWS[message]:
        assert error is None
    else:  # never a KeyError or an AttributeError from the depths
        assert error in ({OTHER_CLASSES[message]} if message in OTHER_CLASSES else ARGUMENT_OR_COMBINATION)


def test_rows_and_triggers_are_the_same():
    assert set(ROWS) == set(TRIGGERS)
    # Every line of a table was understood: none is left out for a bar or a backtick too many.
    lines = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert len(lines) == len(ROWS)


def test_every_option_has_a_row():
    classes = ["BatchSizeScaler", "GradientNoiseScaleMonitor", "NoiseScalePolicy", "Power", "Capped", "WarmupCosine"]
    made = [getattr(lightning_bsscale, name) for name in classes] + list(SCHEDULES.values())
    options = {name for cls in made for name in inspect.signature(cls).parameters}
    assert not {name for name in options if not any(re.match(rf"{name}\b", row) for row in ROWS)}


# ---------------------------------------------------------------- the source says nothing else


def literal(node):
    """The text of a message in the source, with `…` for what is put in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return re.sub("…+", "…", "".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values))
    if isinstance(node, ast.BinOp):
        return literal(node.left) + literal(node.right)
    return "…"


def messages(source):
    for node in ast.walk(ast.parse(source)):
        call = node.exc if isinstance(node, ast.Raise) else node
        if isinstance(call, ast.Call) and ast.unparse(call.func) in {"UnsupportedSharding", "NotContinued", "InUse"}:
            continue  # whoever catches it puts it into a sentence of another
        speaks = isinstance(node, ast.Raise) or (isinstance(node, ast.Call) and ast.unparse(node.func) in SAYS)
        if speaks and isinstance(call, ast.Call):
            yield literal(call.args[0]) if call.args else "…"


def sources():
    return {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}


def uncovered(files, sentences):
    found = {(name, message) for name, source in files.items() for message in messages(source)}
    return {
        (name, message)
        for name, message in found
        if not re.search("[a-z]", message) or not any(regex(message, whole=True).match(one) for one in sentences)
    }


def test_every_message_of_the_source_comes_about():
    assert uncovered(sources(), [said(message)[1] for message in ROWS]) == set(EXEMPT)


@pytest.mark.parametrize(
    "statement",
    [
        'raise ValueError("unheard of")',
        'raise ValueError(f"unheard of, got {value!r}")',
        'raise ValueError("unheard " f"of, got {value!r}")',
        'rank_zero_warn(f"unheard of {value}", category=UserWarning)',
        'warnings.warn("unheard of", stacklevel=2)',
        "raise ValueError(text)",
        "raise ValueError()",
    ],
)
def test_a_message_without_a_row_is_found(statement):
    assert uncovered({"new.py": statement}, ["warmup must be a number, got 'x'"])
