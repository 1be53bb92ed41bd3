"""LearningRateFinder and BatchSizeFinder, as callbacks and by Tuner: their training leaves no trace in ours."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner import Tuner

from lightning_bsscale import GradientNoiseScaleMonitor
from tests.helpers.expected_warnings import CANNOT_MEASURE
from tests.helpers.training import QUIET, Regression, assert_nothing_left, regression_loader, scripted

pytestmark = CANNOT_MEASURE


class Tunable(Regression):
    """What the finders change: `lr` and `batch_size`. Keeps the size of every loader batch."""

    def __init__(self, lr=0.05, batch_size=4):
        super().__init__(
            lambda p: torch.optim.SGD(p, lr=self.lr, momentum=0.9),
            lambda o, t: {"scheduler": torch.optim.lr_scheduler.ConstantLR(o, 1.0), "interval": "step"},
        )
        self.lr, self.batch_size, self.sizes = lr, batch_size, []

    def train_dataloader(self):
        return regression_loader(160, self.batch_size)

    def training_step(self, batch, batch_idx):
        self.sizes.append(len(batch[0]))
        return super().training_step(batch, batch_idx)


def scaler(**options):
    return scripted(16, 16, 32, measure_every=1, **options)


def monitor():
    return GradientNoiseScaleMonitor(measure_every=1)


def train(module, watch, trainer=None):
    """Two epochs, two loader batches a step; what was measured, and the weights."""
    trainer = trainer or make_trainer(watch)
    before = trainer.callbacks
    trainer.fit(module)
    assert trainer.callbacks == before
    assert_nothing_left(trainer, module, 2)
    return watch.history, module.net.weight.detach()


def make_trainer(*callbacks, **settings):
    settings = QUIET | dict(max_epochs=2, accumulate_grad_batches=2) | settings
    return pl.Trainer(**settings, callbacks=list(callbacks))


def assert_same(ours, theirs):
    assert ours[0] == theirs[0]
    assert len(ours[0]) > 5
    assert torch.equal(ours[1], theirs[1])


class OwnHook(LearningRateFinder):
    """Has its own hook before training, which is allowed."""

    def on_fit_start(self, trainer, pl_module):
        return super().on_fit_start(trainer, pl_module)


@pytest.mark.parametrize("make", [scaler, monitor])
@pytest.mark.parametrize(("cls", "order"), [(LearningRateFinder, 1), (OwnHook, -1)])
def test_the_rate_that_was_found_is_the_users(make, cls, order, tmp_path):
    finder, watch, module = cls(1e-4, 1e-2, num_training_steps=20), make(), Tunable()
    tuned = train(module, watch, make_trainer(*[finder, watch][::order], default_root_dir=tmp_path))
    assert module.lr == finder.optimal_lr.suggestion() != 0.05
    assert [made.lr / made.lr_scale for made in watch.history] == pytest.approx([module.lr] * len(watch.history))
    assert len(module.sizes) == 40 + 80
    # A run that begins with that rate: the same gradients in the same windows, so none of the finder's came in.
    assert_same(tuned, train(Tunable(lr=module.lr), make()))


@pytest.mark.parametrize(
    ("make", "order", "mode"), [(scaler, 1, "power"), (scaler, -1, "binsearch"), (monitor, 1, "power")]
)
def test_the_size_that_was_found_is_the_one_that_is_measured(make, order, mode, tmp_path):
    finder = BatchSizeFinder(mode, steps_per_trial=2, init_val=2, max_trials=3, margin=0.0)
    watch, module = make(), Tunable()
    tuned = train(module, watch, make_trainer(*[finder, watch][::order], default_root_dir=tmp_path))
    assert module.batch_size == finder.optimal_batch_size == 8
    assert {made.window_examples % 8 for made in watch.history} == {0}
    assert watch.history[0].window_examples == 16
    assert watch.history[-1].examples_seen == 320
    assert_same(tuned, train(Tunable(batch_size=8), make()))


@pytest.mark.parametrize("make", [scaler, monitor])
def test_after_the_tuner_training_is_as_if_it_had_never_been(make, tmp_path):
    watch, module = make(), Tunable()
    trainer = make_trainer(watch, default_root_dir=tmp_path)
    tuner = Tuner(trainer)
    size = tuner.scale_batch_size(module, steps_per_trial=2, init_val=2, max_trials=3)
    found = tuner.lr_find(module, min_lr=1e-4, max_lr=1e-2, num_training=20)
    assert size == 8
    assert watch.history == []
    assert watch.state_dict() == {}
    assert_nothing_left(trainer, module, 2)
    tuned = train(module, watch, trainer)
    assert module.lr == found.suggestion()
    assert_same(tuned, train(Tunable(lr=module.lr, batch_size=8), make()))


class RateInEachEpoch(LearningRateFinder):
    """The example of Lightning's own documentation: a finder that searches at milestones."""

    def on_fit_start(self, *args):
        pass

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            self.lr_find(trainer, pl_module)


class SizeInEachEpoch(BatchSizeFinder):
    def on_train_epoch_end(self, trainer, pl_module):
        self.scale_batch_size(trainer, pl_module)


@pytest.mark.parametrize(
    ("cls", "why"), [(RateInEachEpoch, "epoch_start.*factor"), (SizeInEachEpoch, "epoch_end.*loader batch")]
)
def test_a_finder_in_mid_training_is_refused(cls, why):
    module = Tunable()
    trainer = make_trainer(scaler(), cls())
    match = rf"{cls.__name__}.*Finder.*on_train_{why}.*Tuner"
    with pytest.raises(MisconfigurationException, match=match):
        trainer.fit(module)
    assert module.sizes == []
    assert_nothing_left(trainer, module, 2)


def test_the_monitor_may_stay_beside_a_finder_of_rates_in_mid_training(tmp_path):
    watch, module = monitor(), Tunable()
    finder = RateInEachEpoch(1e-4, 1e-2, num_training_steps=20, update_attr=False)
    with_finder = train(module, watch, make_trainer(finder, watch, max_epochs=3, default_root_dir=tmp_path))
    assert len(module.sizes) > 120  # its own loader batches, and those of three epochs
    bare = monitor()
    assert_same(with_finder, train(Tunable(), bare, make_trainer(bare, max_epochs=3)))
