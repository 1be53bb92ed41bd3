"""Precisions, optimizers, and what stands between the loss and the step: what is measured, and stepped with."""

import math

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from tests.helpers.expected_warnings import CANNOT_MEASURE, hearing
from tests.helpers.known_noise import NOISE_SCALE, KnownNoise, gradients
from tests.helpers.training import KeepSteps, Regression, fit, gradient_scaler, regression_loader, scripted, watching

CALLBACKS = pytest.mark.parametrize("callback", [BatchSizeScaler, GradientNoiseScaleMonitor])

# ---------------------------------------------------------------- the same gradients in every precision

WINDOWS = 60
DATA = gradients(16 * WINDOWS)


def measured(settings, module):
    one = watching(GradientNoiseScaleMonitor)
    data = DataLoader(TensorDataset(DATA), batch_size=4)
    trainer = fit(module, data, [one], max_epochs=1, accumulate_grad_batches=4, **settings)
    assert trainer.callback_metrics["bsscale/dropped_windows"] == 0
    assert one.noise_scale.effective_windows == pytest.approx(WINDOWS)
    return one.noise_scale


@pytest.fixture(scope="module")
def in_single_precision():
    noise = measured({}, KnownNoise())
    # A standard error is about 20 % here. The data are the same in every run: the others must be far closer than that.
    assert noise.low < NOISE_SCALE < noise.high
    return noise


GRADIENT_SCALERS = {"gradient scaler": 2.0**8, "gradient scaler, large": 2.0**14}
PRECISIONS = ["64-true", "bf16-mixed", "bf16-true", "16-true", "32-true", *GRADIENT_SCALERS]
OPTIMIZERS = {
    "sgd": {},
    "sgd, fused": {"fused": True},
    "adamw, foreach": {"optimizer": torch.optim.AdamW, "foreach": True},
    "adamw, fused": {"optimizer": torch.optim.AdamW, "fused": True},
}
TOGETHER = [(precision, "sgd") for precision in PRECISIONS] + [
    (precision, optimizer) for precision in ("32-true", "gradient scaler") for optimizer in list(OPTIMIZERS)[1:]
]


@pytest.mark.parametrize(("precision", "optimizer"), TOGETHER)
def test_all_precisions_and_optimizers_measure_the_same(precision, optimizer, in_single_precision):
    """Under a gradient scaler a fused optimizer gets the scaled gradient, and the norm must not be that of it."""
    init_scale = GRADIENT_SCALERS.get(precision)
    settings = gradient_scaler(init_scale) if init_scale else {"precision": precision}
    noise = measured(settings, KnownNoise(**OPTIMIZERS[optimizer]))
    for name in ("noise_scale", "trace", "grad_sq", "low", "high"):
        assert getattr(noise, name) == pytest.approx(getattr(in_single_precision, name), rel=0.05)


# ---------------------------------------------------------------- steps that a gradient scaler skips


class Steps(Regression):
    """Keeps, for every window, whether the weights moved and whether the scale of the loss fell."""

    def on_fit_start(self):
        self.moved, self.skipped = [], []

    def on_train_batch_start(self, batch, batch_idx):
        self.before = [p.detach().clone() for p in self.parameters()]
        self.steps, self.scale = self.trainer.global_step, self.trainer.precision_plugin.scaler.get_scale()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.trainer.global_step > self.steps:
            self.moved.append(not all(torch.equal(a, b) for a, b in zip(self.before, self.parameters(), strict=True)))
            self.skipped.append(self.trainer.precision_plugin.scaler.get_scale() < self.scale)


@CALLBACKS
@pytest.mark.parametrize("fused", [False, True])
def test_skipped_steps_count_their_examples_and_nothing_else(callback, fused):
    one, logger = watching(callback), KeepSteps()
    module = Steps(lambda p: torch.optim.SGD(p, lr=0.01, fused=fused))
    settings = dict(max_epochs=1, accumulate_grad_batches=2, logger=logger, log_every_n_steps=1)
    trainer = fit(module, regression_loader(160), [one], **settings, **gradient_scaler(2.0**24))
    skipped = sum(module.skipped)
    assert 3 <= skipped <= 15
    assert module.moved == [not was_skipped for was_skipped in module.skipped]
    assert trainer.global_step == 20
    assert logger.points("bsscale/examples_seen") == [(n, 8.0 * (n + 1)) for n in range(20)]
    # A window is known to have been dropped one window later.
    assert logger.points("bsscale/dropped_windows") == [(n, sum(module.skipped[:n])) for n in range(20)]
    assert one.noise_scale.effective_windows == pytest.approx(20 - skipped)
    assert [not math.isfinite(made.trace) for made in one.history] == module.skipped


@CANNOT_MEASURE
# Lightning steps a scheduler after a skipped step too, as the plan would: torch remarks on it where that is the first.
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("fused", [False, True])
def test_skipped_steps_leave_the_factors_path_and_the_users_rate(fused):
    """The same decisions with skipped steps and without: the same factors, and the rate where the plan has it."""

    def make(optimizer, trainer):
        return {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5), "interval": "step"}

    runs = {}
    for name, init_scale in {"skips": 2.0**24, "does not": 2.0**8}.items():
        scaler, logger = scripted(8, 16, 16, 16, 32, measure_every=1), KeepSteps()
        module = Steps(lambda p: torch.optim.SGD(p, lr=0.01, fused=fused), make)
        settings = dict(max_epochs=1, logger=logger, log_every_n_steps=1, **gradient_scaler(init_scale))
        trainer = fit(module, regression_loader(400), [scaler], **settings)
        assert any(module.skipped) == (name == "skips")
        logged = [metrics["bsscale/lr_scale"] for _, metrics in logger.logged]
        group = trainer.optimizers[0].param_groups[0]
        runs[name] = (scaler.lr_scale, scaler.batch_size, scaler.examples_seen, group["lr"]), logged, module.skipped
    assert runs["skips"][0] == runs["does not"][0]
    factors, skipped = runs["does not"][1], runs["skips"][2]
    assert factors[:4] == [1, 2, 4, 4]
    assert all(skipped[:4])
    assert not all(skipped)
    if not fused:  # a fused optimizer's step is called, and skips its update inside
        made = [step for step in range(len(skipped)) if not skipped[step]]
        # Where no update was made, the log has what the last one was made with; before any, the user's.
        factors = [factors[max((one for one in made if one <= step), default=0)] for step in range(len(skipped))]
    assert runs["skips"][1] == factors


# ---------------------------------------------------------------- micro-batches that are not finite


class Breaks(Regression):
    """The loss of chosen micro-batches is not finite; the weights stand still, so the others are as without them."""

    def __init__(self, broken, value):
        super().__init__(lambda p: torch.optim.SGD(p, lr=0.0))
        self.broken, self.value = set(broken), value

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * self.value if batch_idx in self.broken else loss

    def on_before_optimizer_step(self, optimizer):
        # lr = 0 times NaN is NaN: the weights would be gone with the first one.
        for parameter in self.parameters():
            parameter.grad.nan_to_num_(0.0, 0.0, 0.0)


@CALLBACKS
@pytest.mark.parametrize(("value", "position"), [(float("nan"), 0), (float("inf"), 1), (-float("inf"), 3)])
def test_a_window_with_a_micro_batch_that_is_not_finite_is_dropped_and_counted(callback, value, position):
    runs = {}
    for broken in ((), (12 + position, 28 + position)):
        one = watching(callback)
        trainer = fit(Breaks(broken, value), regression_loader(160), [one], max_epochs=1, accumulate_grad_batches=4)
        assert trainer.callback_metrics["bsscale/dropped_windows"] == len(broken)
        runs[bool(broken)] = one
    finite, broken = runs[False], runs[True]
    assert len(broken.history) == len(finite.history) == 10
    for number, (one, other) in enumerate(zip(finite.history, broken.history, strict=True)):
        if number in {3, 7}:
            assert not torch.tensor([other.trace, other.grad_sq]).isfinite().any()
            assert other.noise == broken.history[number - 1].noise
        else:
            assert (one.trace, one.grad_sq) == (other.trace, other.grad_sq)
    assert broken.noise_scale.effective_windows == pytest.approx(8)


def warnings_of(broken, measure_every=1, **settings):
    module, scaler = Breaks(broken, float("nan")), scripted(measure_every=measure_every)
    with hearing("non-finite") as said:
        fit(module, regression_loader(400), [scaler], max_epochs=1, accumulate_grad_batches=2, **settings)
    return said


def test_ten_dropped_windows_in_a_row_give_one_warning():
    # Windows of two: the tenth begins at 18. A finite window in between begins the count anew.
    assert warnings_of(range(18)) == []
    assert warnings_of([*range(18), *range(20, 38)]) == []
    for broken in (range(20), range(100), [*range(20), *range(40, 80)]):
        (said,) = warnings_of(broken)
        assert "10 measured windows" in said
        assert "lower the learning rate" in said
        assert "detect_anomaly=True" in said
    (said,) = warnings_of(range(100), **gradient_scaler(2.0**8))
    assert "scaler.get_scale()" in said
    # Only measured windows count: one in three, of two loader batches each.
    assert warnings_of(range(54), measure_every=6) == []
    assert len(warnings_of(range(56), measure_every=6)) == 1
