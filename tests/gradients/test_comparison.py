"""Samples of sharded gradients, on more ranks than can be run: each rank's part is taken in one process."""

import pytest
import torch

from lightning_bsscale.gradients import comparison
from lightning_bsscale.gradients.comparison import ComparedParameter, Comparison, Difference, HeldGradient

CPU = torch.device("cpu")
KEY = 7


def shards_of(gradient, dim, shards):
    """As FSDP cuts: all of one size, but the last ones."""
    size = -(-gradient.shape[dim] // shards)
    starts = [min(rank * size, gradient.shape[dim]) for rank in range(shards)]
    return [
        HeldGradient(KEY, gradient.narrow(dim, start, min(size, gradient.shape[dim] - start)), dim, rank * size)
        for rank, start in enumerate(starts)
    ]


def compared(own, held, dim, *, turn=0):
    """What the ranks find together, of their own gradients and of what each holds."""
    ranks, told = len(own), []
    for gradient, part in zip(own, held, strict=True):
        shape = ComparedParameter(KEY, tuple(gradient.shape), torch.bfloat16, float(ranks), 1, dim, ranks)
        sample = Comparison([shape], CPU, turn=turn, on_ranks=True)
        sample.take([(KEY, gradient)])
        told.append(sample.difference([part], torch.ones(1, dtype=torch.bool), None))
    return Difference.from_numbers(torch.stack(told).sum(0).tolist())


@pytest.mark.parametrize("most", [4, 4096])
@pytest.mark.parametrize(
    ("shape", "dim"),
    [((3, 32), 0), ((32, 3), 0), ((1, 5), 0), ((8191,), 0), ((7, 9, 20), 0), ((16, 48), 1), ((48, 16), 1), ((1,), 0)],
)
def test_shards_together_are_the_whole(shape, dim, most, monkeypatch):
    monkeypatch.setattr(comparison, "SAMPLED", most)
    for shards in (2, 4, 16) if dim == 1 else (2, 3, 5, 16):
        own = torch.randn(shards, *shape, generator=torch.Generator().manual_seed(shards)).unbind()
        for turn in range(3):
            difference = compared(own, shards_of(sum(own) / shards, dim, shards), dim, turn=turn)
            assert difference.is_explained, (shards, turn)
            assert difference.allowed > 0
            assert sum(value**2 for value in difference.sums) < 1e-6 * difference.allowed


@pytest.mark.parametrize(("shape", "dim"), [((3, 32), 0), ((5, 4096), 0), ((8191,), 0), ((7, 9, 20), 0), ((64, 16), 1)])
def test_a_change_of_any_one_shard_is_found(shape, dim):
    shards = 2 if dim == 1 else 3
    own = torch.randn(shards, *shape, generator=torch.Generator().manual_seed(0)).unbind()
    for changed in range(shards):
        held = shards_of(sum(own) / shards, dim, shards)
        held[changed] = held[changed]._replace(gradient=1.5 * held[changed].gradient)
        assert compared(own, held, dim).is_explained is False


@pytest.mark.parametrize(("ranks", "signal"), [(8, 0.0), (8, 1.0), (8, 100.0), (64, 0.0), (64, 1.0)])
def test_a_reduction_in_bfloat16_over_many_ranks_is_no_change(ranks, signal):
    """One rank after the other adds its own gradient, and each sum is rounded; a factor of two is found even so."""
    generator = torch.Generator().manual_seed(0)
    own = [(signal + torch.randn(512, 64, generator=generator)).bfloat16() for _ in range(ranks)]
    total = own[0]
    for gradient in own[1:]:
        total = total + gradient
    mean = total.float() / ranks
    assert compared(own, shards_of(mean, 0, ranks), 0).is_explained
    assert compared(own, shards_of(2.0 * mean, 0, ranks), 0).is_explained is False


def test_a_parameter_of_large_gradients_does_not_hide_another():
    """The tolerance on ranks is 2 %: of the largest gradients that would be more than all of the small ones."""
    generator = torch.Generator().manual_seed(0)
    small, large = torch.randn(64, 64, generator=generator) * 1e-3, torch.randn(64, generator=generator)
    found = {}
    for scales in (None, torch.tensor([2e-3, 1.0], dtype=torch.float64)):
        both = [ComparedParameter(1, (64, 64), torch.float32), ComparedParameter(2, (64,), torch.float32)]
        sample = Comparison(both, CPU, turn=0, on_ranks=True)
        sample.take([(1, small), (2, large)])
        held = [HeldGradient(1, 2 * small), HeldGradient(2, large)]
        told = sample.difference(held, torch.ones(2, dtype=torch.bool), None, scales=scales)
        found[scales is None] = Difference.from_numbers(told.tolist()).is_explained
    assert found == {False: False, True: True}  # the twin without scales does not see it


@pytest.mark.parametrize("on_ranks", [True, False])
def test_sparse_gradients_are_compared_on_one_device_only(on_ranks):
    """Between ranks the elements must be the same, and which rows a rank uses is its own."""
    rows, values = torch.tensor([[3, 3, 900]]), torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    gradient = torch.sparse_coo_tensor(rows, values, (1000, 8), check_invariants=True)
    embedding = ComparedParameter(KEY, (1000, 8), torch.float32)
    for factor in (1, 2):
        sample = Comparison([embedding], CPU, turn=0, on_ranks=on_ranks, peaks=not on_ranks)
        sample.take([(KEY, gradient)])
        told = sample.difference([HeldGradient(KEY, factor * gradient)], torch.ones(1, dtype=torch.bool), None)
        assert Difference.from_numbers(told.tolist()).is_explained == (factor == 1 or on_ranks)
