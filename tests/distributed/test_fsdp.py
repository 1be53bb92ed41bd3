"""The monitor under FSDP1 and FSDP2: measured as in one process, and nothing is changed."""

import math

import pytest

from lightning_bsscale import GradientNoiseScaleMonitor
from lightning_bsscale.gradients import choose as watchers
from tests.helpers.ddp_runs import loader_of, moments_of, trainer_of
from tests.helpers.expected_warnings import NOT_MEASURED, hearing
from tests.helpers.processes import fit_on
from tests.helpers.sharded_models import hooked, local
from tests.helpers.sharded_runs import STRATEGIES, Trains, items
from tests.helpers.training import scripted

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("place")]


def fit(rank, strategy, callbacks, loader, **settings):
    """Trains on two ranks, or on one without a strategy; the model and its Trainer."""
    ranks, module = (2, Trains(lr=0.01)) if strategy else (1, Trains(lr=0.01))
    trainer = trainer_of(ranks, callbacks, STRATEGIES[strategy]() if strategy else None, **settings)
    trainer.fit(module, loader_of(loader, rank, ranks))
    return module, trainer


def monitored(rank, strategy, accumulate, sizes):
    """What was measured, whether the weights are those of a training without it, and the hooks that are left."""
    monitor = GradientNoiseScaleMonitor(measure_every=1, memory=1.0)
    settings = dict(max_epochs=1, accumulate_grad_batches=accumulate)
    module, _ = fit(rank, strategy, [monitor], items(24, sizes), **settings)
    bare, _ = fit(rank, strategy, [], items(24, sizes), **settings)
    weights, expected = ([local(p).tolist() for p in made.parameters()] for made in (module, bare))
    return moments_of(monitor), weights == expected, hooked(module)


class Counts(Trains):
    def training_step(self, batch, batch_idx):
        self.passes = [*getattr(self, "passes", []), len(batch[0])]
        return super().training_step(batch, batch_idx)


def grown(rank, strategy, sizes, largest):
    """The weights of a training whose batch grows to eight loader batches a rank, and its forward passes."""
    module = Counts(lr=0.01)
    scaler = scripted(16, 64, max_micro_batch_size=largest, measure_every=6, lr_rule="none")
    trainer = trainer_of(2, [scaler], STRATEGIES[strategy](), max_epochs=1)
    trainer.fit(module, loader_of(items(60, sizes), rank, 2))
    return [local(p).flatten().tolist() for p in module.parameters()], module.passes, trainer.global_step


def monitored_without_private_names(rank, accumulate):
    watchers.fsdp2_params = lambda model: None
    monitor = GradientNoiseScaleMonitor(measure_every=2 * accumulate)
    with hearing(NOT_MEASURED) as said:
        _, trainer = fit(rank, "fsdp2", [monitor], items(44), max_epochs=2, accumulate_grad_batches=accumulate)
    return [made.accumulate_grad_batches for made in monitor.history], trainer.global_step, said


@pytest.mark.parametrize("strategy", ["fsdp1", "fsdp2"])
@pytest.mark.parametrize("sizes", [(4,), (2, 6, 3, 5)])
def test_measured_as_in_one_process(strategy, sizes):
    (((*alone,), *_),) = fit_on(1, monitored, None, 4, sizes)
    assert len(alone) == 6
    for found, has_same_weights, left in fit_on(2, monitored, strategy, 2, sizes):
        assert found == [pytest.approx(window, rel=1e-5) for window in alone]
        assert has_same_weights
        assert left == 0
    for found, *_ in fit_on(2, monitored, strategy, 1, sizes):
        assert len(found) == 12  # two ranks are two micro-batches, without accumulation too


@pytest.mark.parametrize("strategy", ["fsdp1", "fsdp2"])
@pytest.mark.parametrize("sizes", [(4,), (*[4] * 31, 3, *[4] * 28)])  # rank 1 alone has a loader batch of three
def test_gathered_as_accumulated(strategy, sizes):
    for plain, gathered in zip(*(fit_on(2, grown, strategy, sizes, largest) for largest in (None, 16)), strict=True):
        for found, expected in zip(gathered[0], plain[0], strict=True):
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert gathered[2] == plain[2]
        assert sum(gathered[1]) == sum(plain[1])
        assert len(gathered[1]) < len(plain[1])


@pytest.mark.parametrize(("accumulate", "measured"), [(1, []), (3, [3] * 8), (4, [4, 4, 4, 2, 4, 4, 4, 2])])
def test_without_private_names_a_window_of_one_micro_batch_is_no_measurement(accumulate, measured):
    """Epochs of 22: the last window has one micro-batch, or two. Where no window has more, the first rank says so."""
    for rank, (found, steps, said) in enumerate(fit_on(2, monitored_without_private_names, accumulate)):
        assert found == measured
        assert steps == 2 * math.ceil(22 / accumulate)
        assert ["accumulate_grad_batches=2" in text for text in said] == [True] * (accumulate == 1 and rank == 0)
