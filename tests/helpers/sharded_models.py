"""One small model, sharded in every way that torch has; run in child processes, and compared with an unsharded copy."""

import copy
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import distributed, nn
from torch.utils.checkpoint import checkpoint

from lightning_bsscale.gradients import choose
from lightning_bsscale.gradients.choose import choose_watcher
from lightning_bsscale.gradients.fsdp1 import fsdp1_units
from lightning_bsscale.gradients.fsdp2 import fsdp2_groups
from lightning_bsscale.gradients.parameter_hooks import ParameterHooks
from tests.helpers.oracles import own_sq_norms
from tests.helpers.places import here

WIDTH = 5  # not a multiple of 2 or 4: every shard is uneven


class Block(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 7)
        self.down = nn.Linear(7, WIDTH)
        self.use_reentrant = use_reentrant

    def inner(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))

    def forward(self, x):
        return (
            self.inner(x) if self.use_reentrant is None else checkpoint(self.inner, x, use_reentrant=self.use_reentrant)
        )


class Net(nn.Module):
    """`scale` has a single element: all but the first rank have an empty shard of it."""

    def __init__(self, *, tied=False, twice=False, use_reentrant=None, idle=False, skip_even=False, frozen=False):
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList([Block(use_reentrant), Block(use_reentrant)])
        self.last = nn.Linear(WIDTH, WIDTH, bias=False)
        self.scale = nn.Parameter(torch.ones(1))
        self.twice, self.skip_even = twice, skip_even
        if tied:
            self.last.weight = self.first.weight
        if idle:
            self.blocks[0].idle = nn.Linear(WIDTH, WIDTH)
        if frozen:
            self.first.requires_grad_(False)
            self.blocks[0].up.requires_grad_(False)
            self.blocks[1].requires_grad_(False)

    def forward(self, x):
        skip = self.skip_even and len(x) % 2 == 0
        x = self.first(x)
        for block in self.blocks[: 1 if skip else 2]:
            x = block(block(x)) if self.twice else block(x)
        return self.last(x) * self.scale

    def without_forward(self, x):
        return self.forward(x)


@dataclass(frozen=True, kw_only=True)
class Case:
    """How the model is made and sharded, and what of it is watched."""

    model: dict = field(default_factory=dict)
    shard: dict = field(default_factory=dict)
    root: dict = field(default_factory=dict)  # of the outermost unit only
    world_size: int = 2
    dtype: torch.dtype = torch.float32  # that of the computation
    mesh: tuple = ()
    syncs: str = "every"  # or "last": backward passes that reduce
    special: str = ""
    mean_tolerance: float = 1e-5


def loss_of(net, x):
    return net(x).float().square().mean()


def loss_of_method(net, x):
    return net.without_forward(x).float().square().mean()


def batches_of(rank, case, count=3):
    generator = torch.Generator().manual_seed(rank + 5)
    sizes = [3 + k + (0 if case.model.get("skip_even") else 2 * rank) for k in range(count)]
    return [torch.randn(size, WIDTH, generator=generator).to(here().device) for size in sizes]


def true_mean_sq_norm(net, batches, of_one_micro_batch=False):
    """Over all micro-batches and ranks; or, for each micro-batch, over ranks."""
    trained = [p for p in net.parameters() if p.requires_grad]
    rows = []
    for x in batches:
        gradients = torch.autograd.grad(loss_of(net, x), trained, materialize_grads=True)
        rows.append(torch.cat([gradient.double().flatten() for gradient in gradients]))
    total = torch.stack(rows)
    distributed.all_reduce(total)
    total /= distributed.get_world_size()
    return total.square().sum(1).tolist() if of_one_micro_batch else float(total.sum(0).square().sum())


def mesh_of(shape, names=("replicas", "shards")):
    return distributed.init_device_mesh(here().device.type, shape, mesh_dim_names=names[: len(shape)])


def shard_fsdp2(net, case):
    from torch.distributed import fsdp

    options = dict(case.shard)
    policy = options.pop("precision", None)
    if policy is not None:
        options["mp_policy"] = fsdp.MixedPrecisionPolicy(**policy)
    if options.pop("offload", False):
        options["offload_policy"] = fsdp.CPUOffloadPolicy(pin_memory=False)
    if case.mesh:
        options["mesh"] = mesh_of(case.mesh)
    if case.special == "dimension 1":
        from torch.distributed.tensor import Shard

        world_size = distributed.get_world_size()
        options["shard_placement_fn"] = lambda p: Shard(1) if p.ndim > 1 and p.shape[1] % world_size == 0 else None
    if case.special == "groups":
        options |= several_groups(net)
    if case.special == "compiled":
        for block in net.blocks:
            block.compile(backend="aot_eager")
    if case.special == "ignored":
        options["ignored_params"] = set(net.blocks[1].parameters())
    if case.special == "one unit of two":
        fsdp.fully_shard([net.first, net.last], **options)
    for block in net.blocks:
        if list(block.parameters()) and case.special != "ignored":
            fsdp.fully_shard(block, **options)
    fsdp.fully_shard(net, **options | case.root)
    if case.special == "sum, not mean":
        for module in (net, *net.blocks):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(here().backend == "gloo")  # which has no scaled sum
    if case.special == "never resharded at all":
        net.set_reshard_after_backward(False)
    if case.special == "method":
        fsdp.register_fsdp_forward_method(net, "without_forward")
    return net


def lacks(case):
    """What the case needs and FSDP2 of an older torch has not, or None."""
    from torch.distributed import fsdp
    from torch.distributed.fsdp._fully_shard import _fsdp_common

    needed = {
        "sum, not mean": (fsdp.FSDPModule, "set_gradient_divide_factor"),
        "groups": (_fsdp_common, "ShardPlacementResult"),
    }
    place, name = needed.get(case.special, (fsdp, "fully_shard"))
    return None if hasattr(place, name) else name


def several_groups(net):
    """The wide layers of a unit are sharded over all ranks, the rest over half of them and replicated."""
    from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo, ShardPlacementResult
    from torch.distributed.tensor import Shard

    wide = {id(p) for block in net.blocks for p in block.up.parameters()}
    everywhere = FSDPMeshInfo(mesh_of((4,), ("all",)), shard_mesh_dim=0)
    everywhere_if_wide = {True: ShardPlacementResult(Shard(0), everywhere), False: None}
    return dict(mesh=mesh_of((2, 2)), shard_placement_fn=lambda p: everywhere_if_wide[id(p) in wide])


def shard_fsdp1(net, case):
    from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, ShardingStrategy
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    options = {"use_orig_params": True, **case.shard}
    options["sharding_strategy"] = ShardingStrategy[options.pop("strategy", "FULL_SHARD")]
    if "precision" in options:
        options["mixed_precision"] = MixedPrecision(**options.pop("precision"))
    if case.mesh:
        options["device_mesh"] = mesh_of(case.mesh)
    policy = ModuleWrapPolicy({Block})
    return FullyShardedDataParallel(net, auto_wrap_policy=policy, device_id=here().device, **options)


SHARD = {"fsdp1": shard_fsdp1, "fsdp2": shard_fsdp2}


def watch(net, held, watcher, batches, syncs, loss=loss_of, seen=None, **options):
    fsdp2 = hasattr(net, "set_requires_gradient_sync")
    for parameter in held:
        parameter.grad = None
    if watcher is not None:
        watcher.start_window(**options)
    for k, x in enumerate(batches):
        reduces = syncs == "every" or k == len(batches) - 1
        if fsdp2:
            net.set_requires_gradient_sync(reduces)
        with nullcontext() if fsdp2 or reduces else net.no_sync():
            value = loss(net, x)
            if watcher is not None:
                watcher.start_sample()
            value.backward()
            if watcher is not None:
                watcher.end_sample(len(x))
        if seen is not None:
            seen.append([None if p.grad is None else local(p.grad).clone() for p in held])
    if watcher is None:
        return None
    assert watcher.stop_window() == len(batches)
    return watcher.sq_norms.tolist()


def local(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def hooked(net):
    tensors = list(net.parameters())
    tensors += [p._unsharded_param for group in fsdp2_groups(net) for p in group.fsdp_params]
    tensors += [unit._handle.flat_param for unit in fsdp1_units(net) if unit._handle is not None]
    return sum(tensor._backward_hooks is not None for tensor in tensors)


def run_case(rank, kind, case):
    """Two windows of three micro-batches, watched and not; and what an unsharded copy says of the second."""
    torch.manual_seed(0)
    net = Net(**case.model).to(here().device)
    bare = copy.deepcopy(net)
    batches = batches_of(rank, case)
    oracle = copy.deepcopy(net).to(case.dtype)
    for block in oracle.blocks:
        block.use_reentrant = None  # checkpointing changes no gradient, and torch.autograd.grad refuses this one
    oracle_batches = [x.to(case.dtype) for x in batches]
    if case.special == "ignored":
        oracle.blocks[1].requires_grad_(False)
    if case.special == "thawed":
        oracle.first.requires_grad_(True)
        oracle.blocks[0].up.requires_grad_(True)
    if case.special == "subset":  # the optimizer holds only these
        oracle.requires_grad_(False)
        oracle.blocks[1].up.requires_grad_(True)
    expected = own_sq_norms(oracle, oracle_batches, loss_of)
    expected_mean = true_mean_sq_norm(oracle, oracle_batches)
    expected_global = true_mean_sq_norm(oracle, oracle_batches, of_one_micro_batch=True)

    shard = SHARD[kind]
    loss = loss_of_method if case.special == "method" else loss_of
    net, bare = shard(net, case), shard(bare, case)
    if case.special == "no private names":
        choose.fsdp2_params = lambda model: None
    held, held_bare = held_by_the_optimizer(net, case), held_by_the_optimizer(bare, case)
    watcher = choose_watcher(net, lambda: held, world_size=distributed.get_world_size())
    larger = [2 * x for x in batches]
    watch(net, held, watcher, larger, case.syncs, loss)
    watch(bare, held_bare, None, larger, case.syncs, loss)
    if case.special == "thawed":  # after the first window
        for parameter in (*held, *held_bare):
            parameter.requires_grad_(True)
    seen, seen_bare = [], []
    found = watch(net, held, watcher, batches, case.syncs, loss, seen, compared=True)
    watch(bare, held_bare, None, batches, case.syncs, loss, seen_bare)
    four = torch.tensor(4.0)
    shares = {
        "plain": watcher.window_share(loss_divisor=2.0),
        "scaled": watcher.window_share(loss_divisor=0.5, loss_scale=four, is_grad_scaled=True),
    }
    with torch.no_grad():
        for parameter in held:
            if parameter.grad is not None:
                local(parameter.grad).mul_(0.25)
    shares["unscaled"] = watcher.window_share(loss_divisor=0.5, loss_scale=four)
    shares["changed"] = watcher.window_share(loss_divisor=0.5, loss_scale=1.2 * four)
    return dict(
        watcher=type(watcher).__name__,
        sees_mean_over_ranks=watcher.sees_mean_over_ranks,
        found=found,
        expected=expected,
        expected_global=expected_global,
        sizes=[len(x) for x in batches],
        expected_mean=expected_mean,
        shares={name: (share.sums.tolist(), share.difference.tolist()) for name, share in shares.items()},
        same_bits=same_bits(seen, seen_bare),
        hooked=hooked(net),
        by_parameter_hooks=watch(net, held, ParameterHooks(held), batches, case.syncs, loss),
    )


def held_by_the_optimizer(net, case):
    def is_held(name):
        if case.special == "subset":
            return "blocks.1" in name and "up" in name
        return case.special != "thawed" or "blocks.1" not in name

    return [parameter for name, parameter in net.named_parameters() if is_held(name)]


def same_bits(some, others):
    pairs = [(a, b) for row, other in zip(some, others, strict=True) for a, b in zip(row, other, strict=True)]
    assert any(a is not None for a, _ in pairs)
    return all((a is None and b is None) or torch.equal(a, b) for a, b in pairs)
