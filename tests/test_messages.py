"""docs/errors.md holds every message of the package, and each of its rows can be brought about."""

import ast
import functools
import inspect
import re
import warnings
from pathlib import Path

import pytest

import lightning_bsscale
from lightning_bsscale.theory.schedules import SCHEDULES
from tests.helpers.refusals_of_probes import CASES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_bsscale"
ROW = re.compile(r"^\| `([^`]+)`( \*warning\*)? \| (.+?) \| (.+?) \|$", flags=re.MULTILINE)
PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
ROWS = {message: bool(warning) for message, warning, *_ in ROW.findall(PAGE)}
SAYS = {"rank_zero_warn", "warnings.warn", "warn"}
# Sentences of the source that have no row, and why.
EXEMPT = {
    ("__init__.py", "module … has no attribute …"): "Python's own words for a misspelt name",
    ("gradients/reduce.py", "vector must be 1-d, got … dimensions"): "measurement.py makes that vector itself",
    ("journal.py", "a number of … digits is too large"): "part of `…, line … is no JSON: …`",
    ("journal.py", "… is no number of JSON's, and is written as a string"): "the same",
    ("theory/stored.py", "…"): "part of `…, line … is no whole …: …`",
    ("replay.py", "lacks …"): "the same",
    ("theory/windows.py", "start must be below epoch_batches (…), got …"): (
        "Lightning gives no loader batch after the announced last one"
    ),
    (
        "theory/history.py",
        "there are … measured windows, but not one with the index …",
    ): "what indexing a list raises too",
    ("callbacks/output/figure.py", "… is not on this machine"): "part of `bsscale: the picture of the run was not …`",
    ("cli/objects.py", "…"): "says in one function what is allowed, as `--policy must be one of …`",
    ("callbacks/trainer/batches.py", "…"): "part of `the loader's batches cannot be …: …`",
    ("callbacks/trainer/chosen_rules.py", "…"): "hands on the sentence of theory/rules/choose.py, as another class",
}


def regex(message, *, whole=False):
    pattern = ".*?".join(re.escape(part) for part in message.split("…"))
    return re.compile(pattern + (r"\Z" if whole else ""), flags=re.DOTALL)


@functools.cache
def said():
    """What each case brings about: the case, the class of its error (None for a warning), and its sentence."""
    found = []
    for case in CASES:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                case.run()
            except Exception as error:
                found.append((case, type(error), str(error)))
                continue
        ours = [text for text in (str(warning.message) for warning in caught) if rows_of(text)]
        assert ours, f"nothing was said: {inspect.getsource(getattr(case.run, 'func', case.run))}"
        assert len(ours) == len(set(ours)), f"said more than once: {ours}"
        found += [(case, None, text) for text in ours]
    return found


def rows_of(sentence):
    return [row for row in ROWS if regex(row).match(sentence)]


def test_every_case_is_in_a_row_of_its_kind():
    for case, error, sentence in said():
        rows = rows_of(sentence)
        assert rows, f"{sentence!r} is in no row"
        assert any(ROWS[row] == (error is None) for row in rows), f"{sentence!r} is marked as the other kind"
        # Never a KeyError or an AttributeError from the depths.
        assert error is None or error in case.error


def test_every_message_holds_its_words():
    sentences = {}
    for case, _, sentence in said():
        sentences[case] = sentences.get(case, "") + sentence
    for case, text in sentences.items():
        assert not [word for word in case.words.split() if word not in text], text


def test_every_row_comes_about():
    assert set(ROWS) == {row for _, _, sentence in said() for row in rows_of(sentence)}
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
    assert uncovered(sources(), [sentence for *_, sentence in said()]) == set(EXEMPT)


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
