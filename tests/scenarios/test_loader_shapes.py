"""Loaders and batches of every shape: each loader batch in exactly one step, examples counted right."""

import dataclasses
import itertools
import math
import warnings
from collections import namedtuple

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import CombinedLoader, data
from torch.utils.data import DataLoader, IterableDataset

from lightning_bsscale import GradientNoiseScaleMonitor
from lightning_bsscale.callbacks.trainer import loaders
from tests.helpers.expected_warnings import CANNOT_MEASURE, WITHOUT_VALIDATION, said_of
from tests.helpers.known_noise import KnownNoise, gradients
from tests.helpers.training import KeepSteps, Numbers, OneHot, UnsizedNumbers, fit, gradient_scaler, scripted

pytestmark = [
    CANNOT_MEASURE,
    WITHOUT_VALIDATION,
    pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined"),
]


class ByIndex(OneHot):
    """Loader batch i of an epoch is known by its index, whatever it holds."""

    def __init__(self, epochs, epoch_length):
        super().__init__(epochs * epoch_length, epoch_length)

    def training_step(self, batch, batch_idx):
        return self.weight[self.epoch * self.epoch_length + batch_idx]


def windows_of(*loader_batches, size=3, **options):
    """Windows of so many loader batches of `size` examples, one after the other, each measured."""
    return scripted(*(size * n for n in loader_batches), **{"measure_every": 1, "lr_rule": "none", **options})


def watching_all(**options):
    return GradientNoiseScaleMonitor(measure_every=1, memory=1.0, **options)


def check_exact(loader, sizes, *, epochs=2, callback=None):
    """Trains with windows of 2, 1, 3, 4, 2, 5 … loader batches of so many examples, and looks at every step."""
    module, logger = ByIndex(epochs, len(sizes)), KeepSteps()
    scaler = callback or windows_of(1, 3, 4, 2, 5, 3, size=sizes[0])
    settings = dict(max_epochs=epochs, accumulate_grad_batches=2, logger=logger, log_every_n_steps=1)
    trainer = fit(module, loader, [scaler], **settings)
    steps = module.steps
    assert [i for step in steps for i in step] == [*range(epochs * len(sizes))]
    for step in steps:
        assert list(step.values()) == pytest.approx([1 / len(step)] * len(step))
    assert trainer.global_step == len(steps)
    assert [step for step, _ in logger.logged] == [*range(len(steps))]
    examples = [sum(sizes[i % len(sizes)] for i in step) for step in steps]
    assert [metrics["bsscale/examples_seen"] for _, metrics in logger.logged] == [*itertools.accumulate(examples)]
    for made in scaler.history:
        # The gradients are orthogonal and of length one: ‖G‖² = 0, whatever the window.
        assert made.grad_sq == pytest.approx(0, abs=1e-6)
        assert made.window_examples == examples[made.optimizer_steps - 1]
    return scaler


def check_monitor(loader, sizes):
    """The monitor changes nothing, and counts what it sees."""
    one, bare, monitor = ByIndex(2, len(sizes)), ByIndex(2, len(sizes)), watching_all(split=False)
    settings = dict(max_epochs=2, accumulate_grad_batches=2, log_every_n_steps=1)
    fit(bare, loader(), **settings)
    trainer = fit(one, loader(), [monitor], **settings)
    assert one.steps == bare.steps
    assert trainer.callback_metrics["bsscale/examples_seen"] == 2 * sum(sizes)
    assert all(made.grad_sq == pytest.approx(0, abs=1e-6) for made in monitor.history)
    assert len(monitor.history) == sum(len(step) > 1 for step in one.steps) > 0


# ---------------------------------------------------------------- loaders


class SizedStream(UnsizedNumbers):
    def __len__(self):
        return self.length


UNEQUAL = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]


class Shaped:
    """No DataLoader at all: loader batches of these sizes and of any shape."""

    def __init__(self, shape=lambda x: x, sizes=UNEQUAL):
        self.shape, self.sizes = shape, sizes

    def __iter__(self):
        return (self.shape(torch.zeros(size, 1)) for size in self.sizes)

    def __len__(self):
        return len(self.sizes)


class PlainUnsized:
    def __iter__(self):
        return iter(Shaped())


LOADERS = {
    "sized": (lambda: DataLoader(Numbers(33), batch_size=3), [3] * 11),
    "last one smaller": (lambda: DataLoader(Numbers(31), batch_size=3), [3] * 10 + [1]),
    "drop_last": (lambda: DataLoader(Numbers(35), batch_size=3, drop_last=True), [3] * 11),
    "sized, worker": (lambda: DataLoader(Numbers(31), batch_size=3, num_workers=1), [3] * 10 + [1]),
    "unsized": (lambda: DataLoader(UnsizedNumbers(31), batch_size=3), [3] * 10 + [1]),
    # Each of the two has its own ragged end: 16 = 5 × 3 + 1 and 15 = 5 × 3, taken in turns.
    "unsized, two workers": (lambda: DataLoader(UnsizedNumbers(31), batch_size=3, num_workers=2), [3] * 10 + [1]),
    "iterable with a length": (lambda: DataLoader(SizedStream(31), batch_size=3), [3] * 10 + [1]),
    "no DataLoader": (lambda: Shaped(sizes=[3] * 11), [3] * 11),
    "no DataLoader, unsized, unequal": (PlainUnsized, UNEQUAL),
}


@pytest.mark.parametrize("name", LOADERS)
def test_every_loader_gives_exact_windows(name):
    make, sizes = LOADERS[name]
    scaler = check_exact(make(), sizes)
    assert {made.accumulate_grad_batches for made in scaler.history} >= {2, 3, 4, 5}
    check_monitor(make, sizes)


def combined(mode):
    """Loaders of 4 and of 11 loader batches, of 3 and of 2 examples."""
    return CombinedLoader({"a": DataLoader(Numbers(33), batch_size=3), "b": DataLoader(Numbers(8), batch_size=2)}, mode)


@pytest.mark.parametrize(("mode", "length"), [("min_size", 4), ("max_size", 11), ("max_size_cycle", 11)])
@pytest.mark.parametrize("given", ["count", "default"])
def test_combined_loaders(mode, length, given):
    """The default counts the first loader's; a function counts what it likes."""
    if given == "default":
        loaders._warned_types.clear()
        with pytest.warns(UserWarning, match="first dimension"):
            check_exact(combined(mode), [3] * length)
    else:
        sizes = [3 + 2 * (mode != "max_size" or index < 4) for index in range(length)]

        def count(batch):
            return sum(len(part) for part in batch.values() if part is not None)

        check_exact(combined(mode), sizes, callback=windows_of(1, 3, 4, 2, 5, 3, size=5, batch_size_fn=count))


# ---------------------------------------------------------------- unsized ends


class Moves(ByIndex):
    """Each weight ends at minus the weight with which its loader batch entered a step."""

    def __init__(self, fused):
        super().__init__(2, 11)
        self.fused = fused

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0, fused=self.fused)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scale", [None, 2.0**10])
def test_the_last_window_of_an_unsized_loader_has_weight_one_over_k(fused, scale):
    """Also where `.grad` holds the scaled gradient. A dry run leaves Lightning's own divisor as it is."""

    def ends(*callbacks):
        module = Moves(fused)
        settings = gradient_scaler(scale) if scale else {}
        fit(module, PlainUnsized(), callbacks, max_epochs=2, accumulate_grad_batches=4, **settings)
        return (-module.weight.detach()).tolist()

    bare = [1 / 4] * 22
    assert ends() == ends(scripted(dry_run=True)) == ends(GradientNoiseScaleMonitor()) == bare
    one_epoch = [1 / 4] * 8 + [1 / 3] * 3
    assert ends(scripted()) == pytest.approx(one_epoch * 2)


# ---------------------------------------------------------------- batches


Pair = namedtuple("Pair", "x y")


@dataclasses.dataclass
class Graphs:
    """A batch of graphs: Lightning looks into the fields of a dataclass."""

    names: list
    nodes: torch.Tensor


class Words:
    """Holds no tensor; Lightning cannot know its size."""

    def __init__(self, words):
        self.words = words

    def __len__(self):
        return len(self.words)


BATCHES = {
    "tensor": lambda x: x,
    "list": lambda x: [x, x],
    "tuple": lambda x: (x, x),
    "namedtuple": lambda x: Pair(x, x),
    "dict": lambda x: {"x": x, "y": x},
    "nested": lambda x: {"name": "of the batch", "parts": [{"x": (x, x)}, {"y": x}]},
    "with strings and numbers": lambda x: (["a"] * len(x), x, 0.5, None),
    "with a scalar": lambda x: (x, torch.tensor(3.0)),
    "dataclass": lambda x: Graphs(names=["a"] * len(x), nodes=x),
    "nested dataclass": lambda x: {"graphs": [Graphs(names=[], nodes=x)]},
}


@pytest.mark.parametrize("shape", BATCHES)
@pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size` from an ambiguous collection")
def test_the_default_is_lightnings_own(shape):
    for batch in Shaped(BATCHES[shape]):
        assert loaders.batch_size_of(batch, None) == data.extract_batch_size(batch)


def test_lightnings_warning_of_an_ambiguous_batch_is_not_repeated():
    """Its advice is for `self.log`. Ours is said once, whatever the sizes, and names the way out."""
    loader = Shaped(lambda x: {"x": x, "anchors": torch.zeros(7)})
    loaders._warned_types.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_exact(loader, UNEQUAL)
    assert not said_of("ambiguous collection", caught)
    (ours,) = said_of("first dimension", caught)
    assert "batch_size_fn=lambda batch" in ours
    # The twin: with Lightning's own function, each size would be warned of anew.
    data.warning_cache.clear()
    with pytest.warns(UserWarning, match="ambiguous collection") as caught:
        _ = [data.extract_batch_size(batch) for batch in loader]
    assert len(caught) == len(set(UNEQUAL))
    loaders._warned_types.clear()
    scaler = windows_of(1, 3, 4, 2, size=UNEQUAL[0], batch_size_fn=lambda batch: len(batch["x"]))
    check_exact(loader, UNEQUAL, callback=scaler)
    assert not loaders._warned_types


def test_a_batch_that_can_be_read_only_once_is_left_to_the_training_step():
    batch = iter([torch.zeros(3)])
    with pytest.raises(MisconfigurationException, match="contains no tensor"):
        loaders.batch_size_of(batch, None)
    assert len(next(batch)) == 3


def test_arrays_are_not_walked_through():
    class Array:
        __array__ = None

        def __iter__(self):
            pytest.fail("read number by number")

    with pytest.raises(MisconfigurationException, match="contains no tensor"):
        loaders.batch_size_of([Array()], None)
    assert loaders.batch_size_of([Array(), torch.zeros(4)], None) == 4


# ---------------------------------------------------------------- batch_size_fn


@pytest.mark.parametrize("make", [scripted, watching_all])
def test_what_lightning_cannot_count_is_refused_and_a_function_counts_it(make):
    loader = Shaped(lambda x: Words(["word"] * len(x)))
    module = ByIndex(1, 11)
    with pytest.raises(MisconfigurationException, match=r"Words.*batch_size_fn=len"):
        fit(module, loader, [make()], max_epochs=1)
    assert module.steps == []
    module, one = ByIndex(1, 11), make(batch_size_fn=len)
    fit(module, loader, [one], max_epochs=1, accumulate_grad_batches=2)
    assert one.history[0].window_examples == sum(UNEQUAL[:2])


def test_tokens():
    """Loader batches of so many tokens: budget, limits and the noise scale are counted in them."""
    loader = Shaped(lambda x: {"ids": torch.ones(4, len(x)), "mask": torch.ones(4, len(x))})
    scaler = windows_of(1, 3, 4, 2, 5, 3, size=12, batch_size_fn=lambda batch: int(batch["mask"].sum()))
    scaler = check_exact(loader, [4 * size for size in UNEQUAL], callback=scaler)
    assert scaler.examples_seen == 8 * sum(UNEQUAL)
    assert scaler.decisions[0].limits.granularity == 12
    # 11 loader batches of the first one's size: the loader's own sizes say nothing about tokens.
    assert scaler.decisions[0].situation.total_examples == 2 * 11 * 12


@pytest.mark.parametrize("make", [scripted, watching_all])
@pytest.mark.parametrize("fails_at", [1, 2, 5])
def test_an_exception_in_batch_size_fn_comes_through_unchanged(make, fails_at):
    calls = []

    class TheUsersOwn(Exception):
        pass

    def count(batch):
        calls.append(batch)
        if len(calls) == fails_at:
            raise TheUsersOwn("no labels")
        return len(batch)

    callbacks = [make(batch_size_fn=count)]
    with pytest.raises(TheUsersOwn, match="no labels") as raised:
        fit(ByIndex(1, 11), Shaped(), callbacks, max_epochs=1, accumulate_grad_batches=3)
    assert raised.value.__cause__ is None
    assert len(calls) == fails_at


# ---------------------------------------------------------------- unequal loader batches


@pytest.mark.parametrize("callback", ["scaler", "monitor"])
def test_unequal_loader_batches_are_unbiased(callback):
    """Sizes 2 to 8 at random, windows of 2, 3 and 5, and a loader that ends by surprise: within 3 standard errors."""
    truth, windows = 64.0, 400
    sizes = torch.randint(2, 9, (3 * windows + 1,), generator=torch.Generator().manual_seed(11)).tolist()
    xs = gradients(sum(sizes), seed=12)

    class Unequal(IterableDataset):
        def __iter__(self):
            return iter([part] for part in xs.split(sizes))

    one = windows_of(*[3, 5, 2, 2, 3] * windows, size=sizes[0]) if callback == "scaler" else watching_all()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*first loader batch")
        fit(KnownNoise(), DataLoader(Unequal(), batch_size=None), [one], max_epochs=1, accumulate_grad_batches=3)
    noise = one.noise_scale
    counts = {made.accumulate_grad_batches for made in one.history}
    assert counts == ({2, 3, 5} if callback == "scaler" else {3})
    assert noise.trace == pytest.approx(64.0, abs=3 * math.sqrt(noise.trace_variance))
    assert noise.grad_sq == pytest.approx(1.0, abs=3 * math.sqrt(noise.grad_sq_variance))
    assert math.sqrt(noise.trace_variance) < 0.04 * 64
    assert noise.low < truth < noise.high
    # The twin: the arithmetic mean of the sizes in place of the harmonic one is off by more than that.
    mean = sum(made.window_examples for made in one.history) / sum(made.accumulate_grad_batches for made in one.history)
    harmonic = len(sizes) / sum(1 / size for size in sizes)
    assert abs(noise.trace * mean / harmonic - 64) > 3 * math.sqrt(noise.trace_variance)
