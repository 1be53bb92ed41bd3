"""What the loggers really hold: one point a step, at the optimizer step, also where a run went on."""

import csv
import functools

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.optim import SGD

from lightning_bsscale import GradientNoiseScaleMonitor
from tests.helpers.expected_warnings import CANNOT_MEASURE, FOLDER_NOT_EMPTY, MID_EPOCH
from tests.helpers.training import KeepSteps, Regression, fit, regression_loader, scripted

pytestmark = [
    CANNOT_MEASURE,
    MID_EPOCH,
    FOLDER_NOT_EMPTY,
    # Lightning's own, of what tensorboard imports.
    pytest.mark.filterwarnings("ignore:.*PyType_Spec with a metaclass.*:DeprecationWarning"),
]

# 3 epochs of 15 loader batches: windows of 1, 2, 4, 4, 4, then of 4, 4, 4 and 3, twice.
GROWTH = (8, 16)
WINDOWS = [1, 2, 4, 4, 4] + [4, 4, 4, 3] * 2
EXAMPLES = {step: 4 * sum(WINDOWS[: step + 1]) for step in range(13)}
EPOCH_ENDS = {4, 8, 12}
CHANGES = {0, 1}


def due(every):
    """Steps at which we log: where Lightning's loggers take values, at changes of the batch, at the ends of epochs."""
    return sorted({step for step in EXAMPLES if (step + 1) % every == 0} | EPOCH_ENDS | CHANGES)


class Logs(Regression):
    """Logs something of its own at each step, and breaks where it is told to."""

    breaks_at = None

    def __init__(self):
        super().__init__(lambda p: SGD(p, lr=0.05))

    def on_train_batch_start(self, batch, batch_idx):
        if self.breaks_at is not None and self.global_step == self.breaks_at:
            raise RuntimeError("on purpose")

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("own", loss)
        self.log("own_step", float(self.global_step))
        return loss


def read_csv(logger, key):
    """(step, value) of every row with the key."""
    with open(f"{logger.log_dir}/metrics.csv", newline="") as file:
        return [(int(row["step"]), float(row[key])) for row in csv.DictReader(file) if row.get(key)]


def read_tensorboard(logger, key):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(logger.log_dir, size_guidance={"scalars": 0})
    events.Reload()
    # Sorted, as two files of one second come in any order; a point that is there twice stays there twice.
    return sorted((event.step, event.value) for event in events.Scalars(key))


READERS = {CSVLogger: read_csv, TensorBoardLogger: read_tensorboard, KeepSteps: KeepSteps.points}


def make(cls, path):
    return cls(path, name="logs", version=0)


def loggers_and_readers(path):
    loggers = [make(CSVLogger, path / "csv"), make(TensorBoardLogger, path / "tb"), KeepSteps()]
    return loggers, [functools.partial(READERS[type(logger)], logger) for logger in loggers]


@pytest.mark.parametrize("every", [1, 5])
def test_one_point_a_step_at_the_optimizer_step(every, tmp_path):
    """In several loggers at once."""
    loggers, readers = loggers_and_readers(tmp_path)
    settings = dict(max_epochs=3, logger=loggers, log_every_n_steps=every)
    fit(Logs(), regression_loader(60), [scripted(*GROWTH, log_prefix="gns/")], **settings)
    for read in readers:
        assert read("gns/examples_seen") == [(step, EXAMPLES[step]) for step in due(every)]
        for key in ("batch_size", "lr", "lr_scale", "accumulate_grad_batches"):
            assert [step for step, _ in read(f"gns/{key}")] == due(every)
        # Lightning's own metrics of a step have the same x: it logs the steps made before this one.
        assert read("own_step") == [(step, step) for step in EXAMPLES if (step + 1) % every == 0]


@pytest.mark.parametrize("cls", [CSVLogger, TensorBoardLogger])
@pytest.mark.parametrize(("every", "saved"), [(1, 3), (1, 5), (1, 9), (5, 5), (5, 8)])
def test_no_point_twice_where_a_run_went_on(cls, every, saved, tmp_path):
    """Saved after some steps, in an epoch and at its end; broken right after that, and gone on into the same log."""
    module = Logs()
    module.breaks_at = saved
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=saved)
    settings = dict(max_epochs=3, log_every_n_steps=every, enable_checkpointing=True)
    first = make(cls, tmp_path / "first")
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(module, regression_loader(60), [scripted(*GROWTH), keep], logger=first, **settings)
    # CSVLogger begins its file anew, so only TensorBoard can go on in the same folder.
    second = first if cls is TensorBoardLogger else make(cls, tmp_path / "second")
    loader = StartsAt(60, 4, 4 * (sum(WINDOWS[:saved]) % 15))
    path = tmp_path / f"step={saved}.ckpt"
    fit(Logs(), loader, [scripted(), keep], logger=second, ckpt_path=path, **settings)
    read = READERS[cls]
    both = [first] if second is first else [first, second]
    points = [point for logger in both for point in read(logger, "bsscale/examples_seen")]
    assert points == [(step, EXAMPLES[step]) for step in due(every)]
    own = [point for logger in both for point in read(logger, "own_step")]
    assert own == [(step, step) for step in EXAMPLES if (step + 1) % every == 0]


class StartsAt:
    """Gives the rest of its first epoch, then whole ones: a loader that remembers where it was."""

    def __init__(self, examples, batch_size, start):
        self.loader = regression_loader(examples, batch_size)
        self.skip = start // batch_size

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        skip, self.skip = self.skip, 0
        return iter(list(self.loader)[skip:])

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_the_monitors_points(tmp_path):
    loggers, readers = loggers_and_readers(tmp_path)
    watch = GradientNoiseScaleMonitor(measure_every=1)
    settings = dict(max_epochs=3, logger=loggers, log_every_n_steps=3, accumulate_grad_batches=4)
    fit(Logs(), regression_loader(60), [watch], **settings)
    steps = [2, 3, 5, 7, 8, 11]  # 4 steps an epoch
    examples = [4 * (15 * (step // 4) + min(15, 4 * (step % 4 + 1))) for step in steps]
    for read in readers:
        assert read("bsscale/examples_seen") == list(zip(steps, examples, strict=True))
        assert [step for step, _ in read("bsscale/noise_scale")] == steps


def test_infinite_ends_are_readable(tmp_path):
    """Unknown is inf, not a missing point and not a number: the loggers keep it."""
    loggers, readers = loggers_and_readers(tmp_path)
    watch = GradientNoiseScaleMonitor(measure_every=1)
    settings = dict(max_epochs=1, logger=loggers, log_every_n_steps=1, accumulate_grad_batches=2)
    fit(Logs(), regression_loader(60, noise=50.0), [watch], **settings)
    for read in readers:
        values = [value for _, value in read("bsscale/noise_scale_high")]
        assert float("inf") in values
        assert not any(value != value for value in values)


def test_steps_of_a_second_fit_go_on(tmp_path):
    """Lightning's counters go on in a second `fit` of a Trainer, and so does the x axis."""
    logger = KeepSteps()
    module = Logs()
    trainer = fit(module, regression_loader(60), [scripted(*GROWTH)], max_epochs=1, logger=logger, log_every_n_steps=1)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, regression_loader(60))
    assert logger.points("bsscale/examples_seen") == list(EXAMPLES.items())
