"""DDP through the real Trainer, in real processes: windows, measurement, and the same decisions on every rank."""

import pickle
import re
from pathlib import Path

import pytest
import torch

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from lightning_bsscale.gradients.comparison import not_compared
from tests.helpers import ddp_runs
from tests.helpers.processes import fit_on

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("place")]


DOCS = Path(__file__).parents[2] / "docs"
MESSAGES = {
    "distributed.md": r"one message of (\d+) 64-bit numbers \((\d+) bytes\).*two messages of (\d+) and (\d+) numbers",
    "scaling.md": r"one all-reduce of (\d+) float64 numbers \((\d+) bytes\).*at the start \((\d+) and (\d+) bytes\)",
}


def sizes_on(page):
    (found,) = re.findall(MESSAGES[page], (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    return [int(number) for number in found]


WRITTEN = {page: sizes_on(page) for page in MESSAGES}
"""Numbers and bytes of the message of a measured window, and of the two at the start, as the pages have them."""


def measured_alone(items, kind="monitor", **settings):
    (found,) = fit_on(1, ddp_runs.monitored, 1, 4, items, kind, **settings)
    return found


WINDOWS = [1, 3, 2, 4, 1, 5, 2]


@pytest.mark.parametrize(("ranks", "accumulate", "largest"), [(2, 1, None), (2, 2, 3), (4, 1, None), (2, 1, 100)])
def test_every_loader_batch_enters_one_step_with_its_weight(ranks, accumulate, largest):
    """An epoch of 11 loader batches a rank, so windows change within it and its end is ragged."""
    total, epochs = 11 * ranks, 2
    results = fit_on(ranks, ddp_runs.one_hots, ranks, total, WINDOWS, epochs, accumulate, largest)
    expected, steps = [], 0
    for epoch in range(epochs):
        position = 0
        while position < 11:
            wanted = accumulate if steps == 0 else WINDOWS[steps % len(WINDOWS)]
            length = min(wanted, 11 - position)
            items = range(position * ranks, (position + length) * ranks)
            expected.append({(epoch, item): round(1 / (length * ranks), 6) for item in items})
            position, steps = position + length, steps + 1
    for seen, reductions, global_step, examples, _ in results:
        assert seen == [pytest.approx(step, abs=2e-6) for step in expected]
        assert reductions == global_step == steps
        assert examples == total * epochs
    assert results[0][4] == list(range(steps))


@pytest.mark.parametrize(
    ("ranks", "accumulate", "count", "sizes", "kind"),
    [
        (2, 2, 48, [4], "dry run"),
        (2, 2, 46, [2, 6, 3, 8, 4], "monitor"),
        (2, 2, 46, [2, 6, 3, 8, 4], "dry run"),
        (4, 1, 48, [2, 6, 3, 8, 4], "dry run"),
    ],
)
def test_the_same_micro_batches_measure_the_same_as_on_one_rank(ranks, accumulate, count, sizes, kind):
    alone = measured_alone((count, sizes), kind)
    assert len(alone) == 12
    first, *others = fit_on(ranks, ddp_runs.monitored, ranks, accumulate, (count, sizes), kind)
    assert first == [pytest.approx(window, rel=1e-4) for window in alone]
    assert all(other == first for other in others)


@pytest.mark.parametrize(
    ("disturbed", "sizes"),
    [({"slow": 0.003}, [4]), ({"nan_at": 7}, [4]), ({}, [4, 3, 6, 2])],
    ids=["slow", "nan", "unequal"],
)
def test_every_rank_decides_alike(disturbed, sizes):
    results = fit_on(2, ddp_runs.grows, (400, sizes), disturbed)
    assert len({result[0] for result in results}) == 1
    assert results[0][1], "the batch grew"
    assert results[0][2] > 20


def test_the_pages_agree_on_the_sizes_of_the_messages():
    numbers, size, *starts = WRITTEN["distributed.md"]
    assert size == 8 * numbers
    assert WRITTEN["scaling.md"] == [numbers, size, *(8 * start for start in starts)]
    (own,) = re.findall(r"the callback's own message: (\d+) bytes", (DOCS / "scaling.md").read_text(encoding="utf-8"))
    assert int(own) == size
    (compares,) = re.findall(r"and (\w+) numbers that \[compare", (DOCS / "distributed.md").read_text(encoding="utf-8"))
    assert compares == {9: "nine"}[len(not_compared(torch.device("cpu"))) - 1]


def test_one_small_message_a_measured_window_and_nothing_else():
    items = (400, [4])
    for _, _, measured, calls in fit_on(2, ddp_runs.grows, items, counted=True):
        ours = [(name, numel) for name, numel, is_ours in calls if is_ours]
        assert {name for name, _ in ours} == {"all_reduce"}
        numbers, starts = WRITTEN["distributed.md"][0], WRITTEN["distributed.md"][2:]
        assert [numel for _, numel in ours] == [*starts, *[numbers] * measured]


@pytest.mark.parametrize("logged_by", ["all", "one"])
def test_a_watched_metric_is_the_mean_over_the_ranks_that_logged_it(logged_by):
    (values, decisions), other = fit_on(2, ddp_runs.watches, logged_by)
    assert other == (values, decisions)
    assert len(values) > 3
    assert [value - values[0][1] for _, value in values] == sorted({value - values[0][1] for _, value in values})
    assert values[0][1] == (11.0 if logged_by == "all" else 10.0)
    assert 16 in {size for _, size in decisions}


@pytest.mark.parametrize("count", [398, 22])
def test_at_the_end_every_example_is_counted(count):
    sizes = [4, 4, 1, 1]
    expected = 3 * sum(sizes[index % 4] for index in range(count))
    for result in fit_on(2, ddp_runs.grows, (count, sizes)):
        assert pickle.loads(result[0])[4] == expected


@pytest.mark.parametrize("callback", [BatchSizeScaler, GradientNoiseScaleMonitor])
def test_loaders_of_different_length_are_refused_on_every_rank(callback):
    results = fit_on(2, ddp_runs.of_other_length, callback)
    for rank, (error, message) in enumerate(results):
        assert error == "MisconfigurationException"
        assert "10 loader batches" in message
        assert f"rank {rank}" in message


@pytest.mark.parametrize(
    ("option", "value"),
    [("gradient_as_bucket_view", True), ("find_unused_parameters", True), ("broadcast_buffers", False)],
)
def test_under_the_options_of_ddp(option, value):
    items = (24, [4])
    alone = measured_alone(items)
    model = ddp_runs.Unused if option == "find_unused_parameters" else ddp_runs.Linear
    for found in fit_on(2, ddp_runs.monitored, 2, 2, items, model=model, ddp={option: value}):
        assert found == [pytest.approx(window, rel=1e-4) for window in alone]


def test_in_mixed_precision():
    items = (24, [4])
    alone = measured_alone(items, precision="bf16-mixed")
    assert alone != measured_alone(items)
    for found in fit_on(2, ddp_runs.monitored, 2, 2, items, precision="bf16-mixed"):
        assert found == [pytest.approx(window, rel=1e-3) for window in alone]


def test_a_hook_that_compresses_the_gradient_is_measured_as_it_steps():
    """The mean is that of the compressed gradients, so it is rounded: three digits of bfloat16."""
    items = (24, [4])
    alone = measured_alone(items)
    for found in fit_on(2, ddp_runs.monitored, 2, 2, items, model=ddp_runs.Compressed):
        assert found != alone
        assert found == [pytest.approx(window, rel=0.02, abs=0.02 * window[0]) for window in alone]


def test_rows_have_the_examples_and_one_rank_gives_the_picture():
    """Nothing is sent for it, and Lightning does not advise to send it."""
    results = fit_on(2, ddp_runs.logs)
    for rank, (logged, figures, losses, said) in enumerate(results):
        assert losses == ["epoch_loss", "train_loss", "val_loss"]
        assert said == []
        assert figures == (["bsscale/run"] if rank == 0 else [])
        rows = [(step, row) for step, row in logged if "bsscale/batch_size" not in row]
        assert rows
        for name in losses:
            assert any(name in row for _, row in rows)
        seen = [(step, row["bsscale/examples_seen"]) for step, row in rows]
        assert all(0 < examples <= 320 for _, examples in seen)
        # Within a window the step in progress has no examples yet; where it has, the rows agree.
        ours = {step: row["bsscale/examples_seen"] for step, row in logged if "bsscale/batch_size" in row}
        assert all(examples <= ours[step] for step, examples in seen if step in ours)
    assert results[0][0][0][1].keys() == results[1][0][0][1].keys()
