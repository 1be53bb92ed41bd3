"""Squared norms of tensors of any size, dtype and layout, against float64."""

import pytest
import torch

from lightning_bsscale.gradients.norms import LARGE, ROW, norm_of_each, squared_norm
from tests.helpers.oracles import sq_norm

CPU = torch.device("cpu")


def as_it_was(tensor):
    return float(torch._foreach_norm([tensor], 2)[0].double().square())


def truth(tensor):
    return sum(sq_norm(part) for part in tensor.split(1_000_000))


@pytest.mark.parametrize(("size", "was"), [(100_000, 0.0), (10_000_000, 3e-4), (40_000_000, 2e-3)])
def test_large_tensors_are_exact(size, was):
    """The twin: one float32 sum over all of it is off by some thousand times as much."""
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(0))
    expected = truth(tensor)
    assert float(squared_norm([tensor], CPU)) == pytest.approx(expected, rel=1e-6)
    assert abs(as_it_was(tensor) / expected - 1) >= was


LARGER = LARGE + ROW + 17  # more than one row, and a rest


def strided(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "tensor",
    [
        strided((LARGER,)),
        strided((500, 400)).t(),
        strided((40, 30, 8, 9)).contiguous(memory_format=torch.channels_last),
        strided((800, 400))[:, ::2],
        strided((1,)).expand(500, 400),
        strided((LARGER,)).double(),
        torch.complex(strided((LARGER,)), strided((LARGER,)) + 1),
        torch.complex(strided((LARGER,)), strided((LARGER,))).conj(),
        torch.sparse_coo_tensor(torch.tensor([[0, 2, 2]]), strided((3, LARGER)), (5, LARGER), check_invariants=True),
        strided((LARGE,)),
        strided((LARGE - 1,)),
        strided(()),
        strided((0, 4)),
    ],
    ids=[
        *("plain", "transposed", "channels_last", "sliced", "expanded", "float64", "complex", "conjugated", "sparse"),
        *("at_limit", "below", "0d", "empty"),
    ],
)
def test_every_layout(tensor):
    # Equal elements, as of an expanded tensor, round alike.
    assert float(squared_norm([tensor], CPU)) == pytest.approx(sq_norm(tensor), rel=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1000, LARGER])
def test_half_precision_is_summed_in_float32(dtype, size):
    tensor = (300 * strided((size,))).to(dtype)
    assert float(squared_norm([tensor], CPU)) == pytest.approx(sq_norm(tensor), rel=3e-6)


def test_large_and_small_ones_of_several_types_keep_their_order():
    tensors = [strided((3,)), strided((LARGER,)), strided((5,)).double(), strided((LARGER,)).bfloat16(), strided(())]
    found = [float(norm.double().square()) for norm in norm_of_each(tensors)]
    assert found == pytest.approx([sq_norm(tensor) for tensor in tensors], rel=3e-6)
    assert float(squared_norm(tensors, CPU)) == pytest.approx(sum(map(sq_norm, tensors)), rel=3e-6)
    assert float(squared_norm([], CPU)) == 0.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(value):
    tensor = strided((LARGER,))
    tensor[-1] = value
    assert not squared_norm([tensor], CPU).isfinite()


def test_dense_tensors_are_not_copied():
    """A transposed tensor of 4 MB is read where it is: what is made beside it is a thousandth."""
    tensor = strided((1000, 1024)).t()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        squared_norm([tensor], CPU)
    made = sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages())
    assert made < tensor.numel() * 4 / 100
