"""Lightning's own callbacks beside the scaler: each works, or is refused with a reason: see docs/compatibility.md."""

import contextlib
import re
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer, model_checkpoint
from torch import nn

from lightning_bsscale import GradientNoiseScaleMonitor
from lightning_bsscale.callbacks.checks import compatibility
from tests.helpers.expected_warnings import (
    CANNOT_MEASURE,
    CKPT_PATH,
    DROPPED,
    FOLDER_NOT_EMPTY,
    MID_EPOCH,
    WITHIN_A_WINDOW,
    said_of,
)
from tests.helpers.training import (
    QUIET,
    KeepSteps,
    Regression,
    Watched,
    assert_same_weights,
    fit,
    regression_loader,
    run_of,
    scripted,
)

pytestmark = [
    CANNOT_MEASURE,
    pytest.mark.filterwarnings("ignore:bsscale. the model has BatchNorm1d"),
    FOLDER_NOT_EMPTY,
    MID_EPOCH,
    CKPT_PATH,
    WITHIN_A_WINDOW,
]

# ---------------------------------------------------------------- the table in the docs

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
HERE, FINDERS = "test_lightning_callbacks", "test_finders"
WEIGHTS, RATES = "test_callbacks_of_weights", "test_callbacks_of_learning_rates"
# Row of the table -> whether it works, and the test that says so.
ROWS = {
    "BackboneFinetuning, BaseFinetuning": ("yes", WEIGHTS, "test_finetuning_is_measured_from_where_it_unfreezes"),
    "BatchSizeFinder": ("yes", FINDERS, "test_the_size_that_was_found_is_the_one_that_is_measured"),
    "BatchSizeFinder in mid-training": ("refused", FINDERS, "test_a_finder_in_mid_training_is_refused"),
    "DeviceStatsMonitor": ("yes", HERE, "test_device_stats"),
    "EarlyStopping": ("yes", HERE, "test_early_stopping_in_mid_window_loses_what_it_loses_without_us"),
    "GradientAccumulationScheduler": ("refused", HERE, "test_refused_by_either_name"),
    "GradientNoiseScaleMonitor": ("refused", HERE, "test_a_monitor_beside_a_scaler_is_refused"),
    "LambdaCallback": ("yes", RATES, "test_a_rate_set_by_a_lambda_is_the_users"),
    "LearningRateFinder": ("yes", FINDERS, "test_the_rate_that_was_found_is_the_users"),
    "LearningRateFinder in mid-training": ("refused", FINDERS, "test_a_finder_in_mid_training_is_refused"),
    "LearningRateMonitor": ("yes", RATES, "test_learning_rate_monitor_keeps_logging_the_users_rate"),
    "ModelCheckpoint": ("yes", HERE, "test_every_trigger_saves_a_state_that_fits_its_step"),
    "ModelPruning": ("yes", WEIGHTS, "test_pruning"),
    "ModelSummary, RichModelSummary": ("yes", HERE, "test_bars_and_summaries"),
    "OnExceptionCheckpoint": ("yes", "test_resume", "test_after_an_exception_in_every_window"),
    "RichProgressBar, TQDMProgressBar": ("yes", HERE, "test_bars_and_summaries"),
    "SpikeDetection": ("refused", HERE, "test_refused_by_either_name"),
    "StochasticWeightAveraging": ("refused", HERE, "test_refused_by_either_name"),
    "ThroughputMonitor": ("yes", HERE, "test_throughput"),
    "Timer, Trainer(max_time)": ("yes", HERE, "test_a_timer_stops_where_it_would"),
    "Tuner": ("yes", FINDERS, "test_after_the_tuner_training_is_as_if_it_had_never_been"),
    "WeightAveraging, EMAWeightAveraging": ("yes", WEIGHTS, "test_averages_are_over_the_steps_that_were_made"),
}
# They do nothing while training, or are only there to be derived from.
NO_ROW = {"BasePredictionWriter", "Callback", "Checkpoint", "ProgressBar"}


def test_every_row_of_the_table_has_its_test():
    rows = re.findall(r"^\| (`[^|]+) \| (yes|refused) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name.replace("`", ""): works for name, works, _ in rows} == {name: row[0] for name, row in ROWS.items()}
    for _, file, test in ROWS.values():
        assert f"def {test}(" in (Path(__file__).parent / f"{file}.py").read_text(encoding="utf-8")


def test_no_callback_of_lightning_is_forgotten():
    named = set(re.findall(r"\w+", " ".join(ROWS)))
    assert set(callbacks.__all__) - NO_ROW <= named


# ---------------------------------------------------------------- checkpoints


# Windows of 1, 2, 4, 3, 3, 3, 3 and 1 loader batches, then of 3, 3, 3, 3, 3, 3 and 2: 15 steps.
GROWTH = (8, 16, 12)
AT_VALIDATIONS = [2, 4, 5, 8, 9, 11, 13, 15]  # after each 5 loader batches, and often within a window, as after each 6
TRIGGERS = {
    "every_n_train_steps": (dict(every_n_train_steps=2), [2, 4, 6, 8, 10, 12, 14]),
    "train_time_interval of 0": (dict(train_time_interval=timedelta(0)), list(range(1, 16))),
    # All within a window.
    "train_time_interval": (dict(train_time_interval=timedelta(seconds=6)), [2, 4, 6, 9, 11, 13]),
    "every_n_epochs": (dict(every_n_epochs=1), AT_VALIDATIONS),
    "monitor": (dict(monitor="val_loss"), AT_VALIDATIONS),
    "monitor and steps": (dict(monitor="val_loss", every_n_train_steps=5), [5, 10, 15]),
    "save_on_train_epoch_end": (dict(save_on_train_epoch_end=True), [8, 15]),
    "save_last": (dict(save_last=True, every_n_train_steps=4), [4, 8, 12, 12]),
    "save_on_exception": (dict(save_on_exception=True, every_n_train_steps=9), [4]),
}


@pytest.mark.parametrize("name", TRIGGERS)
def test_every_trigger_saves_a_state_that_fits_its_step(name, tmp_path, monkeypatch):
    options, expected = TRIGGERS[name]
    module = Watched(breaks_at=(0, 11) if name == "save_on_exception" else None)
    monkeypatch.setattr(model_checkpoint, "time", SimpleNamespace(monotonic=lambda: module.clock))
    keep = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, **options)
    settings = dict(val=regression_loader(8), max_epochs=2)
    saving = dict(enable_checkpointing=True, val_check_interval=5)
    with pytest.raises(RuntimeError) if module.breaks_at else contextlib.nullcontext():
        fit(module, regression_loader(80), [keep, scripted(*GROWTH)], **settings, **saving)
    saved = {path: torch.load(path, weights_only=True) for path in tmp_path.glob("*.ckpt")}
    assert sorted(made["global_step"] for made in saved.values()) == expected
    for path, made in saved.items():
        state = made["callbacks"]["BatchSizeScaler"]
        steps = made["global_step"]
        assert run_of(state).windows == steps
        assert run_of(state).examples.total == module.examples_at[steps]
        planned = module.examples_at[steps] // 4  # of the user's plan: one loader batch each
        assert made["lr_schedulers"][0]["last_epoch"] == planned
        assert made["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.05 * 0.9 ** (planned // 3))
        resumed = scripted()
        fit(Watched(), regression_loader(80), [resumed], ckpt_path=path, **settings)
        end = resumed.state_dict()  # of a run that had nothing left to do, it is what was loaded
        lost = run_of(end).lost_loader_batches
        assert run_of(end).examples.total == 160 - 4 * lost
        came = made["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"]
        assert lost == (0 if run_of(state).window is None else came - planned % 20)


# ---------------------------------------------------------------- stops


def test_early_stopping_in_mid_window_loses_what_it_loses_without_us(recwarn):
    """Validation after 6 and 12 loader batches, windows of 5: training stops two loader batches into the third."""
    modules, settings = [], dict(val_check_interval=6, accumulate_grad_batches=5, max_epochs=4)
    scaler = scripted()
    for others in ([], [scaler]):
        module, stop = Watched(), EarlyStopping("val_loss", patience=1)
        trainer = fit(module, regression_loader(80), [stop, *others], val=regression_loader(8), **settings)
        assert (trainer.global_step, module.seen) == (2, 48)
        modules.append(module)
    assert_same_weights(*modules)
    assert (scaler.examples_seen, run_of(scaler).lost_loader_batches) == (40, 2)
    (said,) = said_of(DROPPED, recwarn)
    assert "2" in said
    assert "EarlyStopping" in said


def test_early_stopping_at_an_epochs_end_loses_nothing(recwarn):
    module, scaler = Watched(), scripted(*GROWTH)
    stop = EarlyStopping("val_loss", patience=1)
    trainer = fit(module, regression_loader(80), [stop, scaler], val=regression_loader(8), max_epochs=9)
    assert (trainer.current_epoch, scaler.examples_seen) == (2, 160)
    assert run_of(scaler).lost_loader_batches == 0
    assert not said_of(DROPPED, recwarn)


@pytest.mark.parametrize(("last", "lost"), [(11, 2), (12, 0)])
@pytest.mark.parametrize("order", [1, -1])
def test_a_timer_stops_where_it_would(last, lost, order, recwarn):
    """An hour passes in the middle of a window, or in its last loader batch."""
    timer, scaler = Timer(timedelta(minutes=30)), scripted(*GROWTH)

    class Waits(Watched):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == last:
                timer.load_state_dict({"time_elapsed": {"train": 3600.0}})

    module = Waits()
    trainer = fit(module, regression_loader(80), [timer, scaler][::order], val=regression_loader(8), max_epochs=9)
    assert trainer.should_stop
    assert module.seen == 4 * (last + 1)
    assert scaler.examples_seen == 4 * (last + 1 - lost)
    assert run_of(scaler).lost_loader_batches == lost
    assert len(said_of(DROPPED, recwarn)) == (lost > 0)


def test_the_end_of_the_budget_stops_as_a_user_would_and_validates():
    """With `max_steps` Lightning stops by its own count, which the scaler never reaches: it asks for the stop."""

    class Ends(Watched):
        validations = 0

        def on_validation_end(self):
            self.validations += 1

    for scaler, validations in ([], 1), ([scripted(*GROWTH)], 2):
        module = Ends()
        settings = dict(max_steps=30, num_sanity_val_steps=0)
        fit(module, regression_loader(80), scaler, val=regression_loader(8), **settings)
        assert (module.seen, module.validations) == (120, validations)


# ---------------------------------------------------------------- smoke: those that only look


def logged_beside(callback):
    logger, module = KeepSteps(), Regression()
    module.flops_per_batch = 10
    settings = dict(max_epochs=2, logger=logger, log_every_n_steps=1)
    trainer = fit(module, regression_loader(80), [callback, scripted(8, 16)], **settings)
    return logger.logged, trainer


def test_throughput():
    throughput = callbacks.ThroughputMonitor(batch_size_fn=lambda batch: len(batch[0]), window_size=4)
    logged, trainer = logged_beside(throughput)
    seen = [(step, m["train/samples"], m["train/batches"]) for step, m in logged if "train/samples" in m]
    # Once a step, whatever the window; loader batches and examples are counted, not steps.
    assert [step for step, _, _ in seen] == list(range(trainer.global_step))
    assert seen[-1] == (trainer.global_step - 1, 160, 40)


def test_device_stats():
    logged, trainer = logged_beside(callbacks.DeviceStatsMonitor())
    steps = {step for step, metrics in logged if any("DeviceStatsMonitor" in key for key in metrics)}
    assert steps == set(range(trainer.global_step))


@pytest.mark.parametrize("names", [("TQDMProgressBar", "ModelSummary"), ("RichProgressBar", "RichModelSummary")])
def test_bars_and_summaries(names, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    others = [getattr(callbacks, name)() for name in names]
    scaler = scripted(8, 16, progress_bar=True)
    settings = dict(max_epochs=2, enable_progress_bar=True, enable_model_summary=True)
    fit(Regression(), regression_loader(80), [*others, scaler], **settings)
    assert scaler.examples_seen == 160
    printed = "".join(capsys.readouterr())
    assert "bsscale/batch_size" in printed


# ---------------------------------------------------------------- refused


def refused(match, others, module=None, order=1):
    module = module or Watched()
    with pytest.raises(MisconfigurationException, match=match):
        fit(module, regression_loader(40), [scripted(8), *others][::order], val=regression_loader(8), max_epochs=1)
    assert module.seen == 0


REFUSED = {
    "GradientAccumulationScheduler": ({"scheduling": {0: 2}}, "accumulate_grad_batches"),
    "StochasticWeightAveraging": ({"swa_lrs": 0.1}, "epoch"),
    "SpikeDetection": ({}, "divided"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_refused_by_either_name(name, package):
    """A list of callbacks may hold the other package's: Lightning calls their hooks all the same."""
    found = pytest.importorskip(f"{package}.callbacks")
    if not hasattr(found, name):
        pytest.skip(f"this Lightning has no {name}")
    options, why = REFUSED[name]
    refused(f"{name}.*{why}", [getattr(found, name)(**options)])


@pytest.mark.parametrize("order", [1, -1])
def test_a_monitor_beside_a_scaler_is_refused(order):
    refused("GradientNoiseScaleMonitor", [GradientNoiseScaleMonitor()], order=order)


def test_spike_detection_would_take_a_short_window_for_a_spike(monkeypatch, tmp_path):
    """Why it is refused: the loss is 1 throughout, and what it is shown is 1/8 in long windows and 1 in the last."""
    if not hasattr(callbacks, "SpikeDetection"):
        pytest.skip("this Lightning has no SpikeDetection")
    monkeypatch.setattr(compatibility, "INCOMPATIBLE_CALLBACKS", {})

    class One(Regression):
        def training_step(self, batch, batch_idx):
            return 1 + 0 * super().training_step(batch, batch_idx)

    settings = dict(max_epochs=1, default_root_dir=tmp_path)
    fit(One(), regression_loader(80), [callbacks.SpikeDetection()], **settings)
    with pytest.raises(Exception, match="Training spike detected in batch 18"):
        fit(One(), regression_loader(80), [callbacks.SpikeDetection(), scripted(32, 4 * 9)], **settings)


def test_a_callback_that_the_module_brings_is_refused_too():
    class Brings(Watched):
        def configure_callbacks(self):
            return [callbacks.GradientAccumulationScheduler({0: 2})]

    refused("GradientAccumulationScheduler", [], Brings())


@pytest.mark.parametrize("name", ["StochasticWeightAveraging", "GradientAccumulationScheduler"])
def test_beside_the_monitor_they_do_what_they_do_without_it(name):
    """It writes nothing, so nothing is refused; an epoch without training has no window, and is not measured."""
    is_averaging = name.startswith("Sto")
    options = dict(swa_lrs=0.01, swa_epoch_start=2) if is_averaging else dict(scheduling={0: 2, 2: 5})
    start = dict(accumulate_grad_batches=2) if is_averaging else {}
    monitor, modules = GradientNoiseScaleMonitor(measure_every=1), []
    for others in ([], [monitor]):
        modules.append(Regression(hidden=5))
        modules[-1].net.insert(1, nn.BatchNorm1d(5))
        others = [getattr(callbacks, name)(**options), *others]
        trainer = pl.Trainer(**QUIET, callbacks=others, max_epochs=4, **start)
        trainer.fit(modules[-1], regression_loader(80))
        assert not any(p._backward_hooks for p in modules[-1].parameters())
    assert_same_weights(*modules)
    steps = 40 if is_averaging else 2 * 10 + 2 * 4
    assert [made.optimizer_steps for made in monitor.history] == list(range(1, steps + 1))
