"""DDP through the real Trainer, in real processes: windows, measurement, and the same decisions on every rank."""

import pickle
import re

import pytest

from tests.helpers import ddp_runs
from tests.helpers.processes import run

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("place")]


def fit_on(ranks, function, *args, **options):
    return run(bound, ranks, function, args, options, init=False)


def bound(rank, function, args, options):
    return function(rank, *args, **options)


def measured_alone(items, kind="monitor"):
    (found,) = fit_on(1, ddp_runs.monitored, 1, 4, items, kind)
    return found


WINDOWS = [1, 3, 2, 4, 1, 5, 2]


@pytest.mark.parametrize(("ranks", "accumulate"), [(2, 1), (2, 2), (4, 1)])
def test_every_micro_batch_enters_one_step_with_its_weight(ranks, accumulate):
    """An epoch of 11 micro-batches a rank, so windows change within it and its end is ragged."""
    total, epochs = 11 * ranks, 2
    results = fit_on(ranks, ddp_runs.one_hots, ranks, total, WINDOWS, epochs, accumulate)
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
    ("ranks", "accumulate", "sizes", "kind"),
    [(2, 2, [4], "dry run"), (2, 2, [2, 6, 3, 8, 4], "monitor"), (4, 1, [2, 6, 3, 8, 4], "dry run")],
)
def test_the_same_micro_batches_measure_the_same_as_on_one_rank(ranks, accumulate, sizes, kind):
    items = (48, sizes)
    alone = measured_alone(items, kind)
    assert len(alone) == 12
    for found in fit_on(ranks, ddp_runs.monitored, ranks, accumulate, items, kind):
        assert found == [pytest.approx(window, rel=1e-4) for window in alone]


@pytest.mark.parametrize(
    "disturbed",
    [
        {"disturbed": {"slow": 0.003}},
        {"disturbed": {"nan_at": 7}},
        {"sizes": [4, 3, 6, 2]},
    ],
    ids=["slow", "nan", "unequal"],
)
def test_every_rank_decides_alike(disturbed):
    sizes = disturbed.get("sizes", [4])
    items = (400, sizes)
    options = {key: value for key, value in disturbed.items() if key != "sizes"}
    results = fit_on(2, ddp_runs.grows, 2, items, **options)
    assert len({result[0] for result in results}) == 1
    assert results[0][1], "the batch grew"
    assert results[0][2] > 20


@pytest.mark.parametrize("kind", ["monitor", "dry run"])
def test_every_rank_has_the_same_history(kind):
    first, second = fit_on(2, ddp_runs.monitored, 2, 2, (46, [2, 6, 3, 8, 4]), kind, whole=True)
    assert first == second
    assert len(first) == 12


def test_one_small_message_a_measured_window_and_nothing_else():
    items = (400, [4])
    for _, _, measured, calls, _, _ in fit_on(2, ddp_runs.grows, 2, items, counted=True):
        ours = [(name, numel) for name, numel, is_ours in calls if is_ours]
        assert ours == [("all_reduce", 2), ("all_reduce", 3), *[("all_reduce", 17)] * measured]


@pytest.mark.parametrize("count", [398, 22])
def test_at_the_end_every_example_is_counted(count):
    sizes = [4, 4, 1, 1]
    expected = 3 * sum(sizes[index % 4] for index in range(count))
    for result in fit_on(2, ddp_runs.grows, 2, (count, sizes)):
        assert pickle.loads(result[0])[4] == expected


@pytest.mark.parametrize("callback", ["scaler", "monitor"])
def test_loaders_of_different_length_are_refused_on_every_rank(callback):
    results = fit_on(2, ddp_runs.of_other_length, callback)
    for rank, (error, message) in enumerate(results):
        assert error == "MisconfigurationException"
        assert "10 micro-batches" in message
        assert f"rank {rank}" in message


@pytest.mark.parametrize(
    "options",
    [{"gradient_as_bucket_view": True}, {"find_unused_parameters": True}, {"broadcast_buffers": False}],
    ids=lambda options: next(iter(options)),
)
def test_under_the_options_of_ddp(options):
    items = (24, [4])
    alone = measured_alone(items)
    for found in fit_on(2, ddp_runs.with_strategy, 2, items, options):
        assert found == [pytest.approx(window, rel=1e-4) for window in alone]


def test_in_mixed_precision():
    items = (24, [4])
    alone = ddp_runs.monitored(0, 1, 4, items, precision="bf16-mixed")
    assert alone != ddp_runs.monitored(0, 1, 4, items)
    for found in fit_on(2, ddp_runs.monitored, 2, 2, items, precision="bf16-mixed"):
        assert found == [pytest.approx(window, rel=1e-3) for window in alone]


def test_a_hook_that_compresses_the_gradient_is_measured_as_it_steps():
    """The mean is that of the compressed gradients, so it is rounded: three digits of bfloat16."""
    items = (24, [4])
    alone = measured_alone(items)
    for found in fit_on(2, ddp_runs.with_strategy, 2, items, {}, compress=True):
        assert found != alone
        assert found == [pytest.approx(window, rel=0.02, abs=0.02 * window[0]) for window in alone]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (4, 1)])
def test_gone_on_with_on_another_number_of_ranks(tmp_path, before, after):
    """The batch in examples stays where the ranks can make it, and one line says so."""
    items = (400, [4])
    folder = str(tmp_path)
    scripted = {"script": [8], "max_batch_size": 64}
    first = fit_on(before, ddp_runs.grows, before, items, folder=folder, epochs=1, **scripted)
    assert {tuple(result[1]) for result in first} == {(32,)}
    results = fit_on(after, ddp_runs.grows, after, items, ckpt=f"{folder}/epoch=0.ckpt", epochs=2, **scripted)
    assert len({result[0] for result in results}) == 1
    said = [line for line in results[0][4] if "devices" in line]
    assert len(said) == 1
    assert re.search(rf"\b{after} .*\b{before} devices.*\b32 examples.*\b{8 // after} micro-batches", said[0])
    assert results[0][5][:5] == [8 // after] * 5


def test_resumed_on_as_many_ranks_it_decides_as_if_never_stopped(tmp_path):
    items = (400, [4])
    whole = fit_on(2, ddp_runs.grows, 2, items, folder=str(tmp_path), epochs=2)
    again = fit_on(2, ddp_runs.grows, 2, items, ckpt=f"{tmp_path}/epoch=0.ckpt", epochs=2)
    decisions = [
        [{**record, "situation": None} for record in pickle.loads(result[0])[0]] for result in (whole[0], again[0])
    ]
    assert decisions[0] == decisions[1]
    assert whole[0][1]
    assert pickle.loads(whole[1][0])[1] == pickle.loads(again[1][0])[1]
