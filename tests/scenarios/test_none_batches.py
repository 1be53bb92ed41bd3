"""A loader that gives None: Lightning skips it with one warning, counts its index, and calls no start hook."""

import random

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_bsscale import GradientNoiseScaleMonitor
from lightning_bsscale.callbacks.trainer.accumulation import Accumulation
from tests.helpers.expected_warnings import CANNOT_MEASURE, DROPPED, NONE_BATCH, WITHOUT_VALIDATION, hearing
from tests.helpers.training import KeepSteps, OneHot, Unsized, assert_measured_right, fit, run_of, scripted

pytestmark = [CANNOT_MEASURE, WITHOUT_VALIDATION, NONE_BATCH]


class ByIndex(OneHot):
    def training_step(self, batch, batch_idx):
        return self.weight[self.epoch * self.epoch_length + batch_idx]


def as_loader(length, none, sized):
    batches = [None if index in none else torch.tensor([[index]]) for index in range(length)]
    return DataLoader(batches if sized else Unsized(batches), batch_size=None)


def run(callback, length, none, sized, epochs=2, start=2):
    module, logger = ByIndex(epochs * length, length), KeepSteps()
    settings = dict(max_epochs=epochs, accumulate_grad_batches=start, logger=logger, log_every_n_steps=1)
    with hearing(DROPPED) as said:
        trainer = fit(module, as_loader(length, none, sized), [callback] if callback else [], **settings)
    return module.steps, trainer, logger, said


def check(length, none, sized, windows, epochs=2, start=2):
    """Each loader batch in one step with weight 1/K, but for an unfinished window before a None that ends the epoch."""
    scaler = scripted(*windows, measure_every=1, lr_rule="none")
    steps, trainer, logger, said = run(scaler, length, none, sized, epochs, start)
    came = [length * epoch + i for epoch in range(epochs) for i in range(length) if i not in none]
    entered = [i for step in steps for i in step]
    lost = sorted(set(came) - set(entered))
    assert entered == sorted(set(entered))
    for step in steps:
        assert list(step.values()) == pytest.approx([1 / len(step)] * len(step))
    for epoch in range(epochs):
        own = range(epoch * length, (epoch + 1) * length)
        indices, all_of_it = [i for i in lost if i in own], [i for i in came if i in own]
        assert not indices or (length - 1 in none and indices == all_of_it[-len(indices) :])
    assert (run_of(scaler).lost_loader_batches if scaler.state_dict() else 0) == len(lost)
    assert len(said) == (len(lost) > 0)
    assert all("None" in text for text in said)
    assert trainer.global_step == len(steps)
    assert scaler.examples_seen == len(entered)
    assert [step for step, _ in logger.logged] == [*range(len(steps))]
    assert_measured_right(scaler)
    # As the loggers count, but for None before the first loader batch of all, and for one that ends an epoch.
    counted = trainer.fit_loop.epoch_loop._batches_that_stepped
    leading = came[0] if came else epochs * length
    assert len(steps) <= counted <= len(steps) + leading + epochs * (length - 1 in none)
    return steps


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize(
    "none", [{0}, {1}, {3}, {2, 3}, {4}, {5}, {0, 1, 2}, {3, 7}, {11}, {10, 11}, set(range(1, 12))]
)
def test_a_window_is_moved_past_it(none, sized):
    """Windows of four of twelve: also where the None would have ended one, and Lightning made no step."""
    steps = check(12, none, sized, [4] * 9, start=4)
    whole = 12 - len(none)
    assert [len(step) for step in steps][: whole // 4] == [4] * (whole // 4)


@pytest.mark.parametrize("chunk", range(2))
def test_random_runs(chunk):
    rng = random.Random(100 + chunk)
    for _ in range(12):
        length = rng.randint(1, 25)
        none = set(rng.sample(range(length), rng.randint(0, length)))
        windows = [rng.randint(1, 6) for _ in range(60)]
        check(length, none, rng.random() < 0.5, windows, rng.randint(1, 3), rng.randint(1, 4))


def test_a_checkpoint_knows_where_the_moved_window_would_begin():
    scaler, places = scripted(4, 4, lr_rule="none"), []

    class Looks(pl.Callback):
        def on_train_batch_end(self, *args):
            places.append(run_of(scaler).window_at_restart())

    fit(ByIndex(12, 12), as_loader(12, {2}, True), [scaler, Looks()], max_epochs=1, accumulate_grad_batches=4)
    # Within the first window, from the second loader batch after the None on; then within the next one.
    assert places[3] == (1, 4)
    assert places[5] == (5, 4)


def test_the_probe_sees_a_window_that_is_not_moved(monkeypatch):
    """The twin: at a None in a window's last place Lightning makes no step, then clears the others' gradient."""
    monkeypatch.setattr(Accumulation, "skip", lambda *args, **options: None)
    with pytest.raises(AssertionError):
        check(12, {3}, True, [4] * 9, start=4)


@pytest.mark.parametrize(
    "make", [lambda: scripted(dry_run=True, measure_every=1), lambda: GradientNoiseScaleMonitor(measure_every=1)]
)
@pytest.mark.parametrize("none", [{0}, {3}, {4}, {3, 4}, {7, 11}, {0, 3, 4, 11}, {0, 1, 2, 3, 4}, {11}, set(range(12))])
def test_who_only_looks_changes_nothing_and_measures_no_window_that_lightning_broke(make, none):
    """A None loses gradients there, or an old one is stepped with again; no such window is a measurement."""
    bare, _, _, _ = run(None, 12, none, True, epochs=3, start=4)
    one = make()
    steps, _, _, said = run(one, 12, none, True, epochs=3, start=4)
    assert steps == bare
    assert not said
    assert_measured_right(one)
    if none not in ({0, 3, 4, 11}, {0, 1, 2, 3, 4}) and len(none) < 12:
        assert one.history
