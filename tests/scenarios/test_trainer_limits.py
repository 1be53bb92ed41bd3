"""Limits of the Trainer, and epochs of every length: each loader batch in exactly one step, the budget kept."""

import lightning.pytorch as pl
import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from tests.helpers.expected_warnings import CANNOT_MEASURE, WITHOUT_VALIDATION
from tests.helpers.training import KeepSteps, Numbers, OneHot, UnsizedNumbers, assert_measured_right, fit, scripted

pytestmark = [CANNOT_MEASURE, WITHOUT_VALIDATION, pytest.mark.filterwarnings("ignore:You are overfitting")]

WINDOWS = [1, 3, 4, 2, 5, 3]
MEASURED = dict(measure_every=1, lr_rule="none")


class Probe(OneHot):
    """Counts loader batches, over epochs of any length, and validations."""

    def __init__(self, total=200):
        super().__init__(total, 0)
        self.came, self.validations = 0, []

    def training_step(self, batch, batch_idx):
        self.came += 1
        return self.weight[self.came - 1]

    def on_validation_start(self):
        if not self.trainer.sanity_checking:
            self.validations.append(self.came)


def loader(length, sized=True):
    return DataLoader(Numbers(length) if sized else UnsizedNumbers(length), batch_size=1)


def run(source, callback=None, **settings):
    """A training of loader batches of one example, from windows of two on; looks at every step."""
    module, logger = Probe(), KeepSteps()
    scaler = callback or scripted(*WINDOWS, **MEASURED)
    settings = {"max_epochs": 3, "accumulate_grad_batches": 2, "log_every_n_steps": 1, "logger": logger, **settings}
    trainer = fit(module, source, [scaler], val=loader(2), **settings)
    steps = module.steps
    assert [i for step in steps for i in step] == [*range(module.came)]
    for step in steps:
        assert list(step.values()) == pytest.approx([1 / len(step)] * len(step))
    assert trainer.global_step == len(steps)
    assert scaler.examples_seen == module.came
    if settings["logger"] is logger:
        assert [step for step, _ in logger.points("bsscale/batch_size")] == [*range(len(steps))]
    assert_measured_right(scaler)
    return module, scaler, trainer


def sizes(module):
    return [len(step) for step in module.steps]


def check_monitor(source, **settings):
    """The monitor in a run of its own: nothing changed, every example counted, every window measured right."""
    settings = {"max_epochs": 3, "accumulate_grad_batches": 2, "log_every_n_steps": 1, **settings}
    bare, module, monitor = Probe(), Probe(), GradientNoiseScaleMonitor(measure_every=1, memory=1.0)
    fit(bare, source(), val=loader(2), **settings)
    trainer = fit(module, source(), [monitor], val=loader(2), **settings)
    assert module.steps == bare.steps
    assert module.validations == bare.validations
    assert trainer.callback_metrics["bsscale/examples_seen"] == sum(len(step) for step in module.steps)
    assert_measured_right(monitor)
    assert len(monitor.history) == sum(len(step) > 1 for step in module.steps)


# ---------------------------------------------------------------- how much of an epoch


@pytest.mark.parametrize(
    ("settings", "epoch"),
    [
        ({"limit_train_batches": 7}, 7),
        ({"limit_train_batches": 1}, 1),
        ({"limit_train_batches": 0.55}, 6),
        ({"limit_train_batches": 1.0}, 12),
        ({"overfit_batches": 5}, 5),
        ({"overfit_batches": 0.5}, 6),
    ],
)
def test_a_part_of_the_epoch(settings, epoch):
    module, scaler, _ = run(loader(12), **settings)
    assert module.came == 3 * epoch
    assert scaler.decisions[0].situation.total_examples == 3 * epoch
    check_monitor(lambda: loader(12), **settings)


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_epochs_shorter_than_the_window(sized, length):
    module, _, _ = run(loader(length, sized), scripted(8, 8, 8, **MEASURED), max_epochs=5)
    assert module.came == 5 * length
    # The first window is the user's own, of two.
    assert sizes(module)[-4:] == [length] * 4
    check_monitor(lambda: loader(length, sized), accumulate_grad_batches=8)


@pytest.mark.parametrize(
    "settings",
    [
        {"val_check_interval": 5},
        {"val_check_interval": 0.3},
        {"val_check_interval": 7, "check_val_every_n_epoch": None},
        {"val_check_interval": 17, "check_val_every_n_epoch": None},
        {"val_check_interval": 1, "num_sanity_val_steps": 2},
        {"check_val_every_n_epoch": 2},
        {"num_sanity_val_steps": -1},
    ],
)
def test_validation_within_windows(settings):
    """Lightning clears no gradient there, and validates where the plan would."""
    module, _, _ = run(loader(12), **settings)
    plain = Probe()
    fit(plain, loader(12), val=loader(2), max_epochs=3, accumulate_grad_batches=2, **settings)
    assert module.validations == plain.validations
    assert module.came == 36
    check_monitor(lambda: loader(12), **settings)


# ---------------------------------------------------------------- epochs of changing length


class Reloads(pl.LightningDataModule):
    """Another loader, of another length, at every reload."""

    def __init__(self, lengths, sized=True):
        super().__init__()
        self.lengths, self.sized = list(lengths), sized

    def train_dataloader(self):
        return loader(self.lengths.pop(0), self.sized)


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize(("every", "lengths"), [(1, [10, 15, 7, 12]), (2, [10, 15]), (1, [3, 30, 3, 8])])
def test_epochs_of_changing_length(sized, every, lengths):
    settings = dict(max_epochs=4, accumulate_grad_batches=4, reload_dataloaders_every_n_epochs=every)
    module, scaler = Probe(), scripted(4, 4, 4, **MEASURED)
    fit(module, Reloads(lengths, sized), [scaler], **settings)
    epochs = [length for length in lengths for _ in range(every)]
    assert [i for step in module.steps for i in step] == [*range(sum(epochs))]
    assert scaler.examples_seen == sum(epochs)
    expected = [size for length in epochs for size in [4] * (length // 4) + [length % 4] * (length % 4 > 0)]
    assert sizes(module) == expected


# ---------------------------------------------------------------- how long


@pytest.mark.parametrize(
    ("accumulate", "steps", "sized"), [(1, True, True), (2, True, False), (2, 3, True), (1, 5, False)]
)
def test_fast_dev_run(accumulate, steps, sized):
    """Loggers are off there; the defaults of the callback work, and nothing is left."""
    for callback in (BatchSizeScaler(), GradientNoiseScaleMonitor()):
        module, settings = Probe(), dict(fast_dev_run=steps, accumulate_grad_batches=accumulate)
        trainer = fit(module, loader(12, sized), [callback], val=loader(2), **settings)
        assert [i for step in module.steps for i in step] == [*range(int(steps))]
        assert trainer.callback_metrics["bsscale/examples_seen"] == module.came == int(steps)


def test_fast_dev_run_with_growth_and_record(tmp_path):
    scaler = scripted(2, 3, record=tmp_path / "journal.jsonl", **MEASURED)
    module, _, _ = run(loader(12), scaler, fast_dev_run=7, logger=False, max_epochs=None)
    assert sizes(module) == [2, 2, 3]
    assert (tmp_path / "journal.jsonl").exists()


def test_max_time_alone_plans_nothing():
    """No share can be taken of it: the budget has to be named, or nothing may be a share."""
    with pytest.raises(MisconfigurationException, match="total_examples"):
        fit(Probe(), loader(12), [BatchSizeScaler()], val=loader(2), max_time={"hours": 1})
    scaler = scripted(*WINDOWS, total_examples=40, **MEASURED)
    assert run(loader(12), scaler, max_epochs=None, max_time={"hours": 1})[0].came == 40


@pytest.mark.parametrize(
    ("settings", "total"), [({"max_epochs": -1}, 2), ({"max_epochs": -1}, 29), ({"max_epochs": 99}, 12)]
)
@pytest.mark.parametrize("sized", [True, False])
def test_a_budget_ends_an_endless_training_exactly(settings, sized, total):
    scaler = scripted(*WINDOWS, total_examples=total, **MEASURED)
    assert run(loader(12, sized), scaler, **settings)[0].came == total


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize(("least", "steps"), [(1, 7), (2, 12), (2, 13)])
def test_min_epochs_within_the_budget(sized, least, steps):
    """12 loader batches an epoch, 6 steps of the plan: the budget ends training where it would end without it."""
    module, _, _ = run(loader(12, sized), min_epochs=least, max_epochs=9, max_steps=steps)
    assert module.came == 2 * steps


# ---------------------------------------------------------------- nothing to train on


@pytest.mark.parametrize(
    ("source", "settings"),
    [
        (loader(0), {}),
        (loader(12), {"limit_train_batches": 0}),
        (loader(12), {"limit_train_batches": 0.0}),
        (loader(0, sized=False), {}),
        (loader(12), {"max_epochs": 0}),
        (loader(12), {"max_steps": 0}),
    ],
    ids=["empty", "limit 0", "limit 0.0", "empty stream", "no epochs", "no steps"],
)
@pytest.mark.parametrize("make", [BatchSizeScaler, GradientNoiseScaleMonitor])
@pytest.mark.filterwarnings("ignore:Total length of `.*` across ranks is zero")
@pytest.mark.filterwarnings("ignore:The `num_workers`|`.*` is 0")
def test_without_a_loader_batch_nothing_breaks(source, settings, make, tmp_path):
    module, one = Probe(), make(record=tmp_path / "journal.jsonl")
    trainer = fit(module, source, [one], val=loader(2), **{"max_epochs": 2, "accumulate_grad_batches": 2, **settings})
    assert module.came == trainer.global_step == 0
    assert one.noise_scale is None
    assert one.history == []
    assert one.state_dict() == {}
    assert not (tmp_path / "journal.jsonl").exists()
    one.plot()
    if make is BatchSizeScaler:
        assert (one.batch_size, one.lr_scale, one.examples_seen, one.decisions) == (None, 1.0, 0, [])
        assert one.summary()
    # And then there is something: the same object trains.
    fit(module, loader(12), [one], val=loader(2), max_epochs=1, accumulate_grad_batches=2)
    assert module.came == 12
    assert one.history
