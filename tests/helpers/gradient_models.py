"""Small models that make gradients in different ways."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

WIDTH = 6


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        return self.second(self.norm(torch.tanh(self.first(x))))


class Tied(Mlp):
    def __init__(self):
        super().__init__()
        self.second.weight = self.first.weight


class UsedTwice(Mlp):
    def forward(self, x):
        return super().forward(torch.tanh(super().forward(x)))


class Unused(Mlp):
    def __init__(self):
        super().__init__()
        self.idle = nn.Linear(WIDTH, WIDTH)


class SometimesUnused(Mlp):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else self.first(x)


class Frozen(Mlp):
    def __init__(self):
        super().__init__()
        self.first.requires_grad_(False)


class MixedDtypes(Mlp):
    def __init__(self):
        super().__init__()
        self.low = nn.Linear(WIDTH, WIDTH).to(torch.bfloat16)
        self.high = nn.Linear(WIDTH, WIDTH).to(torch.float64)

    def forward(self, x):
        return super().forward(self.low(x.bfloat16()).float()) + self.high(x.double()).float()


class Half(nn.Module):
    """Gradients of about 300 in float16: their squares overflow it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH, dtype=torch.float16))

    def forward(self, x):
        return (self.weight * (1000 * x).half()).float()


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, dtype=torch.complex64))

    def forward(self, x):
        return (self.weight.conj() * x).abs() + (self.weight * x).imag


class Sparse(nn.Module):
    """Every micro-batch looks some rows up several times, so that the sparse gradient is not coalesced."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Embedding(4, WIDTH, sparse=True)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.out(self.rows((x.abs() * 10).long() % 4).mean(1))


class Checkpointed(nn.Module):
    """Two checkpointed segments; with `shared`, both use the same layer."""

    def __init__(self, use_reentrant, shared):
        super().__init__()
        self.use_reentrant = use_reentrant
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = self.first if shared else nn.Linear(WIDTH, WIDTH)
        self.between = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        x = x.clone().requires_grad_()  # reentrant checkpointing wants an input that requires a gradient
        x = self.between(self._segment(self.first, x))
        return self._segment(self.second, x)

    def _segment(self, layer, x):
        if self.use_reentrant is None:
            return torch.tanh(layer(x))
        return checkpoint(lambda y: torch.tanh(layer(y)), x, use_reentrant=self.use_reentrant)


ZOO = {
    "mlp": Mlp,
    "tied": Tied,
    "used_twice": UsedTwice,
    "unused": Unused,
    "sometimes_unused": SometimesUnused,
    "frozen": Frozen,
    "mixed_dtypes": MixedDtypes,
    "half": Half,
    "complex": Complex,
    "sparse": Sparse,
    "checkpoint": lambda: Checkpointed(False, shared=False),
    "checkpoint_shared": lambda: Checkpointed(False, shared=True),
    "reentrant": lambda: Checkpointed(True, shared=False),
    "reentrant_shared": lambda: Checkpointed(True, shared=True),
}


def loss_of(model, x):
    return model(x).square().sum() / len(x)


def micro_batches(count=4):
    return [torch.randn(3 + k, WIDTH) for k in range(count)]


def watched(watcher, model, batches, loss=loss_of, *, weights=None, compared=False, **backward):
    """The squared norms of one window's samples."""
    watcher.start_window(compared=compared)
    weights = weights or [1.0] * len(batches)
    for x, weight in zip(batches, weights, strict=True):
        value = loss(model, x) * weight
        watcher.start_sample()
        value.backward(**backward)
        watcher.end_sample(len(x), weight)
    assert watcher.stop_window() == sum(weights)
    return watcher.sq_norms
