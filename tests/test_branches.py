"""benchmarks/branches.py: its fits are right where the truth is known, and its page shows its results."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_bsscale.critical_batch import measure_critical_batch
from tests.helpers.training import QUIET

pytest.importorskip("sklearn.datasets")  # it sets environment variables, which a test must not
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def branches():
    import branches

    return branches


def curve(batch, rate):
    """Steps to each loss: a critical batch of 10 down to a loss of 1, and of 60 from there on; best at 0.2."""
    worse = math.exp(math.log(rate / 0.2) ** 2)
    first, second = 30 * (1 + 10 / batch) * worse, 20 * (1 + 60 / batch) * worse
    return [[0, 2.0], [first, 1.0], [first + second, 0.5]]


def test_the_hyperbola_from_a_loss_on_does_not_count_the_way_there(branches):
    batches, rates = (8, 16, 32, 64, 128, 256), (0.1, 0.2, 0.4)
    seed = [
        ({"optimizer": "SGD", "batch": batch, "rate": rate}, {"curve": curve(batch, rate)})
        for batch in batches
        for rate in rates
    ]
    assert branches.local_hyperbola([seed], 1.0, 0.5) == pytest.approx(60, rel=0.01)
    assert branches.whole_hyperbola([seed], 1.0) == pytest.approx(10, rel=0.01)
    # The mean of both, weighted by the steps of a very large batch: what the page says of whole trainings.
    assert branches.whole_hyperbola([seed], 0.5) == pytest.approx((30 * 10 + 20 * 60) / 50, rel=0.01)


def test_losses_at_equal_examples_become_a_hyperbola(branches):
    slope, loss = 0.15, lambda batch: 1.8 + 0.15 * math.log((1 + batch / 50) / (1 + 8 / 50))
    seeds = [{f"fixed{batch}": loss(batch) for batch in (4, 8, 12, 16, 32)}]
    seeds[0]["longer"] = seeds[0]["fixed8"] - slope * math.log(36_736 / 32_000)
    assert branches.language_hyperbola(seeds) == pytest.approx(50, rel=0.01)


def test_what_is_not_resolved_is_said(branches):
    said = lambda **ends: branches.ends({"critical_batch_size": {"value": None, "low": 0.0, "high": None, **ends}})  # noqa: E731
    assert [said(), said(low=8.0), said(high=64.0)] == ["not resolved", "above 8", "below 64"]
    assert said(value=20.0, low=16.0, high=32.0) == "20 (16–32)"
    assert branches.scale([None, 5.0, None]) == "above 5"


def test_the_tasks_can_be_probed(path, tmp_path, branches):
    import probed_tasks

    data = probed_tasks.Text(seed=1, first=8)
    later, whole = (next(iter(one.train_dataloader())) for one in (data, probed_tasks.Text(seed=1, batch_size=12)))
    assert torch.equal(later, whole[8:])
    found = measure_critical_batch(
        *probed_tasks.digits(),
        record=tmp_path / "probe.jsonl",
        trainer_options=QUIET,
        multiples=(1, 2),
        examples=32,
        offsets=2,
        held_out_examples=450,
        say=lambda _: None,
    )
    assert [row.batch_size for row in found.answer.rows] == [8, 16]


def test_the_page_shows_the_results():
    command = [sys.executable, str(ROOT / "benchmarks" / "branches.py"), "all", "--check"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
