import copy
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_bsscale.theory.rules import (
    RULES,
    Capped,
    Constant,
    LearningRateRule,
    Linear,
    Power,
    Saturating,
    Sqrt,
    Surge,
    resolve_rule,
    rule_for_optimizer,
    uses_fallback,
)
from tests.helpers.simulated import noise_of

NOISES = [None, noise_of(512.0, resolved=False), noise_of(1e-9), noise_of(512.0), noise_of(1e15)]
NOISE_IDS = ["none", "unresolved", "tiny", "512", "huge"]
MEMBERS = [
    Linear(),
    Sqrt(),
    Power(),
    Power(0.5),
    Power(exponent=1),
    Saturating(),
    Surge(),
    Constant(),
    Capped(Linear(), 4),
    Capped(Surge(), 1.5),
]
# What each rule becomes where both batches are far below the noise scale.
SMALL_BATCH_EXPONENT = {"linear": 1.0, "sqrt": 0.5, "power": 0.75, "saturating": 1.0, "surge": 0.5, "none": 0.0}

# By hand, at r = 1, 2, 4, 8 with B0 = 64 and B_noise = 512. Saturating: 9 / (1 + 8/r). Surge: sqrt(r) 576/(512 + 64 r).
GOLDEN = {
    "linear": (1, 2, 4, 8),
    "sqrt": (1, 1.414214, 2, 2.828427),
    "power": (1, 1.681793, 2.828427, 4.756828),
    "saturating": (1, 1.8, 3, 4.5),
    "surge": (1, 1.272792, 1.5, 1.590990),
    "none": (1, 1, 1, 1),
}

batches = st.floats(1, 1e5)


@pytest.mark.parametrize("name", RULES)
def test_golden_rows(name):
    found = [RULES[name]().ratio(64, 64 * r, noise_of(512.0)) for r in (1, 2, 4, 8)]
    assert found == pytest.approx(GOLDEN[name], rel=1e-6)


def test_every_rule_is_in_the_tables():
    assert set(GOLDEN) == set(SMALL_BATCH_EXPONENT) == set(RULES)
    assert {rule.name for rule in MEMBERS} >= set(RULES)
    assert all(RULES[name]().name == name for name in RULES)


# Promise x member


@pytest.mark.parametrize("noise", NOISES, ids=NOISE_IDS)
@pytest.mark.parametrize("rule", MEMBERS, ids=repr)
class TestPromises:
    @given(batch=batches)
    def test_one_where_the_batch_stays(self, rule, noise, batch):
        assert rule.ratio(batch, batch, noise) == pytest.approx(1, rel=1e-12)
        assert rule.applied(1.0) == 1.0

    @given(old=batches, new=batches)
    def test_finite_and_positive(self, rule, noise, old, new):
        ratio = rule.ratio(old, new, noise)
        assert type(ratio) is float
        assert 0 < ratio < math.inf
        assert 0 < rule.applied(ratio) <= ratio

    @given(old=batches, smaller=batches, larger=batches)
    def test_monotone_unless_it_declares_a_peak(self, rule, noise, old, smaller, larger):
        smaller, larger = sorted((smaller, larger))
        # A peaked rule is a plain square root as long as there is no estimate.
        if not rule.has_peak or (rule.needs_noise and uses_fallback(rule, noise)):
            assert rule.ratio(old, larger, noise) >= rule.ratio(old, smaller, noise) * (1 - 1e-12)

    @given(first=batches, second=batches, third=batches)
    def test_two_changes_are_one_at_the_same_noise(self, rule, noise, first, second, third):
        in_two = rule.ratio(first, second, noise) * rule.ratio(second, third, noise)
        assert in_two == pytest.approx(rule.ratio(first, third, noise), rel=1e-9)

    def test_frozen_hashable_and_copied_whole(self, rule, noise):
        assert pickle.loads(pickle.dumps(rule)) == copy.deepcopy(rule) == rule
        assert hash(rule) == hash(copy.deepcopy(rule))
        with pytest.raises((AttributeError, TypeError)):
            rule.anything = 1

    @pytest.mark.parametrize("wrong", [0, -8, math.nan, math.inf])
    def test_impossible_batches_are_refused(self, rule, noise, wrong):
        with pytest.raises(ValueError, match="new_batch must be a finite number above 0"):
            rule.ratio(8, wrong, noise)
        with pytest.raises(ValueError, match="old_batch must be a finite number above 0"):
            rule.ratio(wrong, 8, noise)


@pytest.mark.parametrize("name", RULES)
@given(old=st.floats(1, 1e3), growth=st.floats(0.1, 100))
def test_small_batch_limit(name, old, growth):
    ratio = RULES[name]().ratio(old, old * growth, noise_of(1e12))
    assert ratio == pytest.approx(growth ** SMALL_BATCH_EXPONENT[name], rel=1e-6)


def test_large_batch_limits():
    tiny = noise_of(1e-6)
    assert Saturating().ratio(64, 6400, tiny) == pytest.approx(1, rel=1e-6)  # flat
    assert Surge().ratio(64, 6400, tiny) == pytest.approx(0.1, rel=1e-6)  # falls as the square root


@given(st.floats(1, 1e4), st.floats(1, 1e4), batches)
def test_saturating_is_the_ratio_of_the_best_rates(old, new, scale):
    def best_rate(batch):
        return 1 / (1 + scale / batch)

    assert Saturating().ratio(old, new, noise_of(scale)) == pytest.approx(best_rate(new) / best_rate(old))


@given(st.floats(1, 1e4), st.floats(1, 1e4), batches)
def test_surge_is_the_ratio_of_its_bell(old, new, scale):
    def bell(batch):
        return 2 / (math.sqrt(scale / batch) + math.sqrt(batch / scale))

    assert Surge().ratio(old, new, noise_of(scale)) == pytest.approx(bell(new) / bell(old))


def test_the_declared_peak_is_at_the_noise_scale():
    rates = {batch: Surge().ratio(64, batch, noise_of(512.0)) for batch in (64, 256, 512, 1024, 4096)}
    assert max(rates, key=rates.get) == 512
    assert {type(rule).__name__ for rule in MEMBERS if rule.has_peak} == {"Surge", "Capped"}


# Without a resolved estimate


@pytest.mark.parametrize("noise", NOISES[:2], ids=NOISE_IDS[:2])
@pytest.mark.parametrize("rule", [Saturating(), Surge(), Capped(Saturating(), 10)], ids=repr)
def test_without_a_resolved_estimate_it_is_the_square_root_and_says_so(rule, noise):
    assert rule.ratio(64, 256, noise) == 2.0
    assert uses_fallback(rule, noise)
    assert not uses_fallback(rule, noise_of(512.0))


@pytest.mark.parametrize("rule", [Linear(), Sqrt(), Power(), Constant(), Capped(Linear(), 2)], ids=repr)
def test_rules_without_noise_never_fall_back(rule):
    assert not rule.needs_noise
    assert not any(uses_fallback(rule, noise) for noise in NOISES)


# Ceiling


def test_the_ceiling_is_on_the_whole_factor():
    capped = Capped(Linear(), 3)
    assert capped.ratio(1, 8, None) == 8
    assert [capped.applied(path) for path in (0.5, 2.0, 8.0)] == [0.5, 2.0, 3.0]
    assert Capped(Capped(Linear(), 5), 3).applied(8.0) == Capped(Capped(Linear(), 3), 5).applied(8.0) == 3.0
    assert capped.name == "linear, at most 3"


# Choice by optimizer


@pytest.mark.parametrize(
    ("optimizers", "expected"),
    [
        (["SGD", "ASGD"], "saturating"),
        (["Adam", "AdamW", "NAdam", "RAdam", "Adamax", "SparseAdam", "FusedAdam", "AdamW8bit"], "sqrt"),
        (["Lion", "Adafactor", "LAMB", "Lamb", "FusedLAMB", "Adagrad", "RMSprop", "Muon"], "sqrt"),
        (["LARS", "Lars"], "linear"),
    ],
)
def test_auto_by_class_name(optimizers, expected):
    for optimizer in optimizers:
        assert rule_for_optimizer([optimizer, "Optimizer", "object"]).name == expected


def test_auto_takes_the_first_known_name_along_the_mro():
    assert rule_for_optimizer(["Mine", "AdamW", "Adam", "Optimizer", "object"]).name == "sqrt"
    assert rule_for_optimizer(["MyLars", "LARS", "SGD", "Optimizer", "object"]).name == "linear"
    assert rule_for_optimizer(["LayerwiseSGD", "SGD", "LARS"]).name == "saturating"


@pytest.mark.parametrize("names", [["Sophia", "Optimizer", "object"], ["Optimizer", "object"], []])
def test_an_unknown_optimizer_must_be_given_its_rule(names):
    with pytest.raises(ValueError, match="does not know the optimizer") as error:
        rule_for_optimizer(names)
    for part in (*names[:1], "'linear'", "'sqrt'", "'saturating'", "'none'", "AdamW", "LARS"):
        assert part in str(error.value)


# By name or object


@pytest.mark.parametrize("name", RULES)
def test_names_make_rules(name):
    assert resolve_rule(name) == RULES[name]()
    assert resolve_rule(name, cap=8) == Capped(RULES[name](), 8)


def test_rules_pass_through():
    rule = Power(0.6)
    assert resolve_rule(rule) is rule


class Foreign:
    needs_noise = True

    def ratio(self, old_batch, new_batch, noise):
        return 3 if noise is None else noise.noise_scale


def test_any_object_with_a_ratio_is_a_rule():
    rule = resolve_rule(Foreign(), cap=2)
    assert isinstance(rule, LearningRateRule)
    assert rule.ratio(1, 2, None) == 3.0
    assert rule.applied(3.0) == 2.0
    assert rule.needs_noise
    assert not rule.has_peak
    assert resolve_rule(Foreign()).name == "Foreign"


def test_a_users_subclass_needs_a_ratio_only():
    class Cubic(LearningRateRule):
        name = "cubic"

        def ratio(self, old_batch: float, new_batch: float, noise: object) -> float:
            return (new_batch / old_batch) ** 3

    rule = resolve_rule(Cubic())
    assert (rule.name, rule.ratio(1, 2, None), rule.applied(8.0), rule.needs_noise) == ("cubic", 8.0, 8.0, False)


@pytest.mark.parametrize("wrong", ["auto", "lineer", ""])
def test_an_unknown_name_is_refused_with_the_choices(wrong):
    with pytest.raises(ValueError, match=r"lr_rule must be one of 'linear', 'sqrt', .*, got '"):
        resolve_rule(wrong)


@pytest.mark.parametrize("wrong", [None, 0.5, Linear, Foreign, object()])
def test_what_is_no_rule_is_refused(wrong):
    with pytest.raises(TypeError, match=r"lr_rule must be one of 'linear', .*an object with ratio\(.*got"):
        resolve_rule(wrong)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Power(1.5), ValueError, "exponent must be a finite number at least 0 and at most 1, got 1.5"),
        (lambda: Power(math.nan), ValueError, "exponent .* got nan"),
        (lambda: Power(True), TypeError, "exponent .* got True"),
        (lambda: Power("0.5"), TypeError, "exponent .* got '0.5'"),
        (lambda: Capped(Linear(), 0.5), ValueError, "cap must be a finite number at least 1, got 0.5"),
        (lambda: Capped(Linear(), math.inf), ValueError, "cap .* got inf"),
        (lambda: Capped("sqrt", 2), TypeError, r"rule must be a LearningRateRule such as Sqrt\(\), got 'sqrt'"),
        (lambda: resolve_rule("sqrt", cap=True), TypeError, "cap .* got True"),
    ],
)
def test_options_are_checked_when_made(call, error, message):
    with pytest.raises(error, match=message):
        call()
