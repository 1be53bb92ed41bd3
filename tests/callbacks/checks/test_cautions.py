"""When a warning is given of an option that this training is too short for, and when none is."""

import math
import re

import pytest

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from lightning_bsscale.callbacks.checks import cautions
from lightning_bsscale.theory.estimate import Averages
from lightning_bsscale.theory.moments import WindowMoments
from lightning_bsscale.theory.windows import windows_in_memory
from tests.helpers.expected_warnings import HARDLY_RESOLVED, hearing
from tests.helpers.training import Regression, Scripted, fit, regression_loader


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
    assert (held < cautions.MIN_WINDOWS) == (memory < 100 / math.log(3))


TWO_EPOCHS = dict(accumulate_grad_batches=2, max_epochs=2)
FOUR_EPOCHS = dict(accumulate_grad_batches=2, max_epochs=4)
SHORT = [
    # 800 examples, batch 4: one loader batch in 8, so 32 examples from one measured window to the next.
    (BatchSizeScaler, dict(memory=0.02), dict(max_epochs=1), "32 .* 16.* measure_every.* memory=0.16"),
    (BatchSizeScaler, dict(memory=0.02, measure_every=1), dict(max_epochs=1), None),
    (BatchSizeScaler, dict(memory=0.1), dict(max_epochs=1), None),
    # Batch 8, 200 steps in two epochs: every 8th loader batch is in every 4th window.
    (BatchSizeScaler, dict(memory=0.01), TWO_EPOCHS, "32 .* 16.*measure_every"),
    (BatchSizeScaler, dict(memory=0.01, measure_every=2), TWO_EPOCHS, None),
    (BatchSizeScaler, dict(memory=0.08), TWO_EPOCHS, None),
    (BatchSizeScaler, dict(memory=1.0, measure_every=199, warmup=0), dict(max_epochs=1), None),
    # The monitor measures half as often: one loader batch in 16.
    (GradientNoiseScaleMonitor, dict(memory=0.01), FOUR_EPOCHS, "64 .* 32"),
    (GradientNoiseScaleMonitor, dict(memory=0.08), FOUR_EPOCHS, None),
    (GradientNoiseScaleMonitor, dict(memory=1.0, measure_every=800), FOUR_EPOCHS, r"1\.0 windows.* measure_every"),
]


@pytest.mark.parametrize(("cls", "options", "settings", "match"), SHORT)
def test_a_memory_that_holds_no_two_windows_is_said_once(cls, options, settings, match):
    made = cls(policy=Scripted([]), **options) if cls is BatchSizeScaler else cls(**options)
    with hearing(HARDLY_RESOLVED) as said:
        fit(Regression(), regression_loader(800), [made], **settings)
    last = made.history[-1].noise
    held = 0.0 if last is None else last.effective_windows
    if match is None:
        assert not said
        assert held >= 2
    else:
        (sentence,) = said
        assert re.search(match, sentence), sentence
        # It is true, and none of these was ever resolved after the warmup.
        assert held < 2
        assert not last or not last.resolved


def test_with_the_defaults_it_is_never_said():
    for decides, measure_every in ((True, 8), (False, 16)):
        least = cautions.MIN_STEPS[decides]
        for steps in range(least, 2000, 7):
            cautions.warn_short_memory(steps * 32, 0.05, least * 32, measure_every * 32)
    with pytest.warns(UserWarning, match=HARDLY_RESOLVED):
        cautions.warn_short_memory(150 * 32, 0.04, 150 * 32, 8 * 32)


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (dict(memory=0.001), dict(fast_dev_run=True)),
        (dict(memory=0.001), dict(max_steps=20)),
        (dict(memory=0.001), dict(limit_train_batches=10, max_epochs=1)),
        (dict(warmup=10_000), dict(fast_dev_run=True)),
    ],
)
def test_a_trial_says_nothing_of_memory_and_warmup(options, settings):
    """Warnings are errors here."""
    fit(Regression(), regression_loader(800), [BatchSizeScaler(**options)], **settings)
