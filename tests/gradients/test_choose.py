"""Which watcher fits; `tests/distributed/test_sharded.py` chooses for models that are sharded."""

import pytest
import torch
from torch import nn

from lightning_bsscale.gradients.choose import UnsupportedSharding, choose_watcher
from lightning_bsscale.gradients.parameter_hooks import ParameterHooks


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_model_that_is_not_sharded_is_watched_by_its_own_parameters(world_size):
    model = nn.Linear(2, 1, bias=False)
    watcher = choose_watcher(model, model.parameters, world_size=world_size)
    assert type(watcher) is ParameterHooks
    assert not watcher.sees_mean_over_ranks
    watcher.start_window()
    handed = []
    handle = model.weight.register_hook(lambda gradient: handed.append(gradient.data_ptr()))
    watcher.start_sample()
    model(torch.tensor([[3.0, 4.0]])).sum().backward()
    watcher.end_sample(1)
    handle.remove()
    watcher.stop_window()
    # On one process the first gradient may become `.grad` without a copy; on several it is not this process's own.
    assert (model.weight.grad.data_ptr() == handed[0]) == (world_size == 1)
    share = watcher.window_share(loss_divisor=1)
    assert share.sums.tolist() == [25.0, 25.0 / world_size, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_a_flat_parameter_outside_the_model_is_refused():
    flat = nn.Parameter(torch.ones(2))
    flat._is_flat_param = True
    with pytest.raises(UnsupportedSharding, match="not in the model"):
        choose_watcher(nn.Linear(1, 1), lambda: [flat], world_size=1)
