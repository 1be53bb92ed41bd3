import math

import pytest

from lightning_bsscale.theory.rules import Capped, Linear, RatePath, Saturating, Surge, resolve_rule
from tests.helpers.simulated import noise_of


def test_a_path_is_the_product_of_its_growths_each_at_its_own_noise():
    path = RatePath().grown(Saturating(), 64, 128, noise_of(512.0)).grown(Saturating(), 128, 256, noise_of(64.0))
    # by hand: (1 + 8)/(1 + 4) * (1 + 0.5)/(1 + 0.25) = 1.8 * 1.2
    assert path.factor(Saturating()) == pytest.approx(2.16)


def test_a_later_estimate_does_not_rewrite_the_past():
    path = RatePath().grown(Saturating(), 64, 128, noise_of(512.0))
    before = path.factor(Saturating())
    for later in (None, noise_of(1.0), noise_of(1e9)):
        path.factor_at(Saturating(), 128, 256, later)
        assert path.grown(Saturating(), 128, 128, later).factor(Saturating()) == pytest.approx(before)
    # The twin: the closed form at the latest estimate is another number.
    assert Saturating().ratio(64, 128, noise_of(1.0)) != pytest.approx(before, rel=0.1)


@pytest.mark.parametrize("noise", [None, noise_of(512.0, resolved=False)])
def test_without_a_resolved_estimate_the_square_root_is_used(noise):
    path = RatePath().grown(Surge(), 4, 16, noise).grown(Surge(), 16, 32, noise_of(512.0))
    assert path.product == pytest.approx(2 * Surge().ratio(16, 32, noise_of(512.0)))


def test_a_window_of_another_size_leaves_no_trace():
    path = RatePath().grown(Linear(), 4, 8, None)
    assert path.factor_at(Linear(), 8, 4, None) == 1.0
    assert path.factor_at(Linear(), 8, 16, None) == 4.0
    assert path.factor(Linear()) == 2.0


def test_the_path_below_a_ceiling_is_remembered():
    rule = Capped(Linear(), 3)
    path = RatePath().grown(rule, 1, 8, None)
    assert path.factor(rule) == 3.0
    assert path.factor_at(rule, 8, 2, None) == 2.0
    assert path.grown(rule, 8, 2, None).factor(rule) == 2.0


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

    rule, path = resolve_rule(BrokenRatio()), RatePath()
    for ask in (path.grown, path.factor_at):
        with pytest.raises(ValueError, match="the ratio of the rule 'BrokenRatio' must be a finite number above 0"):
            ask(rule, 4, 8, None)
    rule = resolve_rule(BrokenCeiling())
    for ask in (path.grown(rule, 4, 8, None).factor, lambda rule: path.factor_at(rule, 8, 4, None)):
        with pytest.raises(ValueError, match="the factor that the rule 'BrokenCeiling' applies must be a finite"):
            ask(rule)
