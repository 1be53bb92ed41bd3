"""Each policy through the real Trainer: the batches and learning rates that are trained with, and the journal."""

import math
from dataclasses import replace

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsscale import (
    BatchSizeScaler,
    Capped,
    Decision,
    HoldIfWorse,
    Largest,
    Linear,
    Milestones,
    NoiseScalePolicy,
    NormTest,
    Policy,
    Seesaw,
    Sequence,
    Smith,
    Sqrt,
)
from lightning_bsscale.replay import replay
from lightning_bsscale.theory.schedules import (
    Schedule,
    WarmupCosine,
    WarmupLinear,
    WarmupStableDecay,
    resolve_schedule,
)
from tests.helpers.expected_warnings import CANNOT_MEASURE, CKPT_PATH, MID_EPOCH, WITHOUT_VALIDATION
from tests.helpers.known_noise import NOISE_SCALE, KnownNoise, gradients
from tests.helpers.training import CountsWindows, KeepsRates, Regression, Saves, fit, regression_loader, run_of

pytestmark = [CANNOT_MEASURE, CKPT_PATH, MID_EPOCH, WITHOUT_VALIDATION]

START, LOADED, PLAN = 32, 8, 100  # examples of the first batch and of a loader batch; the plan's optimizer steps
RULES = {"sqrt": Sqrt(), "linear": Linear()}


class KeepsOwnRates(CountsWindows):
    """Keeps the user's learning rate at each step, and examples of each window."""

    def __init__(self, scheduler=None):
        super().__init__(lambda parameters: KeepsRates(parameters, lr=0.1), scheduler)
        self.own = []

    def on_before_optimizer_step(self, optimizer):
        super().on_before_optimizer_step(optimizer)
        self.own.append(optimizer.param_groups[0]["lr"])


def train(policy, path=None, *, scheduler=None, **options):
    """Train 100 planned steps of 32 examples; return examples, the user's and the used learning rate of each step."""
    make = None if scheduler is None else lambda o, t: {"scheduler": scheduler(o), "interval": "step"}
    module = KeepsOwnRates(make)
    defaults = dict(policy=policy, warmup=0, max_batch_size=10**6, max_micro_batch_size=None, record=path or False)
    scaler = BatchSizeScaler(**{**defaults, **options})
    data = regression_loader(START * PLAN, LOADED)
    trainer = fit(module, data, [scaler], max_epochs=1, accumulate_grad_batches=START // LOADED)
    used = [rate for (rate,) in trainer.optimizers[0].used]
    assert sum(module.windows) == START * PLAN
    if path is not None:
        own = options.get("schedule")
        assert_replayed(path, own if isinstance(own, Roots) else None)
    return list(zip(module.windows, module.own, used, strict=True)), scaler


def assert_replayed(path, schedule=None):
    replayed = list(replay(path, schedule=schedule))
    assert {one.kind for one in replayed} >= {"window", "factor", "decision", "end"}
    assert not [one for one in replayed if not one.agrees]


class Hyperbola(lr_scheduler.LRScheduler):
    """A scheduler of the user's own."""

    def get_lr(self):
        return [lr / (1 + self.last_epoch / 25) for lr in self.base_lrs]


USERS = {
    "quarters": lambda o: lr_scheduler.StepLR(o, PLAN // 3, 0.25),
    "cosine": lambda o: lr_scheduler.LambdaLR(o, lambda n: 0.05 + 0.95 * (1 + math.cos(math.pi * n / PLAN)) / 2),
    "linear": lambda o: lr_scheduler.LinearLR(o, 1.0, 0.05, PLAN),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.97),
    "wsd": lambda o: lr_scheduler.LambdaLR(
        o, lambda n: min(1.0, (n + 1) / 20, 1 - 0.9 * max(0.0, n / PLAN - 0.6) / 0.4)
    ),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=PLAN + 1, final_div_factor=2),
    "own class": Hyperbola,
}
FORMS = [
    (Seesaw(gate=None), "sqrt", 1.0),
    (Seesaw(gate=None, form="sgd"), "linear", 0.5),
    (Smith(), "linear", 1.0),
]


@pytest.mark.parametrize("name", USERS)
@pytest.mark.parametrize(("policy", "rule", "growth"), FORMS, ids=["adam", "sgd", "smith"])
def test_growth_replaces_the_decay_of_the_users_scheduler(tmp_path, policy, rule, growth, name):
    """B = B0 / f^growth; the rate in the update is √f (Seesaw) or the peak's (Smith), within one cut and rounding."""
    steps, _ = train(policy, tmp_path / "j", scheduler=USERS[name], lr_rule=rule)
    peak, rises = max(own for _, own, _ in steps), True
    decay = 0.0 if isinstance(policy, Smith) else 0.5
    assert len(steps) < 0.95 * PLAN
    rounding = 2**0.25 * (1 + LOADED / START)
    for examples, own, used in steps[:-1]:  # the last step takes what is left
        share = own / peak
        # The peak so far is that of the window, until the schedule falls.
        rises = rises and share < 1
        ratio = examples / START
        assert used == pytest.approx(own * RULES[rule].ratio(START, examples, None), rel=1e-9)
        if rises:
            assert ratio == 1
            continue
        assert share**-growth / rounding <= ratio <= share**-growth * 1.001
        assert share**decay / rounding <= used / peak <= share**decay * 1.001


@pytest.mark.parametrize(("policy", "rule", "growth"), FORMS, ids=["adam", "sgd", "smith"])
def test_a_cut_in_whole_batches_is_exact(policy, rule, growth):
    """A scheduler that cuts by four: the batch follows at once, and the update's rate is √f or constant exactly."""
    steps, _ = train(replace(policy, cut=4.0), scheduler=USERS["quarters"], lr_rule=rule)
    decay = 0.0 if isinstance(policy, Smith) else 0.5
    shares = {own / 0.1 for _, own, _ in steps[:-1]}
    assert shares == {4.0**-k for k in range(3)}
    for examples, own, used in steps[:-1]:
        assert examples == START * (own / 0.1) ** -growth
        assert used == pytest.approx(0.1 * (own / 0.1) ** decay, rel=1e-12)


def test_a_peak_within_the_warmup_is_known_after_it(tmp_path):
    """One cycle rises to 25 times its start at 30 % of the training; the scaler's warmup ends at 50 %."""
    steps, scaler = train(Seesaw(gate=None), tmp_path / "j", scheduler=USERS["one cycle"], lr_rule="sqrt", warmup=0.5)
    assert run_of(scaler).schedule_peak == pytest.approx(max(own for _, own, _ in steps) / steps[0][1], rel=0.01)
    assert max(examples for examples, _, _ in steps) > 2 * START


class Roots(Schedule):
    """A schedule of the user's own: one over the square root of the examples."""

    def factor(self, examples_seen, total_examples, warmup_examples):
        return (1 + 20 * examples_seen / total_examples) ** -0.5


SCHEDULES = {
    "cosine": WarmupCosine(final=0.05),
    "linear": WarmupLinear(final=0.05),
    "step": "step",
    "exponential": "exponential",
    "wsd": WarmupStableDecay(decay=0.5, final=0.1),
    "own": Roots(),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("policy", "rule", "growth"), FORMS, ids=["adam", "sgd", "smith"])
def test_growth_replaces_the_decay_of_the_callbacks_own_schedule(tmp_path, policy, rule, growth, name):
    """The batch follows the schedule at the start of its window, the learning rate that at the window's middle."""
    steps, _ = train(policy, tmp_path / "j", schedule=SCHEDULES[name], lr_rule=rule, warmup=0.1)
    schedule, total = resolve_schedule(SCHEDULES[name]), START * PLAN

    def share(seen):
        return schedule.factor(seen, total, 0.1 * total)

    peak = share(0.1 * total) if name != "own" else 1.0
    seen, rounding = 0, 2**0.25 * (1 + LOADED / START)
    for examples, own, used in steps[:-1]:
        ratio = examples / START
        assert own == 0.1
        assert used == pytest.approx(own * share(seen + examples / 2) * RULES[rule].ratio(START, examples, None))
        if seen < 0.1 * total:
            assert ratio == 1
        else:
            wanted = (share(seen) / peak) ** -growth
            assert wanted / rounding <= ratio <= wanted * 1.001
        seen += examples
    assert len(steps) < 0.95 * PLAN


PLAIN = dict(lr_rule="linear", warmup=0, max_micro_batch_size=None)


def test_a_scheduler_on_epochs():
    """Lightning's own default, and the CLI's: it cuts by two after each epoch."""
    module = KeepsOwnRates(lambda o, t: {"scheduler": lr_scheduler.StepLR(o, 1, 0.5), "interval": "epoch"})
    scaler = BatchSizeScaler(policy=Smith(cut=2), max_batch_size=10**6, **PLAIN)
    trainer = fit(module, regression_loader(512, LOADED), [scaler], max_epochs=4, accumulate_grad_batches=4)
    found = list(zip(module.own, module.windows, trainer.optimizers[0].used, strict=True))
    expected = [(0.1, 32, 16), (0.05, 64, 8), (0.025, 128, 4), (0.0125, 256, 2)]
    assert found == [(own, size, [pytest.approx(0.1)]) for own, size, many in expected for _ in range(many)]


def test_growth_at_a_plateau():
    """ReduceLROnPlateau cuts by two where a loss does not improve; the batch doubles instead."""

    class Flat(KeepsOwnRates):
        def training_step(self, batch, batch_idx):
            self.log("flat", 1.0)
            return super().training_step(batch, batch_idx)

    def plateau(optimizer, trainer):
        return {"scheduler": lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0), "monitor": "flat"}

    module = Flat(plateau)
    scaler = BatchSizeScaler(policy=Smith(cut=2), max_batch_size=10**6, **PLAIN)
    trainer = fit(module, regression_loader(512, LOADED), [scaler], max_epochs=4, accumulate_grad_batches=4)
    # The first epoch is the best one so far. After each of the others the scheduler cuts, and the first window of the
    # next one, planned before, is still of the old size; so is the ragged last one.
    found = list(zip(module.own, module.windows, trainer.optimizers[0].used, strict=True))
    third = [(0.05, 32, 0.05), *[(0.05, 64, 0.1)] * 7, (0.05, 32, 0.05)]
    fourth = [(0.025, 64, 0.05), *[(0.025, 128, 0.1)] * 3, (0.025, 64, 0.05)]
    expected = [*[(0.1, 32, 0.1)] * 32, *third, *fourth]
    assert found == [(own, size, [pytest.approx(used)]) for own, size, used in expected]


MADE = {
    "milestones": (Milestones({0.25: 2, 2400: 6}), [(32, 25), (64, 25), (192, 4)]),
    "milestones in examples": (Milestones({0.25: 64, "0.5": 128}, unit="examples"), [(32, 25), (64, 13), (128, 12)]),
    "sequence": (Sequence([Milestones({0.1: 2}), Milestones({0.02: 4})], at=[0.5]), [(32, 10), (64, 20), (128, 12)]),
    "largest": (Largest([Milestones({0.25: 4}), Milestones({0.1: 2, 0.4: 3})]), [(32, 10), (64, 8), (128, 18)]),
}


@pytest.mark.parametrize("name", MADE)
def test_planned_batches_are_trained_with(tmp_path, name):
    policy, expected = MADE[name]
    steps, scaler = train(policy, tmp_path / "j", lr_rule="sqrt")
    sizes = [examples for examples, _, _ in steps[:-1]]
    found = [(size, sizes.count(size)) for size in dict.fromkeys(sizes)]
    assert [size for size, _ in found] == [size for size, _ in expected]
    assert all(abs(many - planned) <= 1 for (_, many), (_, planned) in zip(found, expected, strict=True))
    for examples, own, used in steps[:-1]:
        assert (own, used) == (0.1, pytest.approx(0.1 * math.sqrt(examples / START)))
    assert scaler.batch_size == expected[-1][0]


# ---------------------------------------------------------------- policies that measure

# At a noise scale of 64 examples.
MEASURE = {
    "norm_test": (NormTest(), NOISE_SCALE * (1 / 0.36 - 1)),
    "meta": ("meta", NOISE_SCALE * (1 / 0.36 - 1)),
    "prices": (NoiseScalePolicy(confidence=0.5, step_price=4, example_price=0.25), math.sqrt(NOISE_SCALE * 16)),
    "seesaw": (Seesaw(confidence=0.5), NOISE_SCALE),
    "smith": (Smith(confidence=0.5, gate=2.0), 2 * NOISE_SCALE),
}


@pytest.mark.parametrize("name", MEASURE)
def test_where_measuring_policies_come_to_rest(tmp_path, name):
    policy, expected = MEASURE[name]
    rules = {"seesaw": "sqrt", "smith": "linear"}
    options = dict(schedule="cosine", lr_rule=rules[name]) if name in rules else {}
    scaler = BatchSizeScaler(
        policy=policy, measure_every=1, memory=1.0, max_batch_size=1024, record=tmp_path / "j", warmup=0.02, **options
    )
    fit(KnownNoise(), DataLoader(TensorDataset(gradients(24_000)), batch_size=16), [scaler], max_epochs=1)
    assert scaler.batch_size == pytest.approx(expected, rel=0.25, abs=16)
    assert_replayed(tmp_path / "j")


def test_measured_prices_are_the_callbacks_seconds(tmp_path):
    """Which differ from run to run; each decision follows from those that it was given, and the journal has them."""
    policy = NoiseScalePolicy(target_ratio=1, step_price="measured", example_price="measured", hysteresis=1.0)
    scaler = BatchSizeScaler(policy=policy, measure_every=1, memory=1.0, max_batch_size=1024, record=tmp_path / "j")
    fit(KnownNoise(), DataLoader(TensorDataset(gradients(4_000)), batch_size=8), [scaler], max_epochs=1)
    grown = [record for record in scaler.decisions if record.is_change]
    assert grown[0].batch_size == 16  # one loader batch more, to tell the seconds of a step from those of examples
    priced = [one for one in scaler.decisions if one.decision.bound and one.situation.batch_size > 8]
    assert priced
    for record in priced:
        now = record.situation
        if None not in (now.seconds_per_step, now.seconds_per_loader_batch):
            ratio = now.seconds_per_step / (now.seconds_per_loader_batch / 8)
            assert record.decision.target == pytest.approx(math.sqrt(record.decision.bound * ratio))
    assert_replayed(tmp_path / "j")


# ---------------------------------------------------------------- a watched metric


class ByExamples(Policy):
    """Wants 16 examples from 80 on, and 64 from 200 on."""

    def decide(self, situation, limits):
        wanted = 8 if situation.examples_seen < 80 else 16 if situation.examples_seen < 200 else 64
        return Decision(batch_size=wanted, reason="by examples", code=str(wanted))


class Logs(CountsWindows):
    """Logs a metric at every validation, or at every epoch's end, as the test says by examples."""

    def __init__(self, value, at="validation"):
        super().__init__()
        self.value, self.at, self.examples = value, at, 1e-9

    def training_step(self, batch, batch_idx):
        self.examples += len(batch[0])
        if self.at == "epoch":
            self.log("metric", self.value(self.examples), on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        if self.at == "validation":
            self.log("metric", self.value(self.examples))

    def on_save_checkpoint(self, checkpoint):
        checkpoint["examples"] = self.examples

    def on_load_checkpoint(self, checkpoint):
        self.examples = checkpoint["examples"]


def guarded(path=False, policy=None, **options):
    made = HoldIfWorse(policy or ByExamples(), "metric", **options)
    return BatchSizeScaler(policy=made, warmup=0, lr_rule="none", max_micro_batch_size=None, record=path)


def spike(examples):
    """Falls as a power law, but for a bad time."""
    return (2.0 if 160 <= examples < 400 else 1.0) * examples**-0.3


def fit_guarded(module, scaler, **settings):
    settings = {"max_epochs": 1, "val_check_interval": 5, "num_sanity_val_steps": 1} | settings
    return fit(
        module,
        regression_loader(800, 8),
        [scaler, *settings.pop("callbacks", [])],
        val=regression_loader(8),
        **settings,
    )


def growths(scaler):
    return [(record.situation.examples_seen, record.batch_size) for record in scaler.decisions if record.is_change]


@pytest.mark.parametrize(("value", "second"), [(lambda examples: examples**-0.3, 200), (spike, 400)])
def test_growth_waits_until_a_metric_is_back_at_its_trend(tmp_path, value, second):
    module, scaler = Logs(value), guarded(tmp_path / "j")
    fit_guarded(module, scaler)
    # Validations are at every 40 examples, and windows of 16 from 80 on.
    assert growths(scaler) == [(80, 16), (pytest.approx(second, abs=16), 64)]
    assert module.windows[:10] == [8] * 10
    assert set(module.windows[10:-1]) == {16, 64}
    codes = [record.decision.code for record in scaler.decisions]
    assert ("behind_trend" in codes) == (value is spike)
    replayed = list(replay(tmp_path / "j", HoldIfWorse(ByExamples(), "metric")))
    assert not [one for one in replayed if not one.agrees]
    assert len([one for one in replayed if one.kind == "decision"]) == len(scaler.decisions)


@pytest.mark.parametrize("at", ["a loader batch's end", "a validation"])
def test_a_resumed_run_holds_like_one_that_was_never_killed(tmp_path, at):
    whole, scaler = Logs(spike), guarded(tmp_path / "whole")
    fit_guarded(whole, scaler)
    # After 288 and 320 examples, while the batch is held.
    saves = Saves(tmp_path / "ckpt", 35)
    path = tmp_path / "ckpt"
    if at == "a validation":
        saves, path = (
            ModelCheckpoint(tmp_path / "c", "{step}", save_top_k=-1, monitor="metric"),
            tmp_path / "c" / "step=25.ckpt",
        )
    checkpoints = dict(enable_checkpointing=isinstance(saves, ModelCheckpoint))
    fit_guarded(Logs(spike), guarded(tmp_path / "j"), callbacks=[saves], **checkpoints)
    module, resumed = Logs(spike), guarded(tmp_path / "j")
    fit_guarded(module, resumed, ckpt_path=path)
    assert growths(resumed) == growths(scaler)
    assert run_of(resumed).metrics == run_of(scaler).metrics
    decided = [[(one.decision, one.situation.metrics) for one in made.decisions] for made in (resumed, scaler)]
    assert decided[0] == decided[1]
    assert not [one for one in replay(tmp_path / "j", HoldIfWorse(ByExamples(), "metric")) if not one.agrees]


@pytest.mark.parametrize("at", ["validation", "epoch"])
def test_every_value_is_read_once(at):
    """A metric of the training's epoch is still there at the next epoch's validations."""
    module, scaler = Logs(float, at), guarded()
    fit_guarded(module, scaler, max_epochs=3, val_check_interval=50)
    found = [(one.examples_seen, one.value) for one in run_of(scaler).metrics]
    if at == "validation":
        assert [value for _, value in found] == pytest.approx([400, 800, 1200, 1600, 2000, 2400])
        assert all(seen <= round(value) < seen + 64 for seen, value in found)  # those of whole windows
    else:
        assert [seen for seen, _ in found] == [800, 1600, 2400]


def test_few_values_are_kept():
    module, scaler = Logs(float), guarded()
    fit_guarded(module, scaler, val_check_interval=1)
    seen = [one.examples_seen for one in run_of(scaler).metrics]
    (_, last) = [at for at, _ in growths(scaler)] if len(growths(scaler)) > 1 else (0, growths(scaler)[0][0])
    assert len([at for at in seen if at <= last]) == 8 == len([at for at in seen if at > last])


@pytest.mark.parametrize("settings", [{}, {"limit_val_batches": 0}])
def test_a_metric_that_is_never_logged_is_named(settings):
    with pytest.raises(
        MisconfigurationException, match="policy watches 'metric', which was not logged in the first epoch"
    ):
        fit_guarded(Logs(float, "nowhere"), guarded(), **settings)


def test_a_metric_may_come_with_the_first_validation():
    scaler = guarded()
    fit_guarded(Logs(float), scaler, max_epochs=2, check_val_every_n_epoch=2, val_check_interval=None)
    assert [one.examples_seen for one in run_of(scaler).metrics] == [1600]


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("policy", "rule", "message"),
    [
        (
            "seesaw",
            "auto",
            "Seesaw trades .* by lr_rule='sqrt' or lr_rule='surge' .*, but lr_rule is 'power' here",
        ),
        (Seesaw(), "none", "but lr_rule is 'none' here"),
        (Seesaw(form="sgd"), "sqrt", "by lr_rule='linear' or lr_rule='saturating'"),
        ("smith", "sqrt", "Smith trades .*lr_rule is 'sqrt'"),
        (HoldIfWorse(Smith()), Capped(Sqrt(), 8), "HoldIfWorse trades .*lr_rule is 'sqrt'"),
        (Sequence([Seesaw(), Smith()], at=[0.5]), "sqrt", "by none of the package's rules"),
    ],
)
def test_a_rule_that_makes_something_else_of_the_policy(policy, rule, message):
    with pytest.raises(MisconfigurationException, match=message):
        fit(Regression(), regression_loader(80), [BatchSizeScaler(policy=policy, lr_rule=rule)], max_epochs=1)


def test_a_rule_of_ones_own_is_ones_own():
    class Mine:
        def ratio(self, old_batch, new_batch, noise):
            return (new_batch / old_batch) ** 0.6

    fit(Regression(), regression_loader(80), [BatchSizeScaler(policy=Seesaw(gate=None), lr_rule=Mine())], max_epochs=1)


def test_no_clock_decides_in_a_deterministic_training():
    policy = NoiseScalePolicy(step_price="measured", example_price="measured")
    scalers = [BatchSizeScaler(policy=made) for made in (policy, Largest([policy, NormTest()]))]
    try:
        for scaler in scalers:
            with pytest.raises(
                MisconfigurationException, match=r"deterministic=True.* Pass step_price and example_price"
            ):
                fit(Regression(), regression_loader(80), [scaler], max_epochs=1, deterministic=True)
        numbers = BatchSizeScaler(policy=NoiseScalePolicy(step_price=1, example_price=0.1))
        fit(Regression(), regression_loader(80), [numbers], max_epochs=1, deterministic=True)
    finally:
        torch.use_deterministic_algorithms(False)
