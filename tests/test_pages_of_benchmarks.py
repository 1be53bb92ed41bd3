"""Pages whose tables a benchmark writes between markers show the results that are there, and nothing else."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_the_options_show_the_rules_for_sgd(script):
    sgd_rules = script("sgd_rules")
    text, results = sgd_rules.PAGE.read_text(), json.loads((RESULTS / "sgd_rules.json").read_text())
    assert sgd_rules.page_with(text, sgd_rules.table(results)) == text
    # Another result is another page.
    for run in results["runs"]:
        if run["name"] == "digits@0.01@`linear`":
            run["val_loss"] += 0.01
    assert sgd_rules.page_with(text, sgd_rules.table(results)) != text


def test_rules_for_sgd_are_compared_at_the_same_learning_rate_and_seed(script):
    sgd_rules = script("sgd_rules")
    runs = [
        {
            **{"name": f"{key}@{rate:g}@{name}", "seed": seed, "optimizer_steps": 10, "examples": 80},
            **{"val_loss": 7 * rate + 3 * seed + place, "val_accuracy": 0.5 * seed - place},
        }
        for key, training in sgd_rules.TRAININGS.items()
        for rate in training.rates
        for place, name in enumerate(sgd_rules.RULES)
        for seed in range(3)
    ]
    made = sgd_rules.table({"runs": runs, "machine": script("machine").describe(threads=1)}).splitlines()
    for key, training in sgd_rules.TRAININGS.items():
        for place, name in enumerate(sgd_rules.RULES):
            rows = [line for line in made if f"| {training.title} |" in line and f"| {name} |" in line]
            assert len(rows) == len(training.rates)
            for row in rows:
                loss, accuracy = f"{place:+.4f} ± 0.0000", f"{-place:+.4f} ± 0.0000" if key == "digits" else "–"
                assert row.endswith(f"| {loss} | {accuracy} |" if place else "| – | – |")


def test_the_simulation_shows_the_false_growths(script):
    false_growths = script("false_growths")
    rows = [json.loads(line) for line in (RESULTS / "false_growths.jsonl").read_text().splitlines()]
    text = false_growths.PAGE.read_text()
    assert false_growths.page_with(text, rows) == text
    rows[0]["largest"] += 1
    assert false_growths.page_with(text, rows) != text
