"""What other options would have done: what was, where nothing changes; what a training does, where it can be known."""

import math
from dataclasses import dataclass

import pytest

from lightning_bsscale import (
    BatchSizeScaler,
    GradientNoiseScaleMonitor,
    HoldIfWorse,
    Milestones,
    NoiseScalePolicy,
    Seesaw,
)
from lightning_bsscale.replay import replay
from lightning_bsscale.theory.policies import Decision
from lightning_bsscale.theory.rules import Capped, Linear, Sqrt
from lightning_bsscale.theory.schedules import Checked, Schedule
from lightning_bsscale.what_if import Change, what_if
from tests.helpers.expected_warnings import CANNOT_MEASURE
from tests.helpers.training import Regression, fit, regression_loader
from tests.helpers.written_runs import SIZE, write_run


@dataclass(frozen=True)
class Jumps:
    to: int

    def decide(self, situation, limits):
        return Decision(batch_size=self.to, reason="mine")


class Falling(Schedule):
    def factor(self, examples_seen, total_examples, warmup_examples):
        return 1 - examples_seen / total_examples / 2


def assert_same(found):
    assert found.as_it_was == found.what_if


@pytest.mark.parametrize("measure_every", [1, 3, 8])
@pytest.mark.parametrize("loader_batches", [400, 1601])
def test_with_the_same_options_it_is_the_same(tmp_path, measure_every, loader_batches):
    found = what_if(write_run(tmp_path / "j", loader_batches, measure_every=measure_every))
    assert_same(found)
    assert found.as_it_was.num_changes > 1
    assert found.examples == loader_batches * SIZE
    assert_same(what_if(tmp_path / "j", policy="noise_scale", lr_rule="sqrt", memory=1000 / found.examples))


def test_it_needs_no_policy_of_ones_own_but_for_what_it_asks(tmp_path):
    path = write_run(tmp_path / "j", policy=Jumps(64), schedule=Checked(Falling()))
    with pytest.raises(ValueError, match="pass the policy"):
        what_if(path, schedule=Falling())
    with pytest.raises(ValueError, match="pass the schedule"):
        what_if(path, policy=Jumps(64))
    assert_same(what_if(path, policy=Jumps(64), schedule=Falling()))
    other = what_if(path, policy=Jumps(24), schedule=Falling())
    assert (other.as_it_was.end.batch_size, other.what_if.end.batch_size) == (64, 24)


def test_each_option_does_what_it_does_in_a_training(tmp_path):
    """Here the noise scale is constant: a run with the option comes near what is said of it by a run without."""
    path = write_run(tmp_path / "j", 1600)
    as_it_was = what_if(path).as_it_was
    half = NoiseScalePolicy(target_ratio=0.5)
    found = what_if(path, policy=half)
    trained = what_if(write_run(tmp_path / "half", 1600, policy=half)).as_it_was
    assert found.as_it_was == as_it_was
    assert found.what_if.optimizer_steps == pytest.approx(trained.optimizer_steps, rel=0.1)
    assert found.what_if.optimizer_steps > 1.5 * as_it_was.optimizer_steps
    limited = what_if(path, max_batch_size=16).what_if
    assert max(change.batch_size for change in limited.changes) == 16
    late = what_if(path, warmup=0.5).what_if
    assert late.changes[0].examples_seen >= 0.5 * 1600 * SIZE > as_it_was.changes[0].examples_seen
    assert what_if(path, warmup=2000).what_if.changes[0].examples_seen == pytest.approx(2000, abs=2 * SIZE)
    short, long = what_if(path, memory=0.01).what_if, what_if(path, memory=0.9).what_if
    assert short.changes != long.changes
    linear, capped = what_if(path, lr_rule="linear").what_if, what_if(path, lr_cap=1.5).what_if
    assert [one.batch_size for one in linear.changes] == [one.batch_size for one in as_it_was.changes]
    assert linear.end.lr_scale == linear.end.batch_size / linear.start.batch_size
    assert as_it_was.end.lr_scale == pytest.approx(math.sqrt(linear.end.lr_scale))
    assert as_it_was.end.lr_scale > capped.end.lr_scale == 1.5


def test_a_ceiling_replaces_the_one_before(tmp_path):
    path = write_run(tmp_path / "j", rule=Capped(Sqrt(), 1.2))
    assert what_if(path).as_it_was.end.lr_scale == 1.2
    assert what_if(path, lr_cap=1.6).what_if.end.lr_scale == 1.6
    assert what_if(path, lr_rule=Linear(), lr_cap=2).what_if.end.lr_scale == 2


def test_the_batch_at_a_place(tmp_path):
    course = what_if(write_run(tmp_path / "j", policy=Jumps(64)), policy=Jumps(64)).as_it_was
    (change,) = course.changes
    assert course.start == Change(examples_seen=0.0, batch_size=8, lr_scale=1.0)
    assert [course.batch_at(at) for at in (0, change.examples_seen - 1, change.examples_seen, 1e9)] == [8, 8, 64, 64]


def test_a_metric_that_the_journal_lacks_is_named(tmp_path):
    path = write_run(tmp_path / "j")
    assert what_if(path).missing_metrics == ()
    assert what_if(path, policy=HoldIfWorse(Seesaw(), "val/loss")).missing_metrics == ("val/loss",)


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ({"max_batch_size": 7}, "max_batch_size must be at least the first batch of 8, got 7"),
        ({"max_batch_size": 64.0}, "max_batch_size must be an integer"),
        ({"memory": 5}, "memory .* at most 1, got 5"),
        ({"warmup": 1.5}, "warmup .* below 1, got 1.5"),
        ({"lr_cap": 0.5}, "lr_cap must be a finite number at least 1"),
        ({"lr_rule": "cubic"}, "lr_rule must be one of"),
        ({"policy": "grow"}, "policy must be one of"),
        ({"schedule": "up"}, "schedule must be one of"),
    ],
)
def test_wrong_options_are_refused(tmp_path, option, match):
    with pytest.raises((TypeError, ValueError), match=match):
        what_if(write_run(tmp_path / "j", 40), **option)


# ---------------------------------------------------------------- trainings

STEPS = {0.2: 2, 0.4: 3, 0.7: 6}
GROWS = Milestones(STEPS)
TRAININGS = {
    "ragged epochs": dict(rows=62, settings=dict(max_epochs=3)),
    "accumulated": dict(rows=62, settings=dict(max_epochs=3, accumulate_grad_batches=2)),
    "max_steps": dict(rows=50, settings=dict(max_steps=40)),
}


def trained(path, callback, rows, settings):
    fit(Regression(), regression_loader(rows), [callback], **settings)
    assert callback.journal_path == path
    return path


def scaler_of(path, policy, **options):
    return BatchSizeScaler(policy=policy, record=path, max_batch_size=32, warmup=0.05, lr_rule="sqrt", **options)


@CANNOT_MEASURE
@pytest.mark.filterwarnings("ignore:.*noise scale.*")
@pytest.mark.parametrize("name", TRAININGS)
def test_a_plan_that_needs_no_measurement_is_what_a_training_with_it_does(tmp_path, name):
    """From the journal of a scaler, of a dry run and of a monitor: the same changes, and the same number of steps."""
    truth_path = tmp_path / "truth.jsonl"
    truth = what_if(trained(truth_path, scaler_of(truth_path, GROWS), **TRAININGS[name])).as_it_was
    assert truth.num_changes == len(STEPS)
    assert_same(what_if(truth_path))
    others = {
        "grown otherwise": lambda path: scaler_of(path, Milestones({0.5: 4})),
        "never grown": lambda path: scaler_of(path, Milestones({1.0: 2})),
        "dry": lambda path: scaler_of(path, "noise_scale", dry_run=True),
        "monitor": lambda path: GradientNoiseScaleMonitor(record=path),
    }
    for kind, make in others.items():
        path = tmp_path / f"{kind}.jsonl"
        trained(path, make(path), **TRAININGS[name])
        found = what_if(path, policy=GROWS, lr_rule="sqrt", max_batch_size=32)
        assert found.what_if == truth, kind
        assert found.acted == (kind in {"grown otherwise", "never grown"})
        if not found.acted:
            assert found.as_it_was.num_changes == 0
            assert found.as_it_was.end.batch_size == truth.start.batch_size


@CANNOT_MEASURE
@pytest.mark.filterwarnings("ignore:.*noise scale.*", "ignore:.*ckpt_path", "ignore:You're resuming")
def test_a_resumed_training_is_the_same_where_nothing_is_changed(tmp_path):
    path, grows = tmp_path / "run.jsonl", Milestones({30: 2, 100: 3, 150: 6})
    trainer = fit(Regression(), regression_loader(62), [scaler_of(path, grows)], max_epochs=2)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    second = scaler_of(path, grows)
    fit(Regression(), regression_loader(62), [second], ckpt_path=tmp_path / "c.ckpt", max_epochs=4)
    assert second.journal_path == path
    assert all(one.agrees for one in replay(path))
    found = what_if(path)
    assert_same(found)
    assert [one.batch_size for one in found.as_it_was.changes] == [8, 12, 24]
    assert found.examples == 4 * 62
    other = what_if(path, policy=Milestones({50: 4})).what_if
    assert [one.batch_size for one in other.changes] == [16]
    assert other.optimizer_steps < found.as_it_was.optimizer_steps
