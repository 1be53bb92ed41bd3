import copy
import math
import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_bsscale.theory.policies import Decision, Limits, NoiseScalePolicy, Reason, Situation
from lightning_bsscale.theory.tradeoff import step_progress
from tests.helpers.simulated import noise_of

LIMITS = Limits(granularity=8, min_batch_size=8, max_batch_size=256)
READY = Situation(
    batch_size=32,
    start_batch_size=8,
    examples_seen=5000,
    total_examples=10_000,
    warmup_examples=500,
    optimizer_steps=300,
    examples_at_last_change=2000,
    noise=noise_of(1000),
)


def decide(situation=READY, limits=LIMITS, **options):
    return NoiseScalePolicy(**{"target_ratio": 0.5, "confidence": 0.9, "hysteresis": 2.0, **options}).decide(
        situation, limits
    )


BLOCKS = [
    (Reason.IN_WARMUP, {"warmup_examples": 9950}),
    (Reason.NO_ESTIMATE, {"noise": None}),
    (Reason.UNRESOLVED, {"noise": noise_of(1000, resolved=False)}),
    (Reason.COOLING_DOWN, {"examples_at_last_change": 9899}),
    (Reason.AT_LIMIT, {"batch_size": 256}),
    (Reason.NEAR_END, {"examples_seen": 9901}),
]


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_the_first_reason_to_hold_wins(index):
    # This gate and all later ones are shut.
    changes = {}
    for _, change in reversed(BLOCKS[index:]):
        changes |= change
    decision, reason = decide(replace(READY, **changes)), BLOCKS[index][0]
    assert decision.code == reason.name.lower()
    assert decision.reason.startswith(reason.value)
    assert decision.batch_size == changes.get("batch_size", 32)


def test_open_gates_let_it_grow():
    assert decide() == Decision(
        batch_size=64,
        reason=Reason.GROW.value,
        code="grow",
        bound=pytest.approx(1000),
        confidence=0.9,
        target=pytest.approx(500),
        needed=64,
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"warmup_examples": 5000}, Reason.GROW),  # the warmup ends with its last example
        ({"warmup_examples": 5001}, Reason.IN_WARMUP),
        ({"examples_at_last_change": 4900}, Reason.GROW),  # one hundredth of the budget ago
        ({"examples_at_last_change": 4901}, Reason.COOLING_DOWN),
        ({"examples_at_last_change": None}, Reason.GROW),
        ({"batch_size": 248}, Reason.GROW),
        ({"examples_seen": 9900}, Reason.GROW),  # one hundredth of the budget before the end
        ({"examples_seen": 9901}, Reason.NEAR_END),
        ({"total_examples": None, "examples_at_last_change": 4999}, Reason.GROW),  # shares of nothing hold nothing
    ],
)
def test_the_edges_of_the_gates(change, reason):
    assert decide(replace(READY, noise=noise_of(1e6), **change)).code == reason.code


@pytest.mark.parametrize(
    ("batch", "scale", "options", "expected", "reason"),
    [
        (32, 1000, {}, 64, Reason.GROW),  # at most doubles
        (32, 128, {}, 64, Reason.GROW),  # the target 64 is exactly twice
        (32, 127, {}, 32, Reason.CLOSE_ENOUGH),
        (32, 127, {"hysteresis": 1.5}, 56, Reason.GROW),  # 63.5, rounded down to a multiple of 8
        (32, 1000, {"max_growth": 4}, 128, Reason.GROW),
        (32, 150, {"max_growth": 4}, 72, Reason.GROW),  # to the target 75, not beyond
        (200, 10**6, {}, 256, Reason.GROW),  # cut by the limit
        (32, 64, {"target_ratio": 1}, 64, Reason.GROW),
        (32, 10, {}, 32, Reason.CLOSE_ENOUGH),  # never shrinks by itself
        (8, 100, {"max_growth": 1.2}, 16, Reason.GROW),  # one loader batch more is always allowed
        (64, 16, {"allow_shrink": True}, 32, Reason.SHRINK),
        (64, 80, {"allow_shrink": True}, 64, Reason.CLOSE_ENOUGH),
        (256, 20, {"allow_shrink": True}, 128, Reason.SHRINK),  # also at the limit
        (256, 10**6, {"allow_shrink": True}, 256, Reason.AT_LIMIT),
        (8, 1, {"allow_shrink": True}, 8, Reason.CLOSE_ENOUGH),
        (64, 16, {"allow_shrink": True, "max_growth": 1.5}, 40, Reason.SHRINK),
    ],
)
def test_golden_decisions(batch, scale, options, expected, reason):
    found = decide(replace(READY, batch_size=batch, noise=noise_of(scale)), **options)
    assert (found.batch_size, found.code) == (expected, reason.code)


@pytest.mark.parametrize(
    ("changes", "options", "sentence"),
    [
        ({"warmup_examples": 5500}, {}, "hold: still in warmup, until 5,500"),
        ({}, {"not_before": 0.75}, "hold: growth begins later, by the policy's not_before, at 7,500"),
        ({"examples_at_last_change": 4950}, {}, "hold: cooling down after the last change, until 5,050"),
        ({"batch_size": 256}, {}, "hold: the batch is as large as the limits allow, 256"),
        (
            {"examples_seen": 9950},
            {},
            "hold: too near the end of the budget for a change to pay, at 10,000",
        ),
    ],
)
def test_a_hold_says_until_when_or_how_far(changes, options, sentence):
    assert decide(replace(READY, **changes), **options).reason == sentence


def test_growth_is_judged_by_the_lower_bound():
    uncertain = noise_of(140, spread=0.2)
    assert 0.5 * uncertain.lower_bound(0.5) >= 64 > 0.5 * uncertain.lower_bound(0.9)
    situation = replace(READY, noise=uncertain)
    assert decide(situation, confidence=0.5).code == Reason.GROW.code
    assert decide(situation, confidence=0.9).code == Reason.CLOSE_ENOUGH.code


def test_shrinking_is_judged_by_the_upper_bound():
    situation = replace(READY, noise=noise_of(28, spread=0.3))
    assert decide(situation, confidence=0.5, allow_shrink=True).code == Reason.SHRINK.code
    assert decide(situation, confidence=0.9, allow_shrink=True).code == Reason.CLOSE_ENOUGH.code


@pytest.mark.parametrize(("reason", "change"), BLOCKS, ids=lambda value: getattr(value, "name", ""))
def test_a_hold_shows_the_numbers_that_growth_is_judged_by(reason, change):
    situation = replace(READY, **{**change, "noise": change.get("noise", noise_of(1000, spread=0.1))})
    policy = NoiseScalePolicy(target_ratio=0.25, confidence=0.8, hysteresis=3)
    decision = policy.decide(situation, LIMITS)
    if situation.noise is None:
        assert (decision.bound, decision.confidence, decision.target, decision.needed) == (None,) * 4
    else:
        bound = situation.noise.lower_bound(0.8)
        assert (decision.bound, decision.confidence) == (bound, 0.8)
        assert (decision.target, decision.needed) == (0.25 * bound, 3 * situation.batch_size)


def test_shrinking_shows_the_upper_bound():
    situation = replace(READY, batch_size=64, noise=noise_of(16, spread=0.1))
    decision = decide(situation, allow_shrink=True, hysteresis=1.5)
    assert decision.code == "shrink"
    assert decision.bound == situation.noise.upper_bound(0.9)
    assert decision.target == 0.5 * decision.bound <= decision.needed == 64 / 1.5


situations = st.builds(
    Situation,
    batch_size=st.integers(1, 32).map(lambda n: 8 * n),
    start_batch_size=st.just(8),
    examples_seen=st.floats(0, 10_000),
    total_examples=st.none() | st.just(10_000.0),
    warmup_examples=st.just(500.0),
    examples_at_last_change=st.none() | st.floats(0, 10_000),
    noise=st.none() | st.builds(noise_of, st.floats(1, 1e4), spread=st.floats(0, 2), resolved=st.booleans()),
)
policies = st.builds(
    NoiseScalePolicy,
    target_ratio=st.floats(0.1, 4),
    confidence=st.floats(0.5, 0.99),
    max_growth=st.floats(1.01, 8),
    hysteresis=st.floats(1, 4),
    cooldown=st.floats(0, 0.5),
    allow_shrink=st.booleans(),
)


@given(situations, policies)
def test_every_decision_keeps_the_promises(situation, policy):
    decision = policy.decide(situation, LIMITS)
    batch, now = decision.batch_size, situation.batch_size
    assert batch % LIMITS.granularity == 0
    assert LIMITS.min_batch_size <= batch <= LIMITS.max_batch_size
    assert batch <= max(policy.max_growth * now, now + LIMITS.granularity)
    assert (batch > now) == (decision.reason == Reason.GROW)
    assert (batch < now) == (decision.reason == Reason.SHRINK)
    assert policy.allow_shrink or batch >= now
    if situation.noise is None or not situation.noise.resolved:
        assert batch == now
    assert decision == policy.decide(copy.deepcopy(situation), LIMITS)
    assert type(decision.reason) is str


@pytest.mark.parametrize("options", [{}, {"max_growth": 8}, {"allow_shrink": True}], ids=str)
def test_the_same_estimate_leads_to_rest(options):
    policy = NoiseScalePolicy(target_ratio=0.5, hysteresis=2, **options)
    for start in range(8, 257, 8):
        path = [start]
        for _ in range(8):
            situation = replace(READY, batch_size=path[-1], noise=noise_of(200))  # the target is 100
            path.append(policy.decide(situation, LIMITS).batch_size)
        assert path[-1] == path[-2] == path[-3]
        assert path[-1] > 50
        if 50 < start < 200:
            assert set(path) == {start}


def test_only_shares_need_a_budget():
    assert NoiseScalePolicy().needs_budget
    assert not NoiseScalePolicy(cooldown=0).needs_budget


def test_policies_are_frozen_and_copied_whole():
    policy = NoiseScalePolicy(target_ratio=0.7)
    assert pickle.loads(pickle.dumps(policy)) == copy.deepcopy(policy) == policy
    with pytest.raises(AttributeError):
        policy.target_ratio = 1


@pytest.mark.parametrize(
    ("changes", "looks"),
    [({"memory": 500.0}, 19), ({"memory": 20_000.0}, 1), ({}, 1), ({"memory": 500.0, "total_examples": None}, 1)],
    ids=["several", "a long memory", "no memory", "no budget"],
)
def test_the_confidence_of_a_whole_run_is_divided_among_its_looks(changes, looks):
    situation = replace(READY, noise=noise_of(1000, spread=0.1), **changes)
    decision = decide(situation, whole_run=True)
    assert decision.confidence == pytest.approx(1 - 0.1 / looks)
    assert decision.bound == situation.noise.lower_bound(1 - 0.1 / looks)
    assert (decision.bound < decide(situation).bound) is (looks > 1)


@pytest.mark.parametrize(
    ("not_before", "seen", "opens"), [(0.5, 4999, False), (0.5, 5000, True), (6000, 5999, False), (6000, 6000, True)]
)
def test_no_growth_before_a_share_or_a_number_of_examples(not_before, seen, opens):
    situation = replace(READY, examples_seen=seen, examples_at_last_change=None)
    decision = decide(situation, not_before=not_before)
    assert decision.code == (Reason.GROW if opens else Reason.NOT_BEFORE).code
    assert decide(replace(situation, noise=None), not_before=not_before).reason != Reason.GROW
    # The warmup comes first, the estimate later.
    assert decide(replace(situation, warmup_examples=9999), not_before=not_before).code == Reason.IN_WARMUP.code
    assert decide(replace(situation, total_examples=None), not_before=0.5).code == Reason.GROW.code
    assert NoiseScalePolicy(cooldown=0, not_before=not_before).needs_budget == isinstance(not_before, float)


@pytest.mark.parametrize("examples_left", [9000, 5000, 2500, 500])
@pytest.mark.parametrize("min_steps", [50, 200])
def test_the_largest_batch_leaves_enough_steps(examples_left, min_steps):
    most = 10_000**2 / (2 * min_steps * examples_left)
    situation = replace(READY, examples_seen=10_000 - examples_left, examples_at_last_change=None, batch_size=8)
    free = decide(situation, min_steps=0, max_growth=1e9)
    held = decide(situation, min_steps=min_steps, max_growth=1e9)
    assert free.batch_size == 256
    assert held.batch_size == (8 if most < 16 else min(256, most // 8 * 8))
    assert held.code == (Reason.FEW_STEPS if most < 16 else Reason.GROW).code
    assert (f"a batch of at most {math.floor(most)} now" in held.reason) is (most < 16)
    assert decide(replace(situation, total_examples=None), min_steps=min_steps, cooldown=0).code == Reason.GROW.code


def test_a_run_that_follows_the_limit_from_its_beginning_makes_min_steps():
    policy = NoiseScalePolicy(target_ratio=1e9, min_steps=100, max_growth=1e9, hysteresis=1, cooldown=0)
    total, seen, batch, steps, at_half = 1_000_000.0, 0.0, 1, 0, None
    while seen < total:
        situation = Situation(
            batch_size=batch, start_batch_size=1, examples_seen=seen, total_examples=total, noise=noise_of(1e6)
        )
        batch = policy.decide(situation, FINE).batch_size
        seen, steps = seen + batch, steps + 1
        if at_half is None and seen >= total * (1 - math.sqrt(0.5)):
            at_half = steps
    assert 95 <= steps <= 105
    assert at_half == pytest.approx(steps / 2, abs=2)


def test_few_steps_do_not_keep_a_batch_from_shrinking():
    situation = replace(READY, batch_size=64, noise=noise_of(16))
    assert decide(situation, min_steps=10_000, allow_shrink=True).code == Reason.SHRINK.code
    grows = replace(READY, noise=noise_of(1000))
    assert decide(grows, min_steps=10_000, allow_shrink=True).code == Reason.FEW_STEPS.code


@pytest.mark.min_steps
def test_by_default_a_short_run_does_not_grow():
    assert NoiseScalePolicy().decide(READY, LIMITS).code == Reason.FEW_STEPS.code
    assert NoiseScalePolicy.meta().decide(READY, LIMITS).code == Reason.GROW.code


FINE = Limits(granularity=1, min_batch_size=1, max_batch_size=10**7)


@pytest.mark.parametrize("scale", [100, 10_000])
@pytest.mark.parametrize("ratio", [0.5, 2])
@pytest.mark.parametrize("prices", [(3, 0.01), (0.5, 0.25)])
def test_the_target_is_the_batch_of_most_progress_per_price(scale, ratio, prices):
    policy = NoiseScalePolicy(target_ratio=ratio, step_price=prices[0], example_price=prices[1], max_growth=1e9)
    decision = policy.decide(replace(READY, batch_size=1, noise=noise_of(scale)), FINE)
    critical = ratio * scale

    def progress_per_price(batch):
        return step_progress(batch, critical) / (prices[0] + prices[1] * batch)

    best = max(range(1, 40_000), key=progress_per_price)
    assert decision.batch_size == pytest.approx(best, abs=1)
    assert decision.target == pytest.approx(math.sqrt(critical * prices[0] / prices[1]))


def test_without_prices_nothing_changes():
    assert NoiseScalePolicy().step_price is NoiseScalePolicy().example_price is None
    assert not NoiseScalePolicy(step_price=1, example_price=2).needs_clock
    decision = NoiseScalePolicy(target_ratio=1).decide(
        replace(READY, seconds_per_step=1.0, seconds_per_loader_batch=1.0), LIMITS
    )
    assert decision.target == decision.bound


@pytest.mark.parametrize(
    ("batch", "seconds", "expected", "reason"),
    [
        (32, (0.8, 0.1), 64, Reason.GROW),  # sqrt(1000 * 0.8 / (0.1 / 8)) = 253, at most doubled
        (32, (0.008, 0.1), 32, Reason.CLOSE_ENOUGH),  # 25
        (32, (None, 0.1), 32, Reason.NO_PRICES),
        (32, (0.1, None), 32, Reason.NO_PRICES),
        (32, (0.1, 0.0), 32, Reason.NO_PRICES),
        (8, (None, None), 16, Reason.GROW),  # one loader batch more, to tell the two apart
        (8, (0.001, 0.1), 8, Reason.CLOSE_ENOUGH),
    ],
)
def test_measured_prices(batch, seconds, expected, reason):
    policy = NoiseScalePolicy(target_ratio=1, step_price="measured", example_price="measured")
    assert policy.needs_clock
    situation = replace(READY, batch_size=batch, seconds_per_step=seconds[0], seconds_per_loader_batch=seconds[1])
    decision = policy.decide(situation, LIMITS)
    assert (decision.batch_size, decision.reason) == (expected, reason.value)
    if all(seconds):
        assert decision.target == pytest.approx(math.sqrt(1000 * seconds[0] / (seconds[1] / 8)))
    assert policy.decide(replace(situation, noise=noise_of(9)), LIMITS).batch_size == batch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_price": 1}, "step_price and example_price must both be given, or neither, got 1.0 and None"),
        (
            {"step_price": "clock", "example_price": 1},
            r"step_price \('measured', None, or a price\) must be a finite number",
        ),
        ({"step_price": 1, "example_price": 0}, "example_price .* must be a finite number above 0, got 0"),
        ({"not_before": 1.5}, "not_before .* at most 1, got 1.5"),
    ],
)
def test_wrong_prices_and_positions(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        NoiseScalePolicy(**options)
