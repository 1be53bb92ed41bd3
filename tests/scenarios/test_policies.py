"""Each policy through the real Trainer: the batches and learning rates that are trained with, and the journal."""

import math
from dataclasses import replace

import pytest
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsscale import (
    BatchSizeScaler,
    Largest,
    Linear,
    Milestones,
    NoiseScalePolicy,
    NormTest,
    Seesaw,
    Sequence,
    Smith,
    Sqrt,
)
from lightning_bsscale.replay import replay
from lightning_bsscale.theory.schedules import WarmupCosine
from tests.helpers.expected_warnings import CANNOT_MEASURE
from tests.helpers.known_noise import NOISE_SCALE, KnownNoise, gradients
from tests.helpers.training import CountsWindows, KeepsRates, fit, regression_loader

pytestmark = CANNOT_MEASURE

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
        assert_replayed(path)
    return list(zip(module.windows, module.own, used, strict=True)), scaler


def assert_replayed(path):
    replayed = list(replay(path))
    assert {one.kind for one in replayed} >= {"window", "factor", "decision", "end"}
    assert not [one for one in replayed if not one.agrees]


USERS = {
    "quarters": lambda o: lr_scheduler.StepLR(o, PLAN // 3, 0.25),
    "cosine": lambda o: lr_scheduler.LambdaLR(o, lambda n: 0.05 + 0.95 * (1 + math.cos(math.pi * n / PLAN)) / 2),
    "linear": lambda o: lr_scheduler.LinearLR(o, 1.0, 0.05, PLAN),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.97),
    "wsd": lambda o: lr_scheduler.LambdaLR(
        o, lambda n: min(1.0, (n + 1) / 20, 1 - 0.9 * max(0.0, n / PLAN - 0.6) / 0.4)
    ),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=PLAN + 1, final_div_factor=2),
}
FORMS = [
    (Seesaw(gate=None), "sqrt", 1.0),
    (Seesaw(gate=None, form="sgd"), "linear", 0.5),
    (Smith(), "linear", 1.0),
]


@pytest.mark.parametrize(
    ("form", "name"), [*((0, name) for name in USERS), *((form, name) for form in (1, 2) for name in ("cosine", "wsd"))]
)
def test_growth_replaces_the_decay_of_the_users_scheduler(tmp_path, form, name):
    """B = B0 / f^growth; the rate in the update is √f (Seesaw) or the peak's (Smith), within one cut and rounding."""
    policy, rule, growth = FORMS[form]
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


def test_seesaw_with_the_callbacks_own_schedule(tmp_path):
    steps, _ = train(Seesaw(gate=None), tmp_path / "j", schedule=WarmupCosine(final=0.05), lr_rule="sqrt", warmup=0.1)
    seen, saved = 0, 1 - len(steps) / PLAN
    for examples, _, used in steps[:-1]:
        # The schedule's factor is that of the window's middle.
        share = WarmupCosine(final=0.05).factor(seen + examples / 2, START * PLAN, 0.1 * START * PLAN)
        if seen < 0.1 * START * PLAN:
            assert (examples, used) == (START, pytest.approx(0.1 * share))
        else:
            assert math.sqrt(share) / 1.25 <= used / 0.1 <= math.sqrt(share) * 1.001
        seen += examples
    assert saved > 0.3


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
}


@pytest.mark.parametrize("name", MEASURE)
def test_where_measuring_policies_come_to_rest(tmp_path, name):
    policy, expected = MEASURE[name]
    options = dict(schedule="cosine", lr_rule="sqrt") if name == "seesaw" else {}
    scaler = BatchSizeScaler(
        policy=policy, measure_every=1, memory=1.0, max_batch_size=1024, record=tmp_path / "j", warmup=0.02, **options
    )
    fit(KnownNoise(), DataLoader(TensorDataset(gradients(24_000)), batch_size=16), [scaler], max_epochs=1)
    assert scaler.batch_size == pytest.approx(expected, rel=0.25, abs=16)
    assert_replayed(tmp_path / "j")


def test_measured_prices_are_the_callbacks_seconds(tmp_path):
    """Which differ from run to run; each decision follows from those that it was given, and the journal has them."""
    policy = NoiseScalePolicy(step_price="measured", example_price="measured", hysteresis=1.0)
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
