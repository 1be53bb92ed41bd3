import pytest
import torch
from lightning_bsscale.gradients.delayed import DelayedVector


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_reads_what_it_was_given_as_often_as_asked(dtype):
    vector = DelayedVector(torch.tensor([1, 2, 3], dtype=dtype))
    assert vector.read() == [1.0, 2.0, 3.0]
    assert all(isinstance(value, float) for value in vector.read())


def test_later_changes_do_not_show():
    tensor = torch.tensor([1.0, 2.0])
    vector = DelayedVector(tensor)
    tensor.zero_()
    assert vector.read() == [1.0, 2.0]


def test_non_finite_numbers_and_empty_vectors():
    values = DelayedVector(torch.tensor([float("inf"), float("nan")])).read()
    assert values[0] == float("inf")
    assert values[1] != values[1]
    assert DelayedVector(torch.zeros(0)).read() == []


def test_a_tensor_with_a_graph():
    assert DelayedVector(torch.ones(2, requires_grad=True) * 2).read() == [2.0, 2.0]


def test_only_vectors():
    with pytest.raises(ValueError, match="1-d, found 0 dimensions"):
        DelayedVector(torch.tensor(1.0))


@pytest.mark.gpu
def test_cuda_copies_without_waiting():
    tensor = torch.arange(4, device="cuda", dtype=torch.float64)
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)  # about a tenth of a second of queue before the copy
    busy = torch.cuda.Event()
    vector = DelayedVector(tensor)
    tensor.zero_()
    torch.cuda._sleep(2_000_000_000)
    busy.record()
    assert vector.read() == [0.0, 1.0, 2.0, 3.0]
    assert not busy.query(), "read waited for what was queued after the copy"
