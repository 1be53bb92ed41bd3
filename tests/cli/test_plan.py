"""The command that plans: what it makes of numbers, a probe and a journal, and what it says."""

import json
import math
import re

import pytest

from lightning_bsscale import BatchSizeScaler
from lightning_bsscale.cli import main
from lightning_bsscale.journal import read_lines
from lightning_bsscale.theory.events import WindowEvent
from lightning_bsscale.theory.records import Measurement
from tests.helpers.expected_warnings import CANNOT_MEASURE
from tests.helpers.training import Regression, fit, regression_loader, scripted
from tests.helpers.written_runs import SIZE, write_run

NUMBERS = ["--critical-batch", "480", "--examples", "10M", "--at-batch", "32"]
TIMES = ["--seconds-per-example", "0.002", "--seconds-per-step", "0.1"]


@pytest.fixture
def planned(capsys):
    """The JSON of a plan."""

    def plan(*words):
        assert main(["plan", *map(str, words), "--json"]) == 0
        told = capsys.readouterr()
        assert told.err == ""
        return json.loads(told.out, parse_constant=pytest.fail)

    return plan


def test_numbers_lead_to_the_closed_forms(planned):
    plan = planned(*NUMBERS, *TIMES, "--lr", "0.001", "--price", "2", "--ranks", "2", "--max-per-device", "48")
    row = plan["recommended"]
    size = row["batch_size"]
    assert size == min(plan["rows"], key=lambda one: one["cost"]["value"])["batch_size"]
    steps = 1e7 / (1 + 32 / 480) / 480 * (1 + 480 / size)
    assert row["steps"]["value"] == pytest.approx(steps)
    assert row["hours"]["value"] == pytest.approx(steps * (0.1 + 0.002 * size / 2) / 3600)
    assert row["cost"]["value"] == pytest.approx(2 * 2 * row["hours"]["value"])
    assert row["micro_batch_size"] * row["accumulate"] * 2 == size
    assert row["micro_batch_size"] <= 48
    assert row["lr"] == pytest.approx(0.001 * math.sqrt(size / 32))
    assert plan["cheapest_batch"] == pytest.approx(math.sqrt(480 * 0.1 / 0.001))
    # Steps at a batch are the same as their examples.
    assert planned(*NUMBERS[:2], "--steps", "312,500", "--at-batch", "32")["min_steps"] == pytest.approx(
        plan["min_steps"]
    )


@pytest.mark.parametrize(
    ("words", "factor"),
    [
        ([], math.sqrt(2)),
        (["--optimizer", "SGD"], (1 + 480 / 32) / (1 + 480 / 64)),
        (["--optimizer", "SGD", "--noise-scale", "96"], (1 + 96 / 32) / (1 + 96 / 64)),
        (["--optimizer", "LARS"], 2),
        (["--rule", "none", "--optimizer", "SGD"], 1),
    ],
)
def test_the_learning_rate_follows_the_rule(planned, words, factor):
    (row,) = (row for row in planned(*NUMBERS, *words)["rows"] if row["batch_size"] == 64)
    assert row["lr_factor"] == pytest.approx(factor)


def test_a_probe_gives_the_ratio_and_a_journal_the_later_noise_scale(planned, tmp_path):
    probe = tmp_path / "probe.json"
    ratio = {"value": 2.0, "low": 1.5, "high": None}
    probe.write_text(json.dumps({"critical_batch_ratio": ratio, "noise_scale": {"value": 30, "low": 20, "high": 50}}))
    plan = planned("--probe", probe, *NUMBERS[2:])
    assert plan["critical_batch"] == {"value": 60.0, "low": 30.0, "high": None}
    assert planned("--probe", probe, *NUMBERS[2:], "--ratio", "1")["critical_batch"]["high"] == 50
    assert planned("--probe", probe, *NUMBERS)["critical_batch"]["value"] == 480
    later = planned("--journal", write_run(tmp_path / "j", 400))
    both = planned("--probe", probe, "--journal", tmp_path / "j")
    assert both["noise_scale"] == later["noise_scale"] == later["critical_batch"]
    assert both["critical_batch"]["value"] == pytest.approx(2 * later["critical_batch"]["value"])


def test_a_journal_tells_what_was_spent_and_what_it_took(planned, tmp_path):
    plan = planned("--journal", write_run(tmp_path / "j", 400))
    windows = [line for _, line in read_lines(tmp_path / "j") if isinstance(line, WindowEvent)]
    critical = plan["critical_batch"]["value"]
    worth = sum(one.length * SIZE / (1 + one.length * SIZE / critical) for one in windows)
    assert plan["min_examples"] == pytest.approx(worth)
    assert sum(one["examples"] for one in plan["spent"]) == 400 * SIZE
    per_loader_batch, per_step = windows[-1].seconds
    for row in plan["rows"]:
        hours = row["steps"]["value"] * (per_step + per_loader_batch * row["batch_size"] / SIZE) / 3600
        assert row["hours"]["value"] == pytest.approx(hours)
    # The last noise scale that is resolved, whatever came after it.
    measured = [line.noise for _, line in read_lines(tmp_path / "j") if isinstance(line, Measurement)]
    assert plan["noise_scale"]["value"] == measured[-1].noise_scale
    before, last = (tmp_path / "j").read_text().rsplit(",true,", 1)  # of the last measurement's list of numbers
    (tmp_path / "unresolved").write_text(f"{before},false,{last}")
    assert planned("--journal", tmp_path / "unresolved")["noise_scale"]["value"] == measured[-2].noise_scale
    # On two devices the loader batches of both are one of that size.
    (tmp_path / "two").write_text((tmp_path / "j").read_text().replace('"world_size":1', '"world_size":2'))
    two = planned("--journal", tmp_path / "two")
    assert {row["ranks"] for row in two["rows"]} == {2}
    assert two["cheapest_batch"] == pytest.approx(plan["cheapest_batch"])
    # Numbers replace what the journal says.
    other = planned("--journal", tmp_path / "j", *NUMBERS, "--seconds-per-step", "1000")
    assert other["spent"] == [{"examples": 1e7, "batch_size": 32}]
    assert other["cheapest_batch"] == pytest.approx(math.sqrt(480 * 1000 * SIZE / per_loader_batch))


@CANNOT_MEASURE
def test_the_journal_of_a_training(planned, tmp_path):
    scaler = scripted(8, 8, 16, record=tmp_path / "run.jsonl", total_examples=126)
    assert isinstance(scaler, BatchSizeScaler)
    fit(Regression(), regression_loader(62), [scaler], max_epochs=2)
    plan = planned("--journal", scaler.journal_path, "--critical-batch", "64")
    # Loader batches of 4, the last of an epoch of 2: 4, 8, 8, 16, 16, 10 of 12; then 16, 16, 16, 14 of 16.
    assert {one["batch_size"]: one["examples"] for one in plan["spent"]} == {4: 4, 8: 16, 12: 10, 16: 94}
    assert plan["lr_rule"] == "linear"
    assert plan["recommended"]["hours"]["value"] > 0


def test_the_answer_comes_first(capsys, tmp_path):
    words = ["plan", *NUMBERS, "--critical-batch", "480", "300", "900", *TIMES]
    assert main([*words, "--out", str(tmp_path / "plan.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "Use a batch of 128 with the learning rate times 2: 92,774 steps, 9.17 h, the fastest of these batches (the "
        "time is least near 155); 128 to 256 within the critical batch's interval."
    )
    (chosen,) = (line.split() for line in lines if line.startswith(">"))
    assert chosen[1:7] == ["128", "1", "x", "128", "2", "92,774"]
    assert lines[-1] == f"picture: {tmp_path / 'plan.png'}"
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert not re.search(r"\de[+-]?\d", "\n".join(lines))


@pytest.mark.parametrize(("text", "number"), [("12.3M", 12.3e6), ("33,675", 33675), ("1e6", 1e6), ("2b", 2e9)])
def test_numbers_are_read_as_people_write_them(planned, text, number):
    assert planned(*NUMBERS[:2], "--examples", text, "--at-batch", "1k")["spent"] == [
        {"examples": pytest.approx(number), "batch_size": 1000}
    ]
