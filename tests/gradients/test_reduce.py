import pytest
import torch
from torch import distributed

from lightning_bsscale.gradients.reduce import (
    PendingSums,
    _device_of_sums,
    extremes,
    smallest_power,
    smallest_power_of_sum,
    sums,
)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_reads_what_it_was_given_as_often_as_asked(dtype):
    tensor = torch.tensor([1, 2, 3], dtype=dtype)
    pending = PendingSums(tensor, world_size=1)
    tensor.zero_()  # later changes do not show
    assert pending.has_arrived
    assert pending.read() == pending.read() == [1.0, 2.0, 3.0]
    assert all(isinstance(value, float) for value in pending.read())


def test_odd_vectors():
    values = PendingSums(torch.tensor([float("inf"), float("nan")]), world_size=1).read()
    assert values[0] == float("inf")
    assert values[1] != values[1]
    assert PendingSums(torch.zeros(0), world_size=1).read() == []
    assert PendingSums(torch.ones(2, requires_grad=True) * 2, world_size=1).read() == [2.0, 2.0]
    with pytest.raises(ValueError, match="1-d, got 0 dimensions"):
        PendingSums(torch.tensor(1.0), world_size=1)


def test_one_rank_asks_no_other():
    assert extremes([1.0, -2.0], torch.device("cpu"), 1) == ([1.0, -2.0], [1.0, -2.0])
    assert sums([1.0, -2.0], torch.device("cpu"), 1) == [1.0, -2.0]


@pytest.mark.parametrize(
    ("backends", "device", "expected"),
    [
        ("cuda:nccl", "cuda:1", "cuda:1"),
        ("cpu:gloo,cuda:nccl", "cuda:1", "cuda:1"),
        ("cpu:gloo,cuda:nccl", "cpu", "cpu"),
        ("cpu:gloo,cuda:gloo", "cuda:1", "cpu"),
        ("cpu:gloo", "cuda:1", "cpu"),
        ("cpu:gloo,cuda:gloo", "cpu", "cpu"),
        ("xpu:xccl", "xpu:0", "xpu:0"),
        ("cpu:gloo,xpu:xccl", "xpu:0", "xpu:0"),
    ],
)
def test_where_the_sums_are_made(monkeypatch, backends, device, expected):
    monkeypatch.setattr(distributed, "get_backend_config", lambda: backends)
    assert _device_of_sums(torch.device(device)) == torch.device(expected)


class Broken:
    def query(self):
        raise RuntimeError("CUDA error: unspecified launch failure")

    def is_completed(self):
        return True

    def wait(self):
        raise RuntimeError("Connection closed by peer")


@pytest.mark.parametrize("part", ["_arrived", "_work"])
def test_after_a_failure_nothing_has_arrived(part):
    vector = PendingSums.__new__(PendingSums)
    vector._arrived = vector._work = None
    setattr(vector, part, Broken())
    assert not vector.has_arrived


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 1000, 2**16])
@pytest.mark.parametrize("smallest", [1, 2, 64, 2**20, 2**40])
def test_the_smallest_power_of_two_is_told_from_the_sum(ranks, smallest):
    for others in (smallest, 2 * smallest, 2**40, None):
        for number in {1, ranks // 2 or 1, ranks}:
            one, other = smallest_power(smallest, ranks), smallest_power(others, ranks)
            assert smallest_power_of_sum(number * one + (ranks - number) * other, ranks) == smallest
    assert smallest_power_of_sum(ranks * smallest_power(None, ranks), ranks) is None
