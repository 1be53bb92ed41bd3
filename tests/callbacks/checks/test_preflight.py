"""What is checked before the first step: what must pass, and when a warning is given.

The refusals are in `helpers/refusals_of_training.py`, and tested by `test_messages.py`.
"""

import math
import re
import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader, IterableDataset

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor, NoiseScalePolicy
from lightning_bsscale.callbacks.checks import preflight
from lightning_bsscale.theory.estimate import Averages
from lightning_bsscale.theory.moments import WindowMoments
from lightning_bsscale.theory.windows import windows_in_memory
from tests.helpers.expected_warnings import FEW_MICRO_BATCHES, HARDLY_RESOLVED, WITHOUT_VALIDATION, said_of
from tests.helpers.training import (
    QUIET,
    Numbers,
    OneHot,
    Regression,
    Scripted,
    fit,
    regression_loader,
)


def test_an_unknown_strategy_on_one_device_is_welcome():
    class Unheard(SingleDeviceStrategy):
        pass

    scaler = BatchSizeScaler()
    fit(Regression(), regression_loader(40), [scaler], max_epochs=1, strategy=Unheard(device="cpu"))
    assert scaler.examples_seen == 40


class Stream(IterableDataset):
    def __iter__(self):
        return ((torch.zeros(8), torch.zeros(2)) for _ in range(40))


def free_of_shares(**options):
    return BatchSizeScaler(warmup=8, memory=1.0, policy=NoiseScalePolicy(cooldown=0), **options)


@pytest.mark.parametrize("scaler", [free_of_shares(), BatchSizeScaler(total_examples=1000)])
def test_an_unknown_budget_where_none_is_needed(scaler):
    fit(Regression(), DataLoader(Stream(), batch_size=4), [scaler], max_epochs=1)
    assert scaler.examples_seen == 40


def test_several_optimizers_are_refused_by_lightning():
    class Two(Regression):
        def configure_optimizers(self):
            return [torch.optim.SGD(self.parameters(), lr=0.1), torch.optim.SGD(self.parameters(), lr=0.1)]

    with pytest.raises(RuntimeError, match="multiple optimizers"):
        fit(Two(), regression_loader(40), [BatchSizeScaler()], max_epochs=1)


def test_two_scalers_are_refused_by_lightning():
    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        pl.Trainer(**QUIET, callbacks=[BatchSizeScaler(), BatchSizeScaler()])


@pytest.mark.parametrize("callback", [BatchSizeScaler, GradientNoiseScaleMonitor])
@FEW_MICRO_BATCHES
def test_batch_norm_warns_once(callback):
    module = Regression()
    module.net = torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2), torch.nn.BatchNorm1d(2))
    with pytest.warns(UserWarning, match="BatchNorm1d") as caught:
        fit(module, regression_loader(40), [callback()], max_epochs=2)
    assert sum("BatchNorm1d" in str(warning.message) for warning in caught) == 1


def test_sync_batch_norm_on_several_ranks_is_warned_of_once():
    with pytest.warns(UserWarning, match="SyncBatchNorm") as caught:
        preflight.warn_batch_norm(torch.nn.SyncBatchNorm(2), world_size=2)
    assert len(caught) == 1


def test_a_budget_of_one_batch():
    scaler = BatchSizeScaler(total_examples=8)
    trainer = fit(Regression(), regression_loader(80), [scaler], max_epochs=1, accumulate_grad_batches=2)
    assert (scaler.examples_seen, trainer.global_step) == (8, 1)


@WITHOUT_VALIDATION
def test_without_the_refusal_a_step_of_lbfgs_is_no_mean(monkeypatch):
    """What it is refused for: the training step of the last micro-batch runs several times, and each one adds."""
    monkeypatch.setattr(preflight, "check_optimizer", lambda *args: None)

    class Several(OneHot):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3, tolerance_change=0)

    module = Several(2, 2)
    loader = torch.utils.data.DataLoader(Numbers(2))
    fit(module, loader, [GradientNoiseScaleMonitor()], max_epochs=1, accumulate_grad_batches=2)
    assert module.steps == [{0: 0.5, 1: 0.5}, {0: 0.5, 1: 1.0}, {0: 0.5, 1: 1.5}]


# ---------------------------------------------------------------- a memory that holds nothing


@pytest.mark.parametrize("memory", [30.0, 91.0, 92.0, 400.0, math.inf])
def test_windows_in_memory_is_what_the_averages_come_to(memory):
    averages = Averages()
    for _ in range(400):
        window = WindowMoments(trace=1.0, grad_sq=1.0, num_samples=2, examples=8, harmonic_size=4.0)
        averages = averages.updated(window, examples_since_last=100, memory=memory)
    held = windows_in_memory(memory, 100)
    if memory == math.inf:
        assert (held, averages.effective_windows) == (math.inf, pytest.approx(400))
    else:
        assert averages.effective_windows == pytest.approx(held)
    assert (held < preflight.MIN_WINDOWS) == (memory < 100 / math.log(3))


def measured(callback, **settings):
    """The last effective number of windows, and what was said of the memory."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Regression(), regression_loader(800), [callback], **{"max_epochs": 1, **settings})
    last = callback.history[-1].noise
    said = said_of(HARDLY_RESOLVED, caught)
    return 0.0 if last is None else last.effective_windows, said


SHORT = [
    # 800 examples, batch 4: a probe of two micro-batches in every 20 examples, so 10 examples hold too little.
    (BatchSizeScaler, dict(memory=0.0125), {}, "20 .* 10.* probe_every.* memory=0.1"),
    (BatchSizeScaler, dict(memory=0.0125, probe_every=1), {}, None),
    (BatchSizeScaler, dict(memory=0.1), {}, None),
    # Batch 8, 200 steps in two epochs: every 8th window, so 64 examples from one to the next.
    (BatchSizeScaler, dict(memory=0.02), dict(accumulate_grad_batches=2, max_epochs=2), "64 .* 32.*measure_every"),
    (BatchSizeScaler, dict(memory=0.02, measure_every=2), dict(accumulate_grad_batches=2, max_epochs=2), None),
    (BatchSizeScaler, dict(memory=0.16), dict(accumulate_grad_batches=2, max_epochs=2), None),
    (BatchSizeScaler, dict(memory=1.0, measure_every=199, warmup=0), dict(accumulate_grad_batches=1), None),
    (GradientNoiseScaleMonitor, dict(memory=0.02), dict(accumulate_grad_batches=2, max_epochs=2), "64 .* 32"),
    (GradientNoiseScaleMonitor, dict(memory=0.16), dict(accumulate_grad_batches=2, max_epochs=2), None),
    (
        GradientNoiseScaleMonitor,
        dict(memory=1.0, measure_every=200),
        dict(accumulate_grad_batches=2, max_epochs=2),
        r"1\.0 windows.* measure_every",
    ),
]


@pytest.mark.parametrize(("cls", "options", "settings", "match"), SHORT)
def test_a_memory_that_holds_no_two_windows_is_said_once(cls, options, settings, match):
    made = cls(policy=Scripted([]), **options) if cls is BatchSizeScaler else cls(**options)
    held, said = measured(made, **settings)
    if match is None:
        assert not said
        assert held >= 2
    else:
        (sentence,) = said
        assert re.search(match, sentence), sentence
        # It is true, and none of these was ever resolved after the warmup.
        assert held < 2
        assert not made.history[-1].noise or not made.history[-1].noise.resolved


def test_with_the_defaults_it_is_never_said():
    for steps in range(preflight.MIN_STEPS, 2000, 7):
        preflight.warn_short_memory(steps * 32, 0.05, 32, measure_every=8)
        preflight.warn_short_memory(steps * 32, 0.05, 32, probe_every=4)
    with pytest.warns(UserWarning, match=HARDLY_RESOLVED):
        preflight.warn_short_memory(preflight.MIN_STEPS * 32, 0.04, 32, measure_every=8)


@pytest.mark.parametrize("settings", [dict(fast_dev_run=True), dict(max_steps=20), dict(limit_train_batches=10)])
def test_a_trial_says_nothing_of_the_memory(settings):
    """Warnings are errors here."""
    fit(Regression(), regression_loader(800), [BatchSizeScaler(memory=0.001)], **{"max_epochs": 1, **settings})


# ---------------------------------------------------------------- warmup and budget


def test_a_warmup_as_long_as_the_training_holds_the_batch_and_is_said():
    scaler = BatchSizeScaler(policy=Scripted([8, 16]), warmup=100)
    with pytest.warns(UserWarning, match="warmup=100 .*80") as caught:
        fit(Regression(), regression_loader(80), [scaler], max_epochs=1)
    assert sum("warmup=100" in str(warning.message) for warning in caught) == 1
    assert scaler.batch_size == 4
    shorter = BatchSizeScaler(policy=Scripted([8, 16]), warmup=40)
    fit(Regression(), regression_loader(80), [shorter], max_epochs=1)
    assert shorter.batch_size == 8


def test_a_trial_of_a_long_training_says_nothing_of_its_warmup():
    fit(Regression(), regression_loader(80), [BatchSizeScaler(warmup=10_000)], fast_dev_run=True)
