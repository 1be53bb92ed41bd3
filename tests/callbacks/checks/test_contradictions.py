"""Options that make no sense together, or not in this training: refused, or said once with the way out."""

import math
import re
import warnings

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from lightning_bsscale.callbacks.checks import preflight
from lightning_bsscale.theory.estimate import Averages
from lightning_bsscale.theory.moments import WindowMoments
from lightning_bsscale.theory.windows import windows_in_memory
from tests.helpers.training import KeepsRates, Numbers, OneHot, Regression, Scripted, fit, regression_loader

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
    said = [str(w.message) for w in caught if "can hardly be resolved" in str(w.message)]
    return 0.0 if last is None else last.effective_windows, said


SHORT = [
    # 800 examples, batch 4: a probe of two micro-batches in every 20 examples, so 10 examples hold too little.
    (BatchSizeScaler, dict(memory=0.0125), {}, "in 20 .* averages over 10.*a lower probe_every, or memory=0.1"),
    (BatchSizeScaler, dict(memory=0.0125, probe_every=1), {}, None),
    (BatchSizeScaler, dict(memory=0.1), {}, None),
    # Batch 8, 200 steps in two epochs: every 8th window, so 64 examples from one to the next.
    (BatchSizeScaler, dict(memory=0.02), dict(accumulate_grad_batches=2, max_epochs=2), "in 64 .* over 32.*every, or"),
    (BatchSizeScaler, dict(memory=0.02, measure_every=2), dict(accumulate_grad_batches=2, max_epochs=2), None),
    (BatchSizeScaler, dict(memory=0.16), dict(accumulate_grad_batches=2, max_epochs=2), None),
    (BatchSizeScaler, dict(memory=1.0, measure_every=199, warmup=0), dict(accumulate_grad_batches=1), None),
    (GradientNoiseScaleMonitor, dict(memory=0.02), dict(accumulate_grad_batches=2, max_epochs=2), "in 64 .* over 32"),
    (GradientNoiseScaleMonitor, dict(memory=0.16), dict(accumulate_grad_batches=2, max_epochs=2), None),
    (
        GradientNoiseScaleMonitor,
        dict(memory=1.0, measure_every=200),
        dict(accumulate_grad_batches=2, max_epochs=2),
        r"holds 1\.0 windows, .* Set a lower measure_every\.$",
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
    with pytest.warns(UserWarning, match="can hardly be resolved"):
        preflight.warn_short_memory(preflight.MIN_STEPS * 32, 0.04, 32, measure_every=8)


@pytest.mark.parametrize("settings", [dict(fast_dev_run=True), dict(max_steps=20), dict(limit_train_batches=10)])
def test_a_trial_says_nothing_of_the_memory(settings):
    """Warnings are errors here."""
    fit(Regression(), regression_loader(800), [BatchSizeScaler(memory=0.001)], **{"max_epochs": 1, **settings})


# ---------------------------------------------------------------- warmup and budget


def test_a_warmup_as_long_as_the_training_holds_the_batch_and_is_said():
    scaler = BatchSizeScaler(policy=Scripted([8, 16]), warmup=100)
    with pytest.warns(UserWarning, match=r"warmup=100 examples is all of this training \(80 examples\)") as caught:
        fit(Regression(), regression_loader(80), [scaler], max_epochs=1)
    assert sum("warmup=100" in str(warning.message) for warning in caught) == 1
    assert scaler.batch_size == 4
    shorter = BatchSizeScaler(policy=Scripted([8, 16]), warmup=40)
    fit(Regression(), regression_loader(80), [shorter], max_epochs=1)
    assert shorter.batch_size == 8


def test_a_trial_of_a_long_training_says_nothing_of_its_warmup():
    fit(Regression(), regression_loader(80), [BatchSizeScaler(warmup=10_000)], fast_dev_run=True)


def test_a_budget_below_one_batch_is_refused_by_its_examples():
    scaler = BatchSizeScaler(total_examples=7)
    with pytest.raises(MisconfigurationException, match="total_examples=7 is less than one starting batch of 8 "):
        fit(Regression(), regression_loader(80), [scaler], max_epochs=1, accumulate_grad_batches=2)
    scaler = BatchSizeScaler(total_examples=8)
    trainer = fit(Regression(), regression_loader(80), [scaler], max_epochs=1, accumulate_grad_batches=2)
    assert (scaler.examples_seen, trainer.global_step) == (8, 1)


def test_probes_and_accumulation_go_together():
    scaler = BatchSizeScaler(probe_every=2)
    fit(Regression(), regression_loader(80), [scaler], max_epochs=1, accumulate_grad_batches=2)
    assert {made.accumulate_grad_batches for made in scaler.history} == {2}


# ---------------------------------------------------------------- the rate


def test_a_dry_run_leaves_the_rate_alone_and_says_so():
    def rates(**options):
        module = Regression(lambda p: KeepsRates(p, lr=0.05))
        fit(module, regression_loader(80), [BatchSizeScaler(schedule="linear", **options)], max_epochs=1)
        return {rate for (rate,) in module.trainer.optimizers[0].used}

    assert len(rates()) > 1
    with (
        pytest.warns(UserWarning, match=r"schedule=WarmupLinear\(final=0.0\) is not applied"),
        pytest.warns(UserWarning, match="the noise scale cannot be measured"),
    ):
        assert rates(dry_run=True) == {0.05}


@pytest.mark.parametrize("rule", ["none", "Constant"])
def test_a_ceiling_over_nothing(rule):
    from lightning_bsscale import Constant

    with pytest.raises(MisconfigurationException, match="lr_cap=8 is a ceiling"):
        BatchSizeScaler(lr_rule=Constant() if rule == "Constant" else rule, lr_cap=8)


def test_a_rate_of_zero_is_a_rate():
    module = Regression(lambda p: torch.optim.SGD(p, lr=0.0))
    before = [p.detach().clone() for p in module.parameters()]
    scaler = BatchSizeScaler(policy=Scripted([8, 16]), lr_rule="sqrt")
    trainer = fit(module, regression_loader(80), [scaler], max_epochs=1)
    assert trainer.callback_metrics["bsscale/lr"] == 0
    assert scaler.lr_scale == math.sqrt(2)
    assert all(map(torch.equal, before, module.parameters()))


# ---------------------------------------------------------------- optimizers


class Mine(torch.optim.LBFGS):
    pass


class FullBatchLbfgsNew(torch.optim.SGD):
    """Some other library's, which is known by its name alone."""


class WithoutRate(torch.optim.Optimizer):
    def __init__(self, parameters, **defaults):
        super().__init__(parameters, defaults)

    def step(self, closure=None):
        return closure()


def one_of_two(parameters):
    first, second = parameters
    return WithoutRate([{"params": [first], "lr": 0.1}, {"params": [second]}])


class Returns(Regression):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def configure_optimizers(self):
        return self.answer


SEVERAL = "cannot work with {}: in one step it calls its closure"
RATE = "needs the rate in every parameter group of the optimizer, and WithoutRate has a group without one"
UNFIT = [
    (Regression(torch.optim.LBFGS), SEVERAL.format("LBFGS")),
    (Regression(Mine), SEVERAL.format("Mine")),
    (Regression(lambda p: FullBatchLbfgsNew(p, lr=0.1)), SEVERAL.format("FullBatchLbfgsNew")),
    (Regression(WithoutRate), RATE),
    (Regression(lambda p: WithoutRate(p, lr=None)), RATE),
    (Regression(one_of_two), RATE),
    (Returns(None), "needs an optimizer, and configure_optimizers returns none"),
    (Returns([]), "needs an optimizer, and configure_optimizers returns none"),
]


@pytest.mark.parametrize("callback", [lambda: BatchSizeScaler(lr_rule="sqrt"), GradientNoiseScaleMonitor])
@pytest.mark.parametrize(("module", "match"), UNFIT)
@pytest.mark.filterwarnings("ignore:.*configure_optimizers. returned .None.")
def test_an_optimizer_that_does_not_fit(callback, module, match):
    made = callback()
    with pytest.raises(MisconfigurationException, match=f"^{type(made).__name__} {match}"):
        fit(module, regression_loader(40), [made], max_epochs=1, accumulate_grad_batches=2)


@pytest.mark.filterwarnings("ignore:You defined a .validation_step.")
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
