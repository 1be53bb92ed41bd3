"""benchmarks/scaling.py: its model has the closed forms, its promises can be broken, its page shows its results."""

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def step_time(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import step_time

    return step_time


@pytest.fixture
def scaling(step_time):
    import scaling

    return scaling


def test_a_ring_and_a_step(step_time):
    network = step_time.AllReduce(bandwidth=1e9, latency=1e-3)
    assert network.seconds(4e9, 1) == 0
    assert network.seconds(4e9, 2) == pytest.approx(4 + 2e-3)
    assert network.seconds(4e9, 4) == pytest.approx(6 + 6e-3)
    computation = step_time.Computation(micro_batch=3.0, optimizer=0.5)
    assert step_time.step_seconds(computation, 4, 5.0) == pytest.approx(17.5)
    assert step_time.step_seconds(computation, 4, 5.0, overlap=1.0) == pytest.approx(15.5)
    assert step_time.step_seconds(computation, 4, 1.0, overlap=1.0) == pytest.approx(12.5)


def test_a_larger_window_saves_what_is_not_computation(step_time):
    for hardware in step_time.ASSUMED:
        for ranks in step_time.RANKS:
            ratios = [step_time.predict(hardware, ranks, window) for window in step_time.WINDOWS]
            assert ratios[0] == 1
            assert ratios == sorted(ratios, reverse=True)
            sent = hardware.network.seconds(hardware.gradient_bytes, ranks)
            computation = hardware.computation
            share = computation.micro_batch / (computation.micro_batch + sent + computation.optimizer)
            assert ratios[-1] == pytest.approx(share + (1 - share) / step_time.WINDOWS[-1])
    free = replace(hardware, network=step_time.AllReduce(bandwidth=1e30, latency=0.0), optimizer_bytes=0)
    assert step_time.predict(free, 8, 32) == pytest.approx(1)


def made_by(step_time, network, sizes=(10**5, 10**6, 3 * 10**6, 10**7)):
    computation = [
        {"ranks": ranks, "parameters": size, "micro_batch": size * 1e-9, "optimizer": size * 2e-10}
        for ranks in (2, 4)
        for size in sizes
    ]
    steps = []
    for row in computation:
        alone = step_time.Computation(micro_batch=row["micro_batch"], optimizer=row["optimizer"])
        sent = network.seconds(4 * row["parameters"], row["ranks"])
        for window in (1, 2, 4, 8):
            point = {"ranks": row["ranks"], "parameters": row["parameters"], "window": window, "unrest": 0.0}
            steps.append({**point, "seconds": step_time.step_seconds(alone, window, sent)})
    return {"computation": computation, "steps": steps}


@pytest.mark.parametrize("latency", [1e-4, 0.0])
def test_the_fit_finds_the_network_and_predicts_what_it_was_not_fitted_to(step_time, latency):
    network = step_time.AllReduce(bandwidth=2e9, latency=latency)
    found = step_time.check(made_by(step_time, network), (10**5, 10**6, 10**7))
    assert found["bandwidth"] == pytest.approx(2e9, rel=1e-6)
    assert found["latency"] == pytest.approx(latency, abs=1e-10)
    assert [row["points"] for row in found["groups"]] == [3, 9, 4, 4, 12]
    assert all(abs(row["worst_error"]) < 1e-6 for row in found["groups"])


def test_an_error_at_a_point_that_was_not_fitted_is_reported(step_time):
    measured = made_by(step_time, step_time.AllReduce(bandwidth=2e9, latency=1e-4))
    for point in measured["steps"]:
        if point["ranks"] == 4:
            point["seconds"] *= 2
    groups = {row["group"]: row for row in step_time.check(measured, (10**5, 10**6, 10**7))["groups"]}
    assert groups["fitted: 2 ranks, window 1"]["worst_error"] == pytest.approx(0, abs=1e-6)
    assert groups["4 ranks, window 1"]["worst_error"] == pytest.approx(-0.5)


def test_every_broken_promise_is_found(scaling):
    record = {
        "ranks": 2,
        "parameters": 100,
        "final_batch": 64,
        "measured_windows": 2,
        "calls": [*scaling.START, scaling.WINDOW, scaling.WINDOW],
        "files": ["gradients/reduce.py"],
        "others": ["barrier"],
        "others_without": ["barrier"],
    }
    assert scaling.problems([record, copy.deepcopy(record)]) == []
    broken = [
        {"calls": [*record["calls"], scaling.WINDOW]},
        {"calls": [*scaling.START, scaling.WINDOW, ["all_reduce", 8, "torch.float64"]]},
        {"files": ["callbacks/scaler.py"]},
        {"others": ["barrier", "barrier"]},
        {"final_batch": 8},
        {"ranks": 1},
    ]
    for change in broken:
        assert len(scaling.problems([record, record | change])) == 1, change


def test_the_page_shows_the_results():
    command = [sys.executable, str(ROOT / "benchmarks" / "scaling.py"), "--check"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
