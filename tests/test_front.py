"""benchmarks/front.py: comparisons are right where the truth is known, and its page shows its results."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_bsscale import BatchSizeScaler

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def front():
    import front

    return front


@pytest.fixture
def summary():
    import front_summary

    return front_summary


def run(name, seed, loss, steps, rate=1.0, batch=4, **more):
    return {
        **{"name": name, "seed": seed, "val_loss": loss, "optimizer_steps": steps, "rate": rate, "batch": batch},
        **{"learning_rate": rate, "examples": 1600, **more},
    }


def grown(name, seed, loss, steps, **more):
    return run(name, seed, loss, steps, final_batch=32, package="a", growths=[], **more)


def a_front(spread=0.3):
    """Fixed 4 and 8, the scaler and half its target, a rival between the two; each seed is harder by the same."""
    runs = []
    for seed in range(4):
        hard = spread * seed
        runs += [run("fixed4", seed, 2.0 + hard, 400), run("fixed8", seed, 2.1 + hard, 200, batch=8)]
        runs += [run("fixed4", seed, 2.5 + hard, 400, rate=2.0)]
        runs += [grown("scaler", seed, 2.05 + hard, 50), grown("scaler0.5", seed, 1.95 + hard, 200)]
        runs += [grown("rival", seed, 2.02 + hard, 100)]
    return runs


def test_the_best_rate_is_that_of_the_lowest_mean_over_common_seeds(summary):
    runs = a_front()
    assert summary.best_rates(runs)["fixed4"] == 1.0
    # One lucky seed of another rate does not count.
    assert summary.best_rates([*runs, run("fixed4", 0, 0.1, 400, rate=3.0)])["fixed4"] == 1.0
    assert summary.best_rates([run("a", 0, math.nan, 9), run("a", 0, 5.0, 9, rate=2.0)])["a"] == 2.0


def test_seconds_are_those_of_the_learning_rate_that_counts(summary):
    timed = [run("fixed4", seed, 2.0, 400, rate=rate, seconds=seed + 10 * rate) for seed in range(3) for rate in (1, 2)]
    rows = summary.summarize(a_front(), timed, start=4, ours=["scaler"])["rows"]
    seconds = {(row["name"], row["rate"]): row["seconds"] for row in rows}
    assert (seconds["fixed4", 1.0], seconds["fixed4", 2.0], seconds["scaler", 1.0]) == (11, None, None)


def test_comparisons_are_paired_by_seed(summary):
    found = summary.summarize(a_front(), [], start=4, ours=["scaler", "scaler0.5"])
    (to_8, to_4) = found["against_fixed"]
    assert (to_4["against"], to_4["difference"], to_4["steps_ratio"]) == ("fixed4", pytest.approx(0.05), 0.125)
    assert (to_8["difference"], to_8["steps_ratio"]) == (pytest.approx(-0.05), 0.25)
    assert to_4["error"] == pytest.approx(0, abs=1e-12)  # though a seed alone is worth 0.3
    assert next(row for row in found["rows"] if row["name"] == "scaler")["error"] > 0.15


def test_a_rival_is_compared_at_its_own_number_of_steps(summary):
    # 100 steps are halfway from 50 to 200 along their logarithm, where ours is 2.00.
    (rival,) = summary.summarize(a_front(), [], start=4, ours=["scaler", "scaler0.5"])["against_others"]
    assert (rival["difference"], rival["is_beyond"]) == (pytest.approx(0.02), False)
    # With the scaler alone there is no front to read from, and the page says so.
    alone = [one for one in a_front() if one["name"] != "scaler0.5"]
    (rival,) = summary.summarize(alone, [], start=4, ours=["scaler"])["against_others"]
    assert (rival["difference"], rival["is_beyond"]) == (pytest.approx(-0.03), True)


@pytest.mark.parametrize(("loss", "steps"), [(2.0, 400), (2.05, 400 / 2**0.5), (2.1, 200), (3.0, 200), (1.9, None)])
def test_steps_of_the_fixed_batches_at_a_loss(summary, loss, steps):
    found = summary.steps_at_loss(loss, [(200, 2.1), (400, 2.0)])
    assert found == (steps if steps is None else pytest.approx(steps))


def test_the_plan_in_hindsight_is_the_scalers_mean_batch(front):
    task = front.TASKS["lm"]
    growths = [[{"examples": 400, "batch": 8}, {"examples": 800, "batch": 64}], [{"examples": 420, "batch": 32}]]
    runs = [run("fixed4", 0, 2.0, 400), *(grown("scaler", seed, 2.0, 50) for seed in (0, 1))]
    for one, made in zip(runs[1:], growths, strict=True):
        one["growths"] = made
    # At a quarter one has 8 and the other 4; at 5/16 8 and 32; from a half on 64 and 32.
    assert front.hindsight(task, runs) == [[0.25, 1.0 * round(2**0.5 + 0.1)], [0.3125, 4.0], [0.5, 11.0]][1:]


def test_a_run_is_known_by_everything_that_it_depends_on(front):
    task = front.TASKS["digits"]
    job = {"name": "fixed8", "batch": 8, "rate": 1.0, "seed": 0}
    keys = {front.key_of(task, {**job, **change}) for change in ({}, {"batch": 16}, {"rate": 2.0}, {"seed": 1})}
    assert len(keys) == 4
    assert front.key_of(front.TASKS["pieces"], job) not in keys


def test_every_method_starts_a_training(front):
    from front_methods import METHODS

    for name, method in METHODS.items():
        for sgd in (True, False):
            made = method.make(sgd, [[0.25, 2.0], [0.5, 4.0]])
            assert isinstance(made, BatchSizeScaler), name


def test_the_page_shows_the_results():
    command = [sys.executable, str(ROOT / "benchmarks" / "front.py"), "--check"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
