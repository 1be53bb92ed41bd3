"""What is checked before the first step: what must pass, and when a warning is given.

The refusals are in `helpers/refusals_of_training.py`, and tested by `test_messages.py`.
"""

import lightning.pytorch as pl
import pytest
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader

from lightning_bsscale import BatchSizeScaler, NoiseScalePolicy
from tests.helpers.expected_warnings import hearing
from tests.helpers.training import QUIET, Regression, Scripted, Unsized, fit, regression_loader


def test_an_unknown_strategy_on_one_device_is_welcome():
    class Unheard(SingleDeviceStrategy):
        pass

    scaler = BatchSizeScaler()
    fit(Regression(), regression_loader(40), [scaler], max_epochs=1, strategy=Unheard(device="cpu"))
    assert scaler.examples_seen == 40


def free_of_shares(**options):
    return BatchSizeScaler(warmup=8, memory=1.0, policy=NoiseScalePolicy(cooldown=0), **options)


@pytest.mark.parametrize("scaler", [free_of_shares(), BatchSizeScaler(total_examples=1000)])
def test_an_unknown_budget_where_none_is_needed(scaler):
    fit(Regression(), DataLoader(Unsized(regression_loader(40)), batch_size=None), [scaler], max_epochs=1)
    assert scaler.examples_seen == 40


def test_two_scalers_are_refused_by_lightning():
    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        pl.Trainer(**QUIET, callbacks=[BatchSizeScaler(), BatchSizeScaler()])


def test_a_budget_of_one_batch():
    scaler = BatchSizeScaler(total_examples=8)
    trainer = fit(Regression(), regression_loader(80), [scaler], max_epochs=1, accumulate_grad_batches=2)
    assert (scaler.examples_seen, trainer.global_step) == (8, 1)


@pytest.mark.parametrize(("warmup", "batch_size"), [(100, 4), (40, 8)])
def test_a_warmup_as_long_as_the_training_holds_the_batch_and_is_said(warmup, batch_size):
    scaler = BatchSizeScaler(policy=Scripted([8, 16]), warmup=warmup)
    with hearing("warmup=100 .*80") as said:
        fit(Regression(), regression_loader(80), [scaler], max_epochs=1)
    assert len(said) == (warmup == 100)
    assert scaler.batch_size == batch_size
