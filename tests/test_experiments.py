"""benchmarks/experiments.py: its computations are right where the truth is known, its page shows its results."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import sklearn.datasets  # noqa: F401  its first import sets environment variables: not inside a test
import torch
from torch import nn

ROOT = Path(__file__).parents[1]
BATCHES = (8, 16, 32, 64, 128, 256, 512)


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def fits():
    import fits

    return fits


@pytest.fixture
def experiments():
    import experiments

    return experiments


def test_laws_are_found_from_exact_points(fits):
    found = fits.fit(fits.hyperbola, BATCHES, [50 * (1 + 60 / batch) for batch in BATCHES])
    assert (found.limit, found.batch) == (pytest.approx(50, rel=0.01), pytest.approx(60, rel=0.01))
    steps, examples = 50 * (1 + 60 / 8), 50 * (8 + 60)
    assert (steps / found.limit - 1) * (examples / (found.limit * found.batch) - 1) == pytest.approx(1, rel=0.02)
    found = fits.fit(fits.saturating, BATCHES, [0.9 / (1 + 60 / batch) for batch in BATCHES])
    assert (found.limit, found.batch, found.error) == pytest.approx((0.9, 60, 0), rel=0.01, abs=2e-3)
    found = fits.fit(fits.surge, BATCHES, [0.2 / ((60 / batch) ** 0.5 + (batch / 60) ** 0.5) for batch in BATCHES])
    assert (found.limit, found.batch) == pytest.approx((0.1, 60), rel=0.01)
    assert fits.exponent(BATCHES, [3 * batch**0.5 for batch in BATCHES]) == pytest.approx((0.5, 0), abs=1e-9)


def test_what_is_no_hyperbola_is_not_fitted_by_one(fits):
    assert fits.fit(fits.hyperbola, BATCHES, [7.0] * 7).batch == 0
    assert math.isinf(fits.fit(fits.hyperbola, BATCHES, [800 / batch for batch in BATCHES]).batch)
    assert fits.fit(fits.hyperbola, BATCHES, [1000 / batch**2 for batch in BATCHES]).error > 0.5
    assert math.isnan(fits.fit(fits.hyperbola, BATCHES, [1.0, 2.0] + 5 * [math.nan]).batch)


def test_the_best_rate_is_within_the_rates_that_were_tried(fits):
    def cost(rate):
        return 5 * math.exp(math.log(rate / 0.3) ** 2)

    rates = [0.1, 0.2, 0.4, 0.8]
    assert fits.best(rates, [cost(rate) for rate in rates]) == pytest.approx((0.3, 5))
    assert fits.best(rates, [9, 8, 7, math.nan]) == (0.4, 7)  # the next one diverges
    assert math.isnan(fits.best(rates[2:], [cost(rate) for rate in rates[2:]])[0])
    assert math.isnan(fits.best(rates, [9, 8, 7, 6])[0])
    assert math.isnan(fits.best(rates, [math.nan] * 4)[0])


def test_a_crossing_is_between_two_looks(fits):
    assert fits.crossing([[0, 4.0], [10, 1.0], [20, 0.25]], 0.5) == pytest.approx(15)
    assert math.isnan(fits.crossing([[0, 4.0], [10, 1.0]], 0.5))


def test_the_noise_scale_of_seeds_is_a_ratio_of_means(experiments):
    assert experiments.pooled([[10, 1], [30, 0.0]]) == 40
    assert math.isinf(experiments.pooled([[10, 1], [30, -2.0]]))


def test_runs_of_a_seed_see_the_same_examples_once_in_each_pass(path):
    from plain_training import Order

    small, large = Order(10, seed=1), Order(10, seed=1)
    examples = torch.cat([small.take(4) for _ in range(5)])
    assert examples.tolist() == torch.cat([large.take(20)]).tolist()
    assert sorted(examples[:10].tolist()) == sorted(examples[10:].tolist()) == list(range(10))
    assert examples[:10].tolist() != examples[10:].tolist()


def test_the_largest_eigenvalue(path):
    from plain_training import largest_eigenvalue

    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))
    loss = (torch.tensor([1.0, 7.0]) * first**2).sum() / 2 + 2 * first[1] * second.sum()
    matrix = torch.tensor([[1.0, 0, 0], [0, 7, 2], [0, 2, 0]])
    wanted = torch.linalg.eigvalsh(matrix).max().item()
    assert largest_eigenvalue(loss, [first, second]) == pytest.approx(wanted, rel=1e-4)


def test_finished_runs_are_not_made_again(experiments, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "RESULTS", tmp_path)
    monkeypatch.setitem(experiments.RUNS, "twice", (lambda seeds: [{"obj": seed} for seed in range(seeds)], dict))
    for seeds in (1, 3):
        experiments.make("twice", seeds, 1)
    assert sorted(job["obj"] for job, _ in experiments.finished("twice")) == [0, 1, 2]


@pytest.fixture
def trainer_runs(path):
    import trainer_runs

    return trainer_runs


RULES = {"LARS": "linear"}


def test_the_libraries_optimizers_are_known_by_their_classes(trainer_runs):
    assert {name: trainer_runs.rule_of(name) for name in trainer_runs.OPTIMIZERS} == {
        name: RULES.get(name, "power") for name in trainer_runs.OPTIMIZERS
    }


def test_muon_is_one_optimizer_for_all_parameters(trainer_runs):
    model = trainer_runs.layers()
    matrices, others = trainer_runs.OPTIMIZERS["Muon"](model, 0.1).param_groups
    assert [tuple(one.shape) for one in matrices["params"]] == [(8, 1, 3, 3), (32, 128)]
    assert [tuple(one.shape) for one in others["params"]] == [(8,), (32,), (10, 32), (10,)]
    assert (matrices["lr"], others["lr"]) == (0.1, 0.02)


@pytest.mark.parametrize("name", ["SGD", "LAMB", "LARS", "Lion", "Muon"])
def test_an_optimizer_trains_with_the_scaler(trainer_runs, monkeypatch, name):
    monkeypatch.setattr(trainer_runs, "EPOCHS", 1)
    job = {"optimizer": name, "batch": 8, "rate": 0.003, "seed": 0, "scaler": True}
    record = trainer_runs.optimizer_run(job)
    assert record["rule"] == RULES.get(name, "power")
    assert record["val_loss"] < 2.31
    assert 8 <= record["final_batch"] <= 168


def test_a_run_that_fails_is_a_result(trainer_runs, monkeypatch):
    def fail(model, rate):
        raise RuntimeError("no")

    monkeypatch.setitem(trainer_runs.OPTIMIZERS, "broken", fail)
    job = {"optimizer": "broken", "batch": 8, "rate": 0.003, "seed": 0, "scaler": True}
    assert trainer_runs.optimizer_run(job) == {"error": "RuntimeError: no"}


def test_each_optimizer_has_its_learning_rate_and_factor(experiments, monkeypatch):
    tuning = [(0.1, 0.3), (0.1, 0.4), (0.2, 0.1), (0.2, math.nan), (0.4, 0.2), (0.4, 0.3), (0.8, None)]
    lines = {
        "optimizer_rates": [
            ({"optimizer": "SGD", "rate": rate}, {"error": "no"} if loss is None else {"val_loss": loss})
            for rate, loss in tuning
        ],
        "optimizer_scaler": [
            ({"optimizer": name, "seed": seed}, {"rule": rule, "noise_scale": noise})
            for name, seed, rule, noise in (
                ("SGD", 1, "saturating", 20.0),
                ("SGD", 0, "saturating", 64.0),
                ("Adam", 0, "sqrt", 64.0),
                ("LARS", 0, "linear", None),
                ("Muon", 0, "power", None),
            )
        ]
        + [({"optimizer": "Lion", "seed": 0}, {"error": "no"})],
    }
    monkeypatch.setattr(experiments, "finished", lines.__getitem__)
    assert experiments.tried_rates("SGD") == {0.1: 0.35, 0.2: math.inf, 0.4: 0.25, 0.8: math.inf}
    assert experiments.best_rate("SGD") == 0.4
    assert experiments.factor_by_rule("SGD") == 4.5
    assert experiments.factor_by_rule("Adam") == pytest.approx(8**0.5)
    assert experiments.factor_by_rule("LARS") == 8
    assert experiments.factor_by_rule("Muon") == round(8**0.75, 2)
    assert math.isnan(experiments.factor_by_rule("Lion"))


def test_the_page_shows_the_results():
    command = [sys.executable, str(ROOT / "benchmarks" / "experiments.py"), "all", "--check"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
