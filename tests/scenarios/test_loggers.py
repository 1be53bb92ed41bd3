"""What the loggers really hold: one point a step, what is known and no more, and the examples on every row."""

import csv
import functools
import math

import pytest
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.optim import SGD

from lightning_bsscale import BatchSizeScaler, Decision, GradientNoiseScaleMonitor, Policy, Reason
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


def once(points):
    """Points of which each may be there several times: ``examples_seen`` is on every row of a step."""
    assert len({step for step, _ in points}) == len(set(points)), "two values at one step"
    return sorted(set(points))


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
        assert once(read("gns/examples_seen")) == [(step, EXAMPLES[step]) for step in due(every)]
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
    for key in ("batch_size", "lr", "accumulate_grad_batches"):
        points = [point for logger in both for point in read(logger, f"bsscale/{key}")]
        assert [step for step, _ in points] == due(every)
    points = [point for logger in both for point in once(read(logger, "bsscale/examples_seen"))]
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
        assert once(read("bsscale/examples_seen")) == list(zip(steps, examples, strict=True))
        assert [step for step, _ in read("bsscale/grad_trace_cov")] == steps


@pytest.mark.parametrize("callback", [GradientNoiseScaleMonitor, BatchSizeScaler])
def test_what_is_unknown_reaches_no_logger(callback, tmp_path):
    """No infinity, no lower end of 0, and no estimate that may be anything; code that asks gets the infinity."""
    loggers, readers = loggers_and_readers(tmp_path)
    watch = callback(measure_every=1, split=False, memory=1.0)
    settings = dict(max_epochs=1, logger=loggers, log_every_n_steps=1, accumulate_grad_batches=2)
    module = Logs()
    module.make_optimizer = lambda parameters: SGD(parameters, lr=1e-4)  # so the gradient stays, and is resolved
    trainer = fit(module, regression_loader(200, noise=3.0), [watch], **settings)
    by_step = {made.optimizer_steps: made.noise for made in watch.history}
    # A measurement arrives one step later.
    noises = {step: by_step.get(step) for step in range(trainer.global_step)}
    known = {
        "noise_scale": [step for step, noise in noises.items() if noise is not None and noise.resolved],
        "noise_scale_low": [step for step, noise in noises.items() if noise is not None and noise.low > 0],
        "noise_scale_high": [step for step, noise in noises.items() if noise is not None and noise.high < math.inf],
        "grad_sq_norm": [step for step, noise in noises.items() if noise is not None],
    }
    assert 0 < len(known["noise_scale"]) < len(known["noise_scale_low"]) < len(known["grad_sq_norm"])
    for read in readers:
        for key, steps in known.items():
            points = read(f"bsscale/{key}")
            assert [step for step, _ in points] == steps
            assert all(math.isfinite(value) for _, value in points)
    everything = [value for _, values in loggers[2].logged for value in values.values()]
    assert all(math.isfinite(value) for value in everything)
    assert "bsscale/noise_scale" in trainer.callback_metrics
    last = noises[trainer.global_step - 1]
    shown = float(trainer.callback_metrics["bsscale/noise_scale"])
    assert shown == (last.noise_scale if last.resolved else math.inf)


class LogsEverything(Logs):
    """Logs at steps, at epochs and in validation, from steps and from hooks, with two validation loaders."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("of_epoch", loss, on_step=False, on_epoch=True)
        self.log("of_both", loss, on_step=True, on_epoch=True)
        return loss

    def on_train_epoch_end(self):
        self.log("at_epoch_end", 1.0)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("val", 1.0)

    def on_validation_epoch_end(self):
        self.log("at_validation_end", 1.0)


def rows_of(logger):
    with open(f"{logger.log_dir}/metrics.csv", newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.mark.parametrize("every", [1, 4, 100])
def test_every_row_has_the_examples(every, tmp_path):
    """So any key can be drawn against them. Only LearningRateMonitor's rows, which it writes itself, have none."""
    logger, module = make(CSVLogger, tmp_path), LogsEverything()
    watch = [LearningRateMonitor("step"), scripted(*GROWTH)]
    settings = dict(max_epochs=3, logger=logger, log_every_n_steps=every, val_check_interval=5)
    fit(module, regression_loader(60), watch, val=[regression_loader(8), regression_loader(4)], **settings)
    rows = rows_of(logger)
    without = [row for row in rows if "bsscale/examples_seen" not in row]
    assert all(set(row) == {"lr-SGD", "step"} for row in without)
    for key in ("own", "of_epoch", "at_epoch_end", "val/dataloader_idx_0", "at_validation_end", "bsscale/batch_size"):
        assert any(key in row for row in rows) or (key == "own" and every == 100), key
    for row in rows:
        if "val/dataloader_idx_0" in row:  # validated after 5, 10 and 15 loader batches, perhaps within a window
            assert row["bsscale/examples_seen"] in {4 * sum(WINDOWS[:step]) for step in range(1, 14)}
            assert row["bsscale/examples_seen"] <= EXAMPLES[min(12, row["step"])]
        elif "bsscale/examples_seen" in row:
            assert row["bsscale/examples_seen"] == EXAMPLES[row["step"]]
    # Nothing else is there twice at a step, and no row says nothing but where it is.
    for key in {key for row in rows for key in row} - {"epoch", "step", "lr-SGD", "bsscale/examples_seen"}:
        steps = [row["step"] for row in rows if key in row]
        assert len(steps) == len(set(steps)) or key == "at_validation_end" or key.startswith("val"), key
    assert not [row for row in rows if set(row) <= {"epoch", "step", "bsscale/examples_seen"}]


def test_without_values_of_the_users_there_is_no_row_of_lightnings(tmp_path):
    logger = make(CSVLogger, tmp_path)
    module = Regression(lambda p: SGD(p, lr=0.05))
    fit(module, regression_loader(60), [scripted(*GROWTH)], max_epochs=2, logger=logger, log_every_n_steps=1)
    rows = rows_of(logger)
    assert [row["step"] for row in rows] == list(range(9))
    assert all("epoch" not in row for row in rows)


@pytest.mark.parametrize("callback", [GradientNoiseScaleMonitor, BatchSizeScaler])
def test_steps_that_count_examples(callback, tmp_path):
    """Ours alone: Lightning's rows are left as they are, as one key cannot have two kinds of step."""
    loggers, readers = loggers_and_readers(tmp_path)
    if callback is BatchSizeScaler:
        watch = scripted(*GROWTH, log_step="examples")
        expected = [EXAMPLES[step] for step in due(2)]
    else:
        watch = callback(log_step="examples", split=False)
        expected = [8, 16, 24, 32, 40, 48, 56, 60] * 2
        expected = [4 * min(15, step % 15 or 15) + 60 * ((step - 1) // 15) for step in range(1, 31)][1::2]
    settings = dict(max_epochs=3 if callback is BatchSizeScaler else 2, logger=loggers, log_every_n_steps=2)
    fit(LogsEverything(), regression_loader(60), [watch], val=[regression_loader(4)] * 2, **settings)
    for read in readers:
        points = read("bsscale/examples_seen")
        assert points == [(examples, examples) for examples, _ in points]
        steps = [step for step, _ in points]
        assert steps == sorted(set(steps))
        assert set(expected) <= set(steps)
        assert [step for step, _ in read("bsscale/batch_size")] == steps
        # The user's own keys have Lightning's steps.
        assert [step for step, _ in read("own_step")] == [value for _, value in read("own_step")]


def test_the_reason_of_a_hold_is_a_number():
    class Reasons(Policy):
        def decide(self, situation, limits):
            if situation.optimizer_steps in (5, 9):
                return Decision(batch_size=2 * situation.batch_size, reason="grow", code="mine")
            code = "mine" if situation.optimizer_steps > 9 else Reason.UNRESOLVED.code
            return Decision(batch_size=situation.batch_size, reason="hold", code=code)

    logger = KeepSteps()
    scaler = scripted(policy=Reasons(), warmup=12)
    fit(Logs(), regression_loader(60), [scaler], max_epochs=1, logger=logger, log_every_n_steps=1)
    numbers = [number for _, number in logger.points("bsscale/hold_reason")]
    # In the warmup of 12 examples (the third step ends it), then unresolved, a change, unresolved, a change, its own.
    assert numbers == [2, 2, 5, 5, 0, 5, 5, 5, 0][: len(numbers)] + [1] * (len(numbers) - 9)
    monitored = KeepSteps()
    watch = GradientNoiseScaleMonitor(split=False)
    fit(Logs(), regression_loader(20), [watch], max_epochs=1, logger=monitored, log_every_n_steps=1)
    assert monitored.points("bsscale/batch_size")
    assert not monitored.points("bsscale/hold_reason")


def test_the_progress_bar_shows_a_change_at_once():
    class Looks(Callback):
        shown = ()

        def on_train_batch_start(self, trainer, *args):
            shown = trainer.progress_bar_metrics.get("bsscale/batch_size")
            self.shown = (*self.shown, None if shown is None else int(shown))

    looks = Looks()
    settings = dict(max_epochs=1, log_every_n_steps=100)
    fit(Logs(), regression_loader(60), [scripted(*GROWTH, progress_bar=True), looks], **settings)
    assert looks.shown[:5] == (None, 8, 8, 16, 16)


@pytest.mark.parametrize("order", [1, -1])
def test_the_progress_bar_does_not_hide_another_callbacks_error(order):
    """`self.log` is not allowed in `on_exception`, where the window is closed."""

    class Raises(Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 3:
                raise ValueError("mine")

    scaler = scripted(4, progress_bar=True)
    with pytest.raises(ValueError, match="mine"):
        fit(Logs(), regression_loader(60), [Raises(), scaler][::order], max_epochs=1, log_every_n_steps=1)
    assert scaler.examples_seen == 12


def test_steps_of_a_second_fit_go_on(tmp_path):
    """Lightning's counters go on in a second `fit` of a Trainer, and so does the x axis."""
    logger = KeepSteps()
    module = Logs()
    trainer = fit(module, regression_loader(60), [scripted(*GROWTH)], max_epochs=1, logger=logger, log_every_n_steps=1)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, regression_loader(60))
    assert once(logger.points("bsscale/examples_seen")) == list(EXAMPLES.items())
