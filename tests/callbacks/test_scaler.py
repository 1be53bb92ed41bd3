"""The scaler through the real Trainer: budget, decisions, dry run, log, journal, state."""

import json
import logging
import re

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_bsscale import BatchSizeScaler
from lightning_bsscale.theory.schedules import WarmupCosine
from tests.helpers.expected_warnings import CANNOT_MEASURE, CKPT_PATH
from tests.helpers.training import (
    CountsWindows,
    KeepsRates,
    Regression,
    Scripted,
    UnsizedRegression,
    fit,
    regression_loader,
    scripted,
    weights_after,
)

pytestmark = CANNOT_MEASURE


@pytest.fixture(scope="module")
def grown():
    """A run of the defaults that grew."""
    scaler = BatchSizeScaler()
    return scaler, fit(Regression(), regression_loader(2000, noise=3.0), [scaler], max_epochs=4)


def test_a_start_says_how_far_the_batch_may_grow(caplog):
    for examples, said in ((400, "it grows to at most 48 (to"), (32, "it cannot grow, as the default limit keeps at")):
        with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
            fit(Regression(), regression_loader(examples), [BatchSizeScaler()], max_epochs=1)
        (line,) = (one for one in caplog.messages if one.startswith("bsscale: starting with"))
        assert line.startswith("bsscale: starting with a batch of 4 examples; ")
        assert said in line
        assert line.endswith("(to choose, set max_batch_size).")
        caplog.clear()


def test_a_repr_has_no_interval_of_what_is_not_resolved():
    scaler = BatchSizeScaler()
    assert repr(scaler) == "BatchSizeScaler(policy=NoiseScalePolicy, not started)"
    fit(Regression(), regression_loader(200, noise=30.0), [scaler], max_epochs=1)
    assert not scaler.noise_scale.resolved
    assert repr(scaler) == (
        "BatchSizeScaler(policy=NoiseScalePolicy, batch 4 examples, noise scale not resolved, 200 examples in 50 steps)"
    )


def test_without_arguments_it_grows_the_batch_and_scales_the_rate(grown):
    scaler, trainer = grown
    changes = [record for record in scaler.decisions if record.is_change]
    assert changes
    assert scaler.batch_size > 4
    assert scaler.lr_scale > 1
    assert scaler.examples_seen == 8000
    assert trainer.global_step < 8000 / 4 * 0.8
    assert scaler.noise_scale.low < scaler.noise_scale.noise_scale
    for record in changes:
        # Growth is the policy's, by its own lower bound, at most a doubling, after the warmup.
        assert record.situation.examples_seen >= 0.05 * 8000
        assert record.situation.noise.resolved
        assert record.batch_size <= 2 * record.situation.batch_size
        assert record.batch_size <= 1.25 * record.situation.noise.lower_bound(0.8)
        assert record.decision.reason.startswith("grow")
    # Invariant of the windows: what was decided is what was done.
    assert scaler.history[-1].batch_size == scaler.history[-1].accumulate_grad_batches * 4


@pytest.mark.parametrize(
    ("examples", "batches", "settings", "windows"),
    [
        (400, [20, 32, 28], dict(max_steps=75), [4, 20, 32, *[28] * 8, 20]),
        # 30 examples an epoch: 4,4,4,4,4,4,4,2. A plan of 20 steps is two epochs of 8 steps and 4 more: 76 examples.
        (30, [12], dict(max_steps=20), [4, 12, 12, 2, 12, 12, 6, 12, 4]),
        (400, [4, 4, 4], dict(max_steps=10, accumulate_grad_batches=3), [12] * 10),
        (48, [4, 8], dict(max_epochs=1, accumulate_grad_batches=3), [12, 4, *[8] * 4]),
    ],
    ids=["planned examples", "ragged epochs", "max_steps is not exceeded", "without max_steps it may shrink"],
)
def test_the_budget_of_the_plan(examples, batches, settings, windows):
    module, scaler = CountsWindows(), scripted(*batches)
    trainer = fit(module, regression_loader(examples), [scaler], **settings)
    assert module.windows == windows
    assert trainer.global_step == len(windows)
    assert sum(windows) == scaler.examples_seen == scaler.decisions[0].situation.total_examples


def test_total_examples_replaces_the_plan_of_max_steps():
    module = CountsWindows()
    fit(module, regression_loader(100), [scripted(8, total_examples=160)], max_steps=30)
    assert sum(module.windows) == 160


@pytest.mark.parametrize("accumulate", [1, 4])
def test_dry_run_leaves_the_weights_bit_identical(accumulate):
    """51 loader batches: no multiple of 4, so Lightning's last window has the wrong divisor, and keeps it."""
    bare = weights_after([], accumulate_grad_batches=accumulate)
    options = dict(policy=Scripted([16, 32]), max_batch_size=32)
    scaler = BatchSizeScaler(dry_run=True, measure_every=1, split=False, **options)
    watched = weights_after([scaler], accumulate_grad_batches=accumulate)
    assert all(torch.equal(a, b) for a, b in zip(bare, watched, strict=True))
    assert [record.batch_size for record in scaler.decisions if record.is_change] == [16, 32][accumulate == 4 :]
    assert (scaler.noise_scale is None) == (accumulate == 1)
    acting = weights_after([scripted(16, 32)], accumulate_grad_batches=accumulate)
    assert not all(torch.equal(a, b) for a, b in zip(bare, acting, strict=True))


def test_a_dry_run_leaves_the_rate_alone_and_says_so():
    def rates(**options):
        module = Regression(lambda p: KeepsRates(p, lr=0.05))
        fit(module, regression_loader(80), [BatchSizeScaler(schedule="linear", **options)], max_epochs=1)
        return {rate for (rate,) in module.trainer.optimizers[0].used}

    assert len(rates()) > 1
    with pytest.warns(UserWarning, match=r"schedule=WarmupLinear\(final=0.0\)"):
        assert rates(dry_run=True) == {0.05}


def test_windows_of_one_loader_batch_are_split_where_they_are_measured():
    module = CountsWindows()
    scaler = scripted(4, 4, 4, 4, 4, 4, 8, split=True, measure_every=3)
    fit(module, regression_loader(100), [scaler], max_epochs=1)
    assert module.windows == [*[4] * 7, *[8] * 9]  # the steps are what they were
    assert [made.window_examples for made in scaler.history] == [4, 4, 4, 8, 8, 8, 8, 8, 8]


def test_unmeasured_windows_have_no_hook():
    class Looks(Regression):
        def on_before_backward(self, loss):
            self.hooked.append(bool(self.net.weight._backward_hooks))

    module = Looks()
    module.hooked = []
    fit(module, regression_loader(96), [scripted(measure_every=8)], max_epochs=1, accumulate_grad_batches=2)
    assert module.hooked == ([True] * 2 + [False] * 6) * 3


def test_the_estimate_lags_by_one_window():
    scaler = scripted(measure_every=1)
    fit(Regression(), regression_loader(96), [scaler], max_epochs=1, accumulate_grad_batches=2)
    situations = scaler._options.policy.situations
    # Two windows have been read when the third has ended; a variance needs two.
    assert [situation.noise is None for situation in situations[:4]] == [True, True, False, False]


def test_progress_bar_shows_the_batch_only_when_asked():
    for asked in (False, True):
        scaler = scripted(8, progress_bar=asked)
        trainer = fit(Regression(), regression_loader(40), [scaler], max_epochs=1)
        shown = {key for key in trainer.progress_bar_metrics if "bsscale" in key}
        assert shown == ({"bsscale/batch_size"} if asked else set())


def test_default_maximum_is_said_once(caplog):
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        fit(Regression(), regression_loader(800), [BatchSizeScaler()], max_epochs=1)
    (said,) = [record.message for record in caplog.records if "max_batch_size" in record.message]
    assert re.search(r"\b4 examples.*\b100\b", said)


def test_record_true_writes_into_the_log_folder(tmp_path):
    fit(Regression(), regression_loader(40), [scripted(8, record=True)], max_epochs=1, default_root_dir=tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["bsscale.jsonl"]
    for line in (tmp_path / "bsscale.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    fit(Regression(), regression_loader(40), [scripted(8)], max_epochs=1, default_root_dir=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_summary_and_plot(grown, tmp_path):
    scaler, _ = grown
    lines = scaler.summary().splitlines()
    assert lines[0].split() == ["lr", "noise", "scale", "bound"]
    assert " ".join(lines[1].split()) == "examples step batch factor [90 %] (80 %) target needed reason"
    changes = [record.is_change for record in scaler.decisions]
    stretches = sum(not one for one, before in zip(changes, [True, *changes], strict=False) if before)
    assert sum(line[0] != " " for line in lines) == 1 + sum(changes) + stretches
    assert " -> " in "".join(lines)
    figure, axes = scaler.plot()
    figure.savefig(tmp_path / "plot.png")
    assert len(axes) == 2
    figure, axes = scaler.plot(ax=axes[0])
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_own_schedule_is_counted_in_examples():
    module = Regression(lambda p: KeepsRates(p, lr=0.1))
    scaler = scripted(8, 16, schedule=WarmupCosine(final=0.1), warmup=8, lr_rule="none")
    trainer = fit(module, regression_loader(80), [scaler], max_epochs=1)
    cosine = WarmupCosine(final=0.1)
    middles = [2, 6, 12, 24, 40, 56, 72]
    windows = [4, 4, 8, 16, 16, 16, 16]
    assert sum(windows) == 80
    used = [rates[0] for rates in trainer.optimizers[0].used]
    assert used == pytest.approx([0.1 * cosine.factor(middle, 80, 8) for middle in middles])


def test_lr_cap_is_a_ceiling():
    scaler = scripted(8, 16, 32, lr_cap=3)
    fit(Regression(), regression_loader(400), [scaler], max_epochs=1)
    assert scaler.lr_scale == 3


@CKPT_PATH
def test_a_checkpoint_after_fit_goes_on_with_the_schedulers_where_they_were(tmp_path):
    def train(*callbacks, **settings):
        def make(optimizer, trainer):
            return {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.9), "interval": "step"}

        return fit(Regression(scheduler=make), regression_loader(100), callbacks, **settings)

    train(scripted(8), max_epochs=1).save_checkpoint(tmp_path / "one.ckpt")
    resumed = train(scripted(8), max_epochs=2, ckpt_path=tmp_path / "one.ckpt")
    plan = train(max_epochs=2)
    assert [run.lr_scheduler_configs[0].scheduler.last_epoch for run in (plan, resumed)] == [50, 50]
    assert resumed.optimizers[0].param_groups[0]["lr"] == plan.optimizers[0].param_groups[0]["lr"]


def test_unsized_loader_with_max_steps():
    module, scaler = CountsWindows(), scripted(20, max_batch_size=None)
    fit(module, DataLoader(UnsizedRegression(1000), batch_size=4), [scaler], max_steps=100)
    assert sum(module.windows) == 400
    # Eight steps of the budget, since the epoch is unknown: 400 / 8 = 50, to a multiple of 4.
    assert scaler.decisions[0].limits.max_batch_size == 48
