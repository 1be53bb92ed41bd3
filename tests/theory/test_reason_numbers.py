"""The numbers of reasons: stable, and each explained in the documentation."""

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_bsscale.theory import policies
from lightning_bsscale.theory.policies import Decision, Reason
from lightning_bsscale.theory.reason_numbers import OF_A_POLICY, REASON_NUMBERS, reason_number
from lightning_bsscale.theory.rules.choose import RULES
from tests.helpers.records import DECISION

ROOT = Path(__file__).parents[2]
# Logs of different versions are compared, so none of these ever changes. New codes come after the last.
FROZEN = {
    **{"grow": 0, "shrink": 0, "in_warmup": 2, "not_before": 3, "no_estimate": 4, "unresolved": 5, "cooling_down": 6},
    **{"at_limit": 7, "near_end": 8, "no_prices": 9, "close_enough": 10, "milestone": 11, "no_cut_due": 12},
    **{"above_noise_scale": 13, "test_passed": 14, "awaits_metric": 15, "behind_trend": 16, "no_decision": 17},
    "few_steps": 18,
}


def test_numbers_are_stable():
    assert REASON_NUMBERS == FROZEN
    held = [number for number in FROZEN.values() if number]
    assert len(held) == len(set(held))
    assert OF_A_POLICY not in held


def codes_in(source):
    """Strings that are given as a code, or returned in a pair as one, in this source."""
    for node in ast.walk(ast.parse(source)):
        values = []
        names = [node.arg] if isinstance(node, ast.keyword) else []
        names += [getattr(one, "id", "") for one in node.targets] if isinstance(node, ast.Assign) else []
        if "code" in names:
            values = [node.value]
        elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
            values = node.value.elts[1:]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "held":
            values = node.args[1:]
        for value in values:
            for inner in ast.walk(value):
                if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                    yield inner.value


def test_every_code_of_the_package_has_a_number():
    """Without those that a policy's answer gets if it has none, which say nothing: they count as its own."""
    sources = [path.read_text(encoding="utf-8") for path in Path(policies.__file__).parent.glob("*.py")]
    given = {code for source in sources for code in codes_in(source)} | {reason.code for reason in Reason}
    assert {"milestone", "no_cut_due", "above_noise_scale", "test_passed", "behind_trend", "no_decision"} <= given
    given -= set(RULES)  # pairs of rules' names
    assert given - {"hold"} <= set(REASON_NUMBERS)
    assert set(REASON_NUMBERS) <= given


def test_the_legend_in_the_documentation():
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \|$", page, flags=re.MULTILINE)
    legend = {code: int(number) for number, codes, _ in rows for code in re.findall(r"`(\w+)`", codes)}
    assert legend == REASON_NUMBERS
    assert str(OF_A_POLICY) in {number for number, *_ in rows}
    said = {code: words for _, codes, words in rows for code in re.findall(r"`(\w+)`", codes)}
    for reason in Reason:
        if REASON_NUMBERS[reason.code]:
            assert said[reason.code] == reason.value.removeprefix("hold: ")


@pytest.mark.parametrize(
    ("code", "requested", "became", "number"),
    [
        ("unresolved", 8, 8, 5),
        ("grow", 16, 16, 0),
        ("doubled", 16, 16, 0),  # whatever a policy calls it, the batch changed
        ("shrink", 4, 4, 0),
        ("waiting", 8, 8, 1),
        ("grow", 16, 8, 1),  # the limits did not allow it
        (None, 8, 8, 1),
    ],
)
def test_a_decision_has_the_number_of_its_code(code, requested, became, number):
    record = replace(DECISION, decision=Decision(batch_size=requested, reason="r", code=code), batch_size=became)
    assert reason_number(record) == number


def test_where_nothing_is_asked_it_is_the_warmup():
    assert reason_number(None) == REASON_NUMBERS["in_warmup"]
