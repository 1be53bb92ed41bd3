"""Sizes of batches and epochs."""

import pytest
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from lightning_bsscale import BatchSizeScaler
from lightning_bsscale.callbacks.trainer.loaders import SizeCheck
from tests.helpers.expected_warnings import CANNOT_MEASURE, said_of
from tests.helpers.training import Regression, Scripted, UnsizedRegression, fit, regression_loader


@pytest.mark.parametrize(
    ("sizes", "said"), [([4] * 60, 0), ([1] + [4] * 60, 1), ([4] + [5] * 60, 0), ([9] + [4] * 60, 1)]
)
def test_an_untypical_first_loader_batch_is_said_once(sizes, said, recwarn):
    check = SizeCheck(sizes[0])
    for size in sizes:
        check.add(size, 1)
    assert len(said_of("first loader batch", recwarn)) == said


def budget_of(loader, **settings):
    policy = Scripted([])
    fit(Regression(), loader, [BatchSizeScaler(policy=policy, warmup=0, split=False)], **settings)
    return policy.situations[0].total_examples


@CANNOT_MEASURE
def test_epoch_examples():
    assert budget_of(regression_loader(43), max_epochs=2) == 86
    assert budget_of(regression_loader(43, drop_last=True), max_epochs=2) == 80
    assert budget_of(regression_loader(43), max_epochs=1, limit_train_batches=5) == 20
    # Whatever batches by itself is taken at its word: batches × the first one's size.
    dataset = regression_loader(43).dataset
    own_sampler = type("Pairs", (BatchSampler,), {})(SequentialSampler(dataset), 2, False)
    assert budget_of(DataLoader(dataset, batch_sampler=own_sampler), max_epochs=1) == 44
    unsized = DataLoader(UnsizedRegression(40), batch_size=4)
    assert budget_of(unsized, max_epochs=1, limit_train_batches=5) == 20
