"""What every rule promises, built in or wrapped; each family's own formula is in its own file."""

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
    FactorPath,
    Linear,
    Power,
    Saturating,
    Sqrt,
    Surge,
    resolve_rule,
    uses_fallback,
)
from tests.helpers.simulated import noise_of

NOISES = {
    "none": None,
    "unresolved": noise_of(512.0, resolved=False),
    "tiny": noise_of(1e-9),
    "512": noise_of(512.0),
    "huge": noise_of(1e15),
}
WITHOUT_NOISE = [Linear(), Sqrt(), Power(), Power(0.5), Power(exponent=1), Constant(), Capped(Linear(), 4)]
WITH_NOISE = [Saturating(), Surge(), Capped(Surge(), 1.5), Capped(Saturating(), 10)]
MEMBERS = [*WITHOUT_NOISE, *WITH_NOISE]
CASES = [(rule, "512") for rule in WITHOUT_NOISE] + [(rule, name) for rule in WITH_NOISE for name in NOISES]

batches = st.floats(1, 1e5)


def test_every_rule_of_the_table_is_tested_here():
    assert {rule.name for rule in MEMBERS} >= set(RULES)


@pytest.mark.parametrize(("rule", "noise"), [(rule, NOISES[name]) for rule, name in CASES], ids=str)
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


@pytest.mark.parametrize("noise", [None, NOISES["unresolved"]], ids=["none", "unresolved"])
@pytest.mark.parametrize("rule", [Saturating(), Surge(), Capped(Saturating(), 10)], ids=repr)
def test_without_a_resolved_estimate_it_is_the_square_root_and_says_so(rule, noise):
    assert rule.ratio(64, 256, noise) == 2.0
    assert uses_fallback(rule, noise)
    assert not uses_fallback(rule, noise_of(512.0))


@pytest.mark.parametrize("rule", WITHOUT_NOISE, ids=repr)
def test_rules_without_noise_never_fall_back(rule):
    assert not rule.needs_noise
    assert not any(uses_fallback(rule, noise) for noise in NOISES.values())


def test_only_a_rule_that_falls_declares_a_peak():
    assert [rule for rule in MEMBERS if rule.has_peak] == [Surge(), Capped(Surge(), 1.5)]


def test_a_path_is_the_product_of_its_growths_each_at_its_own_noise():
    path = FactorPath().extended(Saturating(), 64, 128, noise_of(512.0))
    # by hand: (1 + 8)/(1 + 4) * (1 + 0.5)/(1 + 0.25)
    assert path.extended(Saturating(), 128, 256, noise_of(64.0)).factor(Saturating()) == pytest.approx(1.8 * 1.2)
    for later in (None, noise_of(1.0), noise_of(1e9)):  # does not rewrite the past
        assert path.extended(Saturating(), 128, 128, later).factor(Saturating()) == pytest.approx(1.8)


def test_a_window_of_another_size_leaves_no_trace():
    path = FactorPath().extended(Linear(), 4, 8, None)
    assert path.factor_at(Linear(), 8, 4, None) == 1.0
    assert path.factor_at(Linear(), 8, 16, None) == 4.0
    assert path.factor(Linear()) == 2.0


def test_the_path_below_a_ceiling_is_remembered():
    rule = Capped(Linear(), 3)
    path = FactorPath().extended(rule, 1, 8, None)
    assert path.factor(rule) == 3.0
    assert path.factor_at(rule, 8, 2, None) == 2.0
    assert path.extended(rule, 8, 2, None).factor(rule) == 2.0


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_a_users_rule_cannot_put_nonsense_on_the_learning_rate(wrong):
    class BrokenRatio:
        def ratio(self, old_batch, new_batch, noise):
            return wrong

    class BrokenCeiling:
        def ratio(self, old_batch, new_batch, noise):
            return 2.0

        def applied(self, path_factor):
            return wrong

    rule, path = resolve_rule(BrokenRatio()), FactorPath()
    for ask in (path.extended, path.factor_at):
        with pytest.raises(ValueError, match="the ratio of the rule 'BrokenRatio' must be a finite number above 0"):
            ask(rule, 4, 8, None)
    rule = resolve_rule(BrokenCeiling())
    for ask in (path.extended(rule, 4, 8, None).factor, lambda rule: path.factor_at(rule, 8, 4, None)):
        with pytest.raises(ValueError, match="the factor that the rule 'BrokenCeiling' applies must be a finite"):
            ask(rule)
