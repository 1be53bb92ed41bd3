"""When growth waits for a metric: trends, spreads, and values that say nothing."""

import math

import pytest

from lightning_bsscale.theory.policies import Decision, HoldIfWorse, Limits, MetricValue, Policy, Situation

LIMITS = Limits(granularity=8, min_batch_size=8, max_batch_size=256)
GROWTH = 1000.0  # examples at the last change


class To(Policy):
    def __init__(self, size):
        self.size = size

    def decide(self, situation, limits):
        return Decision(batch_size=self.size, reason="mine", code="mine", target=float(self.size))


def values(**by_examples):
    return tuple(
        MetricValue(name="val_loss", examples_seen=float(at[1:]), value=value) for at, value in by_examples.items()
    )


def power_law(at):
    return 3 - 0.2 * math.log(at)


BEFORE = {f"e{at}": power_law(at) for at in (125, 250, 500, 1000)}
RECOVERED = {f"e{at}": (1.2 if at < 850 else 1.0) * power_law(at) for at in range(300, 1001, 100)}
ROUGH = {"e125": 2.1, "e250": 1.8, "e500": 1.9, "e1000": 1.6}


def decide(metrics, size=64, changed_at=GROWTH, **options):
    now = Situation(
        batch_size=32, start_batch_size=8, examples_seen=3000, examples_at_last_change=changed_at, metrics=metrics
    )
    return HoldIfWorse(To(size), **options).decide(now, LIMITS)


@pytest.mark.parametrize(
    ("metrics", "code"),
    [
        (BEFORE | {"e2000": power_law(2000)}, "mine"),
        (BEFORE | {"e2000": power_law(2000) * 1.009}, "mine"),
        (BEFORE | {"e2000": power_law(2000) * 1.011}, "behind_trend"),  # a little better than before, yet behind
        (BEFORE | {"e2000": 0.1}, "mine"),
        (RECOVERED | {"e2000": power_law(2000)}, "mine"),  # the recovery is no trend
        (BEFORE | {"e2000": 5.0, "e2500": power_law(2500)}, "mine"),  # it has returned
        (BEFORE | {"e2000": power_law(2000), "e2500": 5.0}, "behind_trend"),
        (ROUGH | {"e2000": 1.72}, "mine"),  # within the spread around the line
        (ROUGH | {"e2000": 2.1}, "behind_trend"),
        ({"e500": 2.0, "e1000": 1.5} | {"e2000": 1.51}, "mine"),  # level, with fewer than three
        ({"e500": 2.0, "e1000": 1.5} | {"e2000": 1.52}, "behind_trend"),
        ({"e2000": 9.0}, "mine"),  # nothing to compare with
        (BEFORE, "awaits_metric"),
        ({}, "awaits_metric"),
        (BEFORE | {"e2000": math.nan}, "behind_trend"),
        (BEFORE | {"e2000": math.inf}, "behind_trend"),
        ({"e500": math.nan, "e1000": 1.5} | {"e2000": 1.5}, "mine"),
    ],
)
def test_growth_waits_for_the_trend(metrics, code):
    decision = decide(values(**metrics))
    assert decision.code == code
    assert decision.batch_size == (64 if code == "mine" else 32)
    assert decision.target == 64
    if code == "behind_trend" and all(map(math.isfinite, metrics.values())):
        assert "behind its trend of 1." in decision.reason
        assert decision.reason.endswith(" before the change of the batch at 1,000")


def test_larger_may_be_better():
    assert decide(values(e500=0.5, e1000=0.6, e2000=0.5), mode="max").code == "behind_trend"
    assert decide(values(e500=0.5, e1000=0.6, e2000=0.7), mode="max").code == "mine"


def test_tolerance_and_monitor():
    metrics = values(**BEFORE, e2000=power_law(2000) * 1.05)
    assert decide(metrics, tolerance=0.06).code == "mine"
    assert decide(metrics, tolerance=0.04).code == "behind_trend"
    assert decide(metrics, monitor="other").code == "awaits_metric"


@pytest.mark.parametrize(("size", "changed_at"), [(32, GROWTH), (16, GROWTH), (64, None)])
def test_only_a_growth_after_a_change_is_held(size, changed_at):
    assert decide((), size, changed_at).batch_size == size


def test_what_it_needs_is_what_its_policy_needs():
    class Needs(To):
        needs_budget = needs_clock = True
        monitors = ("other", "val_loss")
        lr_rules = ("sqrt",)
        state = 3

        def state_dict(self):
            return self.state

        def load_state_dict(self, state):
            self.state = state

    inner = Needs(64)
    policy, plain = HoldIfWorse(inner), HoldIfWorse(To(8))
    assert (policy.needs_budget, policy.needs_clock, policy.lr_rules) == (True, True, ("sqrt",))
    assert policy.monitors == ("val_loss", "other")
    assert (plain.needs_budget, plain.needs_clock, plain.lr_rules, plain.state_dict()) == (False, False, None, None)
    policy.load_state_dict([5])
    assert policy.state_dict() == [5] == [inner.state]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HoldIfWorse(To), r"policy must be a policy such as NoiseScalePolicy\(\), got the class To"),
        (lambda: HoldIfWorse("noise_scale"), "policy must be a policy such as"),
        (lambda: HoldIfWorse(To(8), monitor=""), "monitor must be the name of a logged metric, got ''"),
        (lambda: HoldIfWorse(To(8), mode="less"), "mode must be one of 'min', 'max', got 'less'"),
        (lambda: HoldIfWorse(To(8), tolerance=-1), "tolerance must be a finite number at least 0, got -1"),
    ],
)
def test_wrong_options(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
