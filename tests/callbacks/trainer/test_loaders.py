"""Sizes of batches and epochs."""

import pytest
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from lightning_bsscale import BatchSizeScaler
from lightning_bsscale.callbacks.trainer.loaders import SizeCheck
from tests.helpers.expected_warnings import CANNOT_MEASURE, said_of
from tests.helpers.training import Regression, Scripted, UnsizedNumbers, fit, regression_loader


@pytest.mark.parametrize(
    ("sizes", "said"), [([4] * 60, 0), ([1] + [4] * 60, 1), ([4] + [5] * 60, 0), ([9] + [4] * 60, 1)]
)
def test_an_untypical_first_micro_batch_is_said_once(sizes, said, recwarn):
    check = SizeCheck(sizes[0])
    for size in sizes:
        check.add(size, 1)
    assert len(said_of("first micro-batch", recwarn)) == said


def budget_of(loader, **settings):
    policy = Scripted([])
    fit(Regression(), loader, [BatchSizeScaler(policy=policy, warmup=0, probe_every=0)], **settings)
    return policy.situations[0].total_examples


@CANNOT_MEASURE
def test_epoch_examples():
    assert budget_of(regression_loader(43), max_epochs=2) == 86
    assert budget_of(regression_loader(43, drop_last=True), max_epochs=2) == 80
    assert budget_of(regression_loader(43), max_epochs=1, limit_train_batches=5) == 20
    # Whatever batches by itself is taken at its word: batches × the first one's size.
    dataset = regression_loader(43).dataset
    own = DataLoader(dataset, batch_sampler=Pairs(SequentialSampler(dataset), 2, False))
    assert budget_of(own, max_epochs=1) == 44


class Pairs(BatchSampler):
    pass


@CANNOT_MEASURE
def test_unsized_with_a_limit():
    class Module(Regression):
        def training_step(self, batch, batch_idx):
            return self.net(batch.float().expand(-1, 8)).mean()

    policy = Scripted([])
    scaler = BatchSizeScaler(policy=policy, warmup=0, probe_every=0)
    fit(Module(), DataLoader(UnsizedNumbers(40), batch_size=4), [scaler], max_epochs=1, limit_train_batches=5)
    assert policy.situations[0].total_examples == 20
