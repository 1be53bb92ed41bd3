"""Checkpoints within an epoch, resumed with other loader batches: plan, schedulers and examples end together.

Lightning restores the index in the epoch, whatever the loader batch. Beyond the new length it begins the epoch anew;
below it, it leaves out a part of the data, or takes a part of it again.
"""

import pytest
import torch

from lightning_bsscale import BatchSizeScaler
from tests.helpers.expected_warnings import CANNOT_MEASURE, CKPT_PATH, MID_EPOCH, OTHER_START, WITHIN_A_WINDOW, ignored
from tests.helpers.training import CountsWindows, Saves, Scripted, fit, one_cycle, regression_loader, run_of

pytestmark = [
    CANNOT_MEASURE,
    CKPT_PATH,
    MID_EPOCH,
    ignored(OTHER_START),
    WITHIN_A_WINDOW,
    pytest.mark.filterwarnings("ignore:.*max_epochs. was not set"),
]

EXAMPLES, EPOCHS = 84, 3
LENGTH = EXAMPLES // 4  # loader batches of 4
STARTS = {"epochs": [1, 2], "steps": [1, 2]}
# Index of the loader batch (None: at the epoch's end), and epoch.
POSITIONS = {"0-16": (15, 0), "0-21": (20, 0), "1-20": (19, 1), "1-end": (None, 1), "2-7": (6, 2)}
# Loader batch and accumulate_grad_batches of the resumed run; None keeps the number.
SIZES = [(2, None), (3, None), (8, None), (40, None), (8, 3)]


def limits(ends_with, accumulate):
    """Three epochs, by their number or by that of their steps."""
    if ends_with == "epochs":
        return {"max_epochs": EPOCHS, "accumulate_grad_batches": accumulate}
    return {"max_epochs": -1, "max_steps": planned(accumulate), "accumulate_grad_batches": accumulate}


def planned(accumulate):
    return EPOCHS * -(-LENGTH // accumulate)


def train(batches, batch_size, others=(), **settings):
    scaler = BatchSizeScaler(policy=Scripted(batches), warmup=0, lr_rule="none", split=False)
    module, loader = CountsWindows(scheduler=one_cycle()), regression_loader(EXAMPLES, batch_size=batch_size)
    trainer = fit(module, loader, [scaler, *others], **settings)
    return scaler, sum(module.windows) + module.seen, trainer


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a checkpoint for every position, by limit and accumulation."""
    folders = {}
    for ends_with, numbers in STARTS.items():
        for accumulate in numbers:
            folders[ends_with, accumulate] = folder = tmp_path_factory.mktemp("saved")
            saves = [Saves(folder / f"{name}.ckpt", *at) for name, at in POSITIONS.items()]
            train([8, 12, 8, 16], 4, saves, **limits(ends_with, accumulate))
    return folders


def state_in(path):
    return run_of(torch.load(path)["callbacks"]["BatchSizeScaler"])


def assert_all_end_together(path, ends_with, accumulate, size, now, others=()):
    before = state_in(path).examples.total
    settings = limits(ends_with, accumulate) | {"accumulate_grad_batches": now or accumulate}
    scaler, seen, trainer = train([12, 16, 12, 20], size, others, ckpt_path=path, **settings)
    case = f"{path.stem}, loader batches of {size}, accumulate_grad_batches={now or accumulate}"
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == planned(accumulate), case
    assert run_of(scaler).planned_steps == planned(accumulate), case
    assert scaler.examples_seen == before + seen, case
    if ends_with == "steps":  # whatever Lightning leaves out of an epoch: to a loader batch at either end
        lost = run_of(scaler).lost_examples
        assert abs(scaler.examples_seen + lost - EPOCHS * EXAMPLES) <= 2 * max(size, 4 * accumulate), case
    return scaler


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("ends_with", list(STARTS))
def test_plan_scheduler_and_examples_end_together(saved, ends_with, accumulate, position):
    for size, now in SIZES if accumulate == 1 else SIZES[1::3]:
        path = saved[ends_with, accumulate] / f"{position}.ckpt"
        assert_all_end_together(path, ends_with, accumulate, size, now)


def test_what_a_cut_window_lost_keeps_its_size_in_the_plan(tmp_path):
    """With a budget, which counts it too, the plan ends where the training does."""

    def trained(size, batches, others=(), **settings):
        options = dict(warmup=0, lr_rule="none", split=False, total_examples=EPOCHS * EXAMPLES)
        scaler = BatchSizeScaler(policy=Scripted(batches), **options)
        module, loader = CountsWindows(scheduler=one_cycle(planned(1))), regression_loader(EXAMPLES, batch_size=size)
        trainer = fit(module, loader, [scaler, *others], max_epochs=10, **settings)
        steps = trainer.lr_scheduler_configs[0].scheduler.last_epoch
        return steps, run_of(scaler).planned_steps, run_of(scaler).used_examples

    path = tmp_path / "saved.ckpt"
    trained(4, [8, 12, 8, 16], [Saves(path, 6, 2)])
    assert state_in(path).window.ended == 1
    for size in (2, 8):
        found = trained(size, [12, 16, 12, 20], ckpt_path=path)
        assert found == (planned(1), planned(1), EPOCHS * EXAMPLES), size


def test_the_schedule_waits_while_an_epoch_is_repeated_and_does_so_after_another_resume(saved, tmp_path):
    """16 of 21 loader batches of 4, then 11 of 8: Lightning begins the epoch anew."""
    saves = [Saves(tmp_path / f"{index}.ckpt", index) for index in (0, 2, 5, 7, 9)]
    assert_all_end_together(saved["epochs", 1] / "0-16.ckpt", "epochs", 1, 8, None, saves)
    steps = []
    for one in saves:
        steps.append(torch.load(one.path)["lr_schedulers"][0]["last_epoch"])
        assert state_in(one.path).planned_steps == steps[-1]
        for size in (2, 8, 40):
            assert_all_end_together(one.path, "epochs", 1, size, None)
    assert steps == [15, 15, 15, 16, 20], "the window that ended last before the first checkpoint ended at 15"
