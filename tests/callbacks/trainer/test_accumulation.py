"""The number that places windows; that each is exact is in scenarios/test_loader_shapes.py."""

import copy
import pickle

import pytest
from torch.utils.data import DataLoader

from lightning_bsscale.callbacks.trainer import accumulation
from tests.helpers.expected_warnings import DROPPED, said_of
from tests.helpers.training import Numbers, OneHot, UnsizedNumbers, fit, scripted


def test_a_loader_shorter_than_announced_loses_once_and_says_so():
    """Lightning expects 30 and receives 18: it drops the open window. From the second epoch on nothing is lost."""
    module, scaler, val = OneHot(54, 18), scripted(lr_rule="none"), DataLoader(Numbers(1))
    settings = dict(max_epochs=3, limit_train_batches=30, accumulate_grad_batches=4)
    with pytest.warns(UserWarning, match=DROPPED) as caught:
        fit(module, DataLoader(UnsizedNumbers(18)), [scaler], val=val, **settings)
    (said,) = said_of(DROPPED, caught)
    assert "last 2" in said
    assert [i for step in module.steps for i in step] == [*range(16), *range(18, 54)]
    assert all(weight == 1 / len(step) for step in module.steps for weight in step.values())


def test_offset_window_counts_from_its_start():
    window = accumulation._Window(3, 2)
    assert [x % window for x in range(2, 9)] == [0, 1, 2, 0, 1, 2, 0]
    assert window == 3
    assert 6 / window == 2
    assert type(copy.deepcopy(window)) is int
    assert type(pickle.loads(pickle.dumps(window))) is int


def test_self_test_refuses_a_python_that_computes_otherwise(monkeypatch):
    monkeypatch.delattr(accumulation._Window, "__rmod__")
    with pytest.raises(Exception, match="Python"):
        accumulation.check_offset_windows()
