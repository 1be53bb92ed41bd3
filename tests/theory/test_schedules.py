import copy
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_bsscale.theory.schedules import (
    SCHEDULES,
    Checked,
    Schedule,
    WarmupConstant,
    WarmupCosine,
    WarmupExponential,
    WarmupLinear,
    WarmupStableDecay,
    WarmupStep,
    resolve_schedule,
)

TOTAL = 1000.0
# Each schedule with its factor at the budget's end.
MEMBERS = [
    (WarmupCosine(), 0.0),
    (WarmupCosine(final=0.05), 0.05),
    (WarmupLinear(), 0.0),
    (WarmupLinear(final=0.2), 0.2),
    (WarmupStep(), 0.01),
    (WarmupStep(milestones=[0.3], gamma=0.5), 0.5),
    (WarmupStep(milestones=()), 1.0),
    (WarmupExponential(), 0.01),
    (WarmupExponential(final=1), 1.0),
    (WarmupStableDecay(), 0.0),
    (WarmupStableDecay(decay=1, final=0.1), 0.1),
    (WarmupConstant(), 1.0),
]

warmups = st.sampled_from([0, 50.0, 100])


@pytest.mark.parametrize(("schedule", "final"), MEMBERS, ids=repr)
class TestPromises:
    @given(seen=st.floats(0, 3000), warmup=warmups)
    def test_a_factor_from_zero_to_one(self, schedule, final, seen, warmup):
        assert 0 <= schedule.factor(seen, TOTAL, warmup) <= 1

    @given(share=st.floats(0, 1))
    def test_the_warmup_is_a_straight_line_from_zero(self, schedule, final, share):
        assert schedule.factor(100 * share, TOTAL, 100) == pytest.approx(share)

    def test_no_warmup_starts_at_one(self, schedule, final):
        assert schedule.factor(0, TOTAL, 0) == 1.0

    @given(a=st.floats(100, 2000), b=st.floats(100, 2000))
    def test_it_never_rises_after_the_warmup(self, schedule, final, a, b):
        early, late = sorted((a, b))
        assert schedule.factor(late, TOTAL, 100) <= schedule.factor(early, TOTAL, 100) + 1e-12

    @pytest.mark.parametrize("seen", [TOTAL, TOTAL + 1, 50 * TOTAL])
    @pytest.mark.parametrize("warmup", [0, 100, TOTAL])
    def test_it_stays_at_its_final_value_past_the_end(self, schedule, final, seen, warmup):
        assert schedule.factor(seen, TOTAL, warmup) == pytest.approx(final, abs=1e-12)

    def test_a_warmup_longer_than_the_budget_stays_below_one(self, schedule, final):
        assert 0 <= schedule.factor(999, TOTAL, 2000) < 0.5

    def test_frozen_and_copied_whole(self, schedule, final):
        assert pickle.loads(pickle.dumps(schedule)) == copy.deepcopy(schedule) == schedule
        assert hash(schedule) == hash(copy.deepcopy(schedule))

    @pytest.mark.parametrize(
        ("arguments", "name"),
        [
            ((-1, TOTAL, 0), "examples_seen"),
            ((0, 0, 0), "total_examples"),
            ((0, TOTAL, -1), "warmup_examples"),
            ((math.nan, TOTAL, 0), "examples_seen"),
            ((0, math.nan, 0), "total_examples"),
        ],
    )
    def test_impossible_positions_are_refused(self, schedule, final, arguments, name):
        with pytest.raises(ValueError, match=f"{name} must be"):
            schedule.factor(*arguments)


@pytest.mark.parametrize("progress", [0, 0.25, 0.5, 1])
def test_closed_forms(progress):
    seen = 200 + progress * 800

    def factor(schedule):
        return schedule.factor(seen, TOTAL, 200)

    assert factor(WarmupCosine()) == pytest.approx(math.cos(math.pi * progress / 2) ** 2, abs=1e-12)
    assert factor(WarmupCosine(0.1)) == pytest.approx(0.1 + 0.9 * math.cos(math.pi * progress / 2) ** 2)
    assert factor(WarmupLinear(0.1)) == pytest.approx(1 - 0.9 * progress)
    assert factor(WarmupExponential(0.01)) == pytest.approx(10 ** (-2 * progress))
    assert factor(WarmupConstant()) == 1


@pytest.mark.parametrize(("decay", "begins"), [(0.4, 600), (0.95, 200), (1, 200)])
def test_a_stable_learning_rate_falls_over_the_last_part(decay, begins):
    """A straight line from the start of the decay, or from the end of the warmup of 200, to the end."""
    schedule = WarmupStableDecay(decay, final=0.2)
    found = [schedule.factor(seen, TOTAL, 200) for seen in (100, 200, begins, (begins + 1000) / 2, 1000)]
    assert found == pytest.approx([0.5, 1, 1, 0.6, 0.2])


def test_steps_fall_at_shares_of_the_whole_budget():
    schedule = WarmupStep(milestones=(0.3, 0.6, 0.9), gamma=0.5)
    assert [schedule.factor(seen, TOTAL, 100) for seen in (299, 300, 599, 600, 900)] == [1, 0.5, 0.5, 0.25, 0.125]


@pytest.mark.parametrize(
    "schedule", [WarmupCosine(), WarmupLinear(), WarmupExponential(), WarmupStableDecay()], ids=repr
)
def test_asked_at_the_middle_the_sum_of_rates_hardly_depends_on_the_windows(schedule):
    def mean_rate(window):
        return sum(schedule.factor(seen + window / 2, TOTAL, 100) * window for seen in range(0, 1000, window)) / TOTAL

    assert mean_rate(50) == pytest.approx(mean_rate(1), rel=1e-2)
    assert schedule.factor(25, TOTAL, 100) > 0  # the first step of windows of 50
    assert schedule.factor(975, TOTAL, 100) > schedule.factor(1000, TOTAL, 100)  # and the last


def test_a_run_without_an_end_does_not_decay():
    assert WarmupCosine().factor(10**9, math.inf, 100) == 1
    assert WarmupStableDecay().factor(10**9, math.inf, 100) == 1
    assert WarmupConstant().factor(50, math.inf, 100) == 0.5


@pytest.mark.parametrize("name", SCHEDULES)
def test_names_make_schedules(name):
    assert resolve_schedule(name) == SCHEDULES[name]()
    assert any(isinstance(schedule, SCHEDULES[name]) for schedule, _ in MEMBERS)


def test_schedules_pass_through_also_a_users_own():
    class Half(Schedule):
        def factor(self, examples_seen: float, total_examples: float, warmup_examples: float) -> float:
            return 0.5

    own = Half()
    assert resolve_schedule(own) is own


def test_a_checked_schedule_is_the_one_inside():
    checked = Checked(WarmupCosine(final=0.1))
    assert (checked.name, repr(checked)) == ("WarmupCosine", "WarmupCosine(final=0.1)")
    assert checked.factor(500, 1000, 0) == WarmupCosine(final=0.1).factor(500, 1000, 0)
