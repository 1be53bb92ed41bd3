"""benchmarks/also_scale.py: it records what is updated with, pairs by seed, and its page shows its results."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture
def also_scale(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import also_scale

    return also_scale


def result(loss, **more):
    return {"loss": loss, "steps": 10, "growth": 2.0, "decay": 0.1, "averaging": 0.9, **more}


def runs_of(also_scale, seeds):
    """Every rule makes the loss of a seed larger by its place in the task."""
    return [
        ({"task": task, "name": name, "seed": seed}, result(seed + 0.01 * place))
        for seed in range(seeds)
        for task, training in also_scale.TASKS.items()
        for place, name in enumerate((also_scale.FIXED, also_scale.SCALER, *training.rules))
    ]


def test_an_optimizer_records_what_it_updates_with(also_scale):
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = also_scale.recording(torch.optim.AdamW)([weight], lr=0.1, weight_decay=0.5, betas=(0.9, 0.99))
    for lr, beta2 in ((0.1, 0.95), (0.3, 0.99)):
        optimizer.param_groups[0] |= {"lr": lr, "betas": (0.9, beta2)}
        weight.grad = torch.zeros(1)
        optimizer.step()
    assert optimizer.decay == pytest.approx(0.5 * (0.1 + 0.3))
    assert optimizer.averaging == 0.95  # the lowest: the last window of an epoch may be a small one
    assert weight.item() == pytest.approx((1 - 0.05) * (1 - 0.15))


def test_differences_are_paired_by_seed(also_scale):
    runs = runs_of(also_scale, 3)
    groups = also_scale.by_name(runs, "digits, SGD")
    assert also_scale.differences(groups, "Momentum()") == pytest.approx([0.01] * 3)
    assert also_scale.differences(groups, "fixed batch") == pytest.approx([-0.01] * 3)
    # Paired, the seeds' own differences cancel out; the means' errors are large.
    (line,) = [line for line in also_scale.table(runs).splitlines() if "Momentum()" in line]
    assert "1.0200 ± 0.5774 | +0.0100 ± 0.0000" in line


def test_an_unfinished_seed_is_left_out(also_scale):
    whole, cut = (also_scale.table(runs) for runs in (runs_of(also_scale, 2), runs_of(also_scale, 3)[:-1]))
    task = "| digits, SGD"
    assert [line for line in cut.splitlines() if line.startswith(task)] == [
        line for line in whole.splitlines() if line.startswith(task)
    ]
    assert cut != whole  # the other tasks have a third seed
    assert "±" not in also_scale.table(runs_of(also_scale, 1)).split("Losses")[0]


def test_the_interval_is_students(also_scale):
    assert also_scale.half_width(2.0, 8) == pytest.approx(4.73)
    assert also_scale.half_width(2.0, 2) == pytest.approx(25.412)


def test_every_seed_has_every_run_once(also_scale):
    jobs = also_scale.jobs(2)
    assert (
        len({json.dumps(job, sort_keys=True) for job in jobs})
        == len(jobs)
        == 2 * sum(2 + len(training.rules) for training in also_scale.TASKS.values())
    )


def test_finished_runs_are_not_made_again(also_scale, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(also_scale, "run", lambda job: made.append(job) or result(1.0))
    for seeds in (1, 2):
        also_scale.make(tmp_path / "runs.jsonl", seeds)
    assert made == also_scale.jobs(2)
    assert [job for job, _ in also_scale.finished(tmp_path / "runs.jsonl")] == made


def test_the_page_shows_the_results():
    command = [sys.executable, str(ROOT / "benchmarks" / "also_scale.py"), "--check"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
