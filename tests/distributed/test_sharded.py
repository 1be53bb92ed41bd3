"""Norms of sharded gradients against those of an unsharded copy of the model, on 2 and 4 ranks."""

import contextlib

import pytest
import torch
from torch import nn

from lightning_bsscale.gradients import choose, fsdp1
from lightning_bsscale.gradients.choose import UnsupportedSharding, choose_watcher
from lightning_bsscale.gradients.comparison import Difference
from tests.helpers.places import here
from tests.helpers.processes import run
from tests.helpers.sharded_models import (
    SHARD,
    WIDTH,
    Case,
    Net,
    batches_of,
    hooked,
    lacks,
    loss_of,
    mesh_of,
    run_case,
    watch,
)

BF16 = dict(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
FP16 = dict(param_dtype=torch.float16, reduce_dtype=torch.float16)

ANY = {
    "plain": Case(),
    "1 rank": Case(world_size=1),
    "tied weights": Case(model=dict(tied=True)),
    "used twice": Case(model=dict(twice=True)),
    "checkpointing": Case(model=dict(use_reentrant=False)),
    "reentrant checkpointing": Case(model=dict(use_reentrant=True)),
    "never used": Case(model=dict(idle=True)),
    "sometimes unused": Case(model=dict(skip_even=True)),
    "frozen parts": Case(model=dict(frozen=True)),
    "thawed": Case(model=dict(frozen=True), special="thawed"),
    "some in the optimizer": Case(special="subset"),
    "reduced at the last": Case(syncs="last"),
    "bfloat16": Case(shard=dict(precision=BF16), dtype=torch.bfloat16),
    "float16, reduced too": Case(shard=dict(precision=FP16), dtype=torch.float16, mean_tolerance=5e-3),
}
FSDP2 = ANY | {
    # FSDP1 itself fails here: it has freed the weights when the second part needs them.
    "reentrant, used twice": Case(model=dict(use_reentrant=True, twice=True)),
    "never resharded": Case(shard=dict(reshard_after_forward=False)),
    "never resharded at all": Case(shard=dict(reshard_after_forward=False), special="never resharded at all"),
    "root resharded": Case(root=dict(reshard_after_forward=True)),
    "offloaded": Case(shard=dict(offload=True)),
    "dimension 1": Case(special="dimension 1"),
    "one unit of two modules": Case(special="one unit of two"),
    "another forward method": Case(special="method"),
    "compiled": Case(special="compiled"),
    "ignored parameters": Case(special="ignored"),
    "sum, not mean": Case(special="sum, not mean"),
    "4 ranks": Case(world_size=4),
    "4 ranks, resharded to 2": Case(world_size=4, shard=dict(reshard_after_forward=2)),
    "replicated groups of shards": Case(world_size=4, mesh=(2, 2)),
    "several groups a unit": Case(world_size=4, special="groups"),
}
FSDP1 = ANY | {
    "flat parameters": Case(shard=dict(use_orig_params=False)),
    "flat, reduced at the last": Case(shard=dict(use_orig_params=False), syncs="last"),
    "SHARD_GRAD_OP": Case(shard=dict(strategy="SHARD_GRAD_OP"), syncs="last"),
    "NO_SHARD": Case(shard=dict(strategy="NO_SHARD"), syncs="last"),
    "flat NO_SHARD": Case(shard=dict(strategy="NO_SHARD", use_orig_params=False)),
    "frozen, reduced at the last": Case(model=dict(frozen=True), syncs="last"),
    "4 ranks": Case(world_size=4, syncs="last"),
    "HYBRID_SHARD": Case(shard=dict(strategy="HYBRID_SHARD"), world_size=4, mesh=(2, 2), syncs="last"),
}
FALLBACK = {
    "plain": Case(special="no private names"),
    "tied weights": Case(model=dict(tied=True), special="no private names"),
    "sometimes unused": Case(model=dict(skip_even=True), special="no private names"),
    "replicated groups of shards": Case(world_size=4, mesh=(2, 2), special="no private names"),
}


# A rounding of the computation may fall the other way there: the oracle's weights lie elsewhere than the sharded ones,
# and the library chooses its algorithm by that too. On CPUs both are rounded alike.
ROUNDED_ON_GPUS = {torch.bfloat16: 1e-2, torch.float16: 2e-3}

in_every_place = pytest.mark.usefixtures("place")


def tolerances(case):
    rounded = 0.0 if here().device.type == "cpu" else ROUNDED_ON_GPUS.get(case.dtype, 0.0)
    return max(1e-5, rounded), max(case.mean_tolerance, rounded)


def check(kind, case, watcher):
    ranks = run(run_case, case.world_size, kind, case)
    for found in ranks:
        assert found["watcher"] == watcher
        assert found["same_bits"]
        assert found["hooked"] == 0
        # The twin: hooks on the parameters that the optimizer holds see nothing, or what is not sharded.
        if case.shard.get("use_orig_params", True):
            assert found["by_parameter_hooks"] != pytest.approx(found["expected"], rel=0.1)
        assert found["expected_mean"] == ranks[0]["expected_mean"]
    # Each loss counts as divided by 2 in the first, and as divided by 0.5 and multiplied by 4 in the others.
    for name, factor in [("plain", 2.0), ("scaled", 0.5 / 4), ("unscaled", 0.5 / 4), ("changed", None)]:
        sums, difference = (
            [sum(values) for values in zip(*(found["shares"][name][part] for found in ranks), strict=True)]
            for part in (0, 1)
        )
        assert Difference.from_numbers(difference).is_explained is (factor is not None)
        if factor is not None:
            for value, (expected, tolerance) in zip(sums, true_sums(ranks, factor, case), strict=True):
                assert value == pytest.approx(expected, rel=tolerance)
    return ranks


def true_sums(ranks, factor, case):
    """The numbers of the `WindowSums` of losses that were multiplied by 1 / `factor`, and how well they can be met."""
    first, world_size, (seen, mean) = ranks[0], len(ranks), tolerances(case)
    together = world_size if first["sees_mean_over_ranks"] else 1
    own = [first["expected_global"]] if together > 1 else [found["expected"] for found in ranks]
    sizes = [size for found in ranks for size in found["sizes"]]
    count = len(first["sizes"])
    return [
        (factor**2 * sum(map(sum, own)), seen),
        (factor**2 * first["expected_mean"] / count**2, mean),
        (len(sizes) / together, 1e-12),
        (sum(1 / size for size in sizes) / together**2, 1e-12),
        (sum(sizes), 1e-12),
        (len(sizes) / together, 1e-12),
        (sum(1 / size for size in sizes) / together**2, 1e-12),
    ]


@in_every_place
@pytest.mark.parametrize(
    ("kind", "name", "watcher"),
    [
        *[("fsdp2", name, "WholeParameterHooks") for name in FSDP2],
        *[("fsdp1", name, "FlatParameterHooks") for name in FSDP1],
    ],
)
def test_each_micro_batch_is_seen(kind, name, watcher):
    case = {"fsdp1": FSDP1, "fsdp2": FSDP2}[kind][name]
    if missing := lacks(case):
        pytest.skip(f"FSDP2 of this torch has no {missing}")
    for found in check(kind, case, watcher):
        assert found["found"] == pytest.approx(found["expected"], rel=tolerances(case)[0])
        assert not found["sees_mean_over_ranks"]


@in_every_place
@pytest.mark.parametrize("name", FALLBACK)
def test_fsdp2_without_private_names(name):
    """The small batch is then one micro-batch over all ranks."""
    ranks = check("fsdp2", FALLBACK[name], "ShardDifferences")
    found = [sum(norms) for norms in zip(*(found["found"] for found in ranks), strict=True)]
    assert found == pytest.approx(ranks[0]["expected_global"], rel=1e-5)
    assert all(found["sees_mean_over_ranks"] for found in ranks)


def every_refusal(rank):
    """What each way of sharding that is refused says; on 4 ranks."""
    torch.set_default_device(here().device)
    said = []

    @contextlib.contextmanager
    def refused(words):
        with pytest.raises(UnsupportedSharding, match=words) as error:
            yield
        said.append(str(error.value))

    def chosen(net, model=None):
        return choose_watcher(net if model is None else model, net.parameters, world_size=4)

    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.tensor import distribute_module
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    mesh = mesh_of((2, 2), ("data", "tensor"))
    with refused("tensor parallelism.*tensor_parallel_size=1"):  # tensor parallel and FSDP2
        net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        parallelize_module(net, mesh["tensor"], {"0": ColwiseParallel(), "1": ColwiseParallel()})
        chosen(fully_shard(net, mesh=mesh["data"]))
    with refused("fully_shard.*tensor parallelism"):  # tensor parallel alone
        net = nn.Sequential(nn.Linear(8, 8))
        chosen(parallelize_module(net, mesh_of((4,), ("tensor",)), {"0": ColwiseParallel()}))
    with refused("2 of 4 processes"):  # FSDP2 over half
        chosen(fully_shard(nn.Linear(8, 8), mesh=mesh["data"]))
    with refused("2 of 4 processes"):  # FSDP1 over half
        chosen(FullyShardedDataParallel(nn.Linear(8, 8), device_id=here().device, device_mesh=mesh["data"]))
    with refused("4 parameters .*outermost"):  # FSDP1, the module in it
        wrapped = SHARD["fsdp1"](Net(), Case())
        chosen(wrapped, wrapped.module)
    with refused("flat_param"):  # FSDP1 of another torch
        known, fsdp1._flat_unit = fsdp1._flat_unit, lambda *args: object().flat_param
        try:
            chosen(wrapped)
        finally:
            fsdp1._flat_unit = known
    with refused("2 of 4 .*DTensors"):  # a DTensor of no unit
        net = nn.Sequential(fully_shard(nn.Linear(8, 8)), nn.Linear(8, 8))
        distribute_module(net[1], mesh_of((4,), ("all",)))
        watcher = chosen(net)
        watcher.start_window()
        net[0](torch.ones(2, 8)).sum()
        watcher.start_sample()
    with refused("forward"):  # one unit, not called
        net = WeightOnly()
        watcher = chosen(fully_shard(net))
        watcher.start_window()
        loss = net.training_step()
        watcher.start_sample()
    with refused("reduced"):  # one parameter used past its unit
        net = WeightOnly()
        fully_shard(net.layer)
        watcher = chosen(fully_shard(net))
        watcher.start_window()
        loss = net.training_step() + net.layer(torch.ones(2, WIDTH)).sum()
        watcher.start_sample()
        loss.backward()
        watcher.end_sample(1)
        watcher.stop_window()
        watcher.window_share(loss_divisor=1)
    return said


class WeightOnly(nn.Module):
    """Like a LightningModule that is one unit, whose training_step Lightning calls past its forward."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.layer = nn.Linear(WIDTH, WIDTH)

    def training_step(self):
        from torch.distributed.tensor import DTensor

        total = self.weight.sum()
        return total.to_local() if isinstance(total, DTensor) else total


@in_every_place
def test_what_cannot_be_told_apart_is_refused():
    first, *others = run(every_refusal, 4)
    assert all(other == first for other in others)


def given_up(rank, kind, private_names):
    """A window that is given up in a micro-batch, one that is stopped in one, and one as it should be."""
    torch.manual_seed(0)
    case = Case()
    net = SHARD[kind](Net().to(here().device), case)
    if not private_names:
        choose.fsdp2_params = lambda model: None
    held = list(net.parameters())
    watcher = choose_watcher(net, lambda: held, world_size=2)
    batches = batches_of(rank, case)
    watcher.start_window()
    loss_of(net, batches[0]).backward()  # before any sample: not counted
    loss = loss_of(net, batches[0])
    watcher.start_sample()
    watcher.start_window()
    loss.backward()
    given_up = watcher.stop_window(), len(watcher.sq_norms), hooked(net)
    watcher.start_window()
    loss = loss_of(net, batches[0])
    watcher.start_sample()
    stopped = watcher.stop_window(), watcher.stop_window(), hooked(net)
    loss.backward()
    found = watch(net, held, watcher, batches, "every")
    return given_up, stopped, watcher.stop_window(), found, run_case(rank, kind, case)["found"]


@in_every_place
@pytest.mark.parametrize(("kind", "private_names"), [("fsdp1", True), ("fsdp2", True), ("fsdp2", False)])
def test_a_window_that_is_given_up_leaves_nothing(kind, private_names):
    for given_up_there, stopped, count, found, expected in run(given_up, 2, kind, private_names):
        assert given_up_there == stopped == (0, 0, 0)
        assert count == 3
        assert found == pytest.approx(expected, rel=1e-5)
