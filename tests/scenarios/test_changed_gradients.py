"""What is measured where something changes `.grad` between backward and step: the truth, or nothing, and it is said."""

import math
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from lightning_bsscale.gradients import comparison
from lightning_bsscale.theory.measured import COMPARED_EVERY
from lightning_bsscale.theory.moments import window_moments
from tests.helpers.expected_warnings import FOLDER_NOT_EMPTY, NOT_THE_MEAN, said_of
from tests.helpers.training import Regression, assert_same_weights, fit, regression_loader

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WINDOWS, ACCUMULATE, SIZE, HALF = 40, 4, 4, 32
ALL, FIRST = torch.ones(2 * HALF), torch.cat([torch.ones(HALF), torch.zeros(HALF)])


@pytest.fixture
def disturbed(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import disturbed_gradients

    return disturbed_gradients


def loader_of(disturbed, windows=WINDOWS):
    return DataLoader(TensorDataset(disturbed.examples(windows * ACCUMULATE * SIZE)), batch_size=SIZE)


def monitor():
    return GradientNoiseScaleMonitor(measure_every=1, memory=1.0)


def train(module, disturbed=None, *, loader=None, watching=None, before=(), windows=WINDOWS, **settings):
    watching, loader = watching or monitor(), loader or loader_of(disturbed, windows)
    settings = {"accumulate_grad_batches": ACCUMULATE, "max_epochs": 1, **settings}
    fit(module, loader, [*before, watching], **settings)
    return watching


def refused(*args, **settings):
    with pytest.warns(UserWarning, match=NOT_THE_MEAN) as caught:
        watching = train(*args, **settings)
    assert len(said_of(NOT_THE_MEAN, caught)) == 1
    return watching


def changes_nothing(make, disturbed, watching):
    """The same training with it and without it ends at the same weights."""
    modules = []
    for callbacks in ([], [watching]):
        torch.manual_seed(0)
        modules.append(make())
        fit(modules[-1], loader_of(disturbed), callbacks, max_epochs=1, accumulate_grad_batches=ACCUMULATE)
    assert_same_weights(*modules)


def by_hand(disturbed, weights_of=lambda window, micro_batch: ALL, windows=WINDOWS):
    """Each window's moments; `weights_of` says what each element of a micro-batch's gradient is multiplied by."""
    found = []
    for index, window in enumerate(disturbed.examples(windows * ACCUMULATE * SIZE).double().split(ACCUMULATE * SIZE)):
        gradients = [part.mean(0) * weights_of(index, k) for k, part in enumerate(window.split(SIZE))]
        mean = torch.stack(gradients).mean(0)
        norms = [float(gradient.square().sum()) for gradient in gradients]
        found.append(window_moments(norms, float(mean.square().sum()), [SIZE] * ACCUMULATE))
    return found


def assert_measured(history, expected):
    assert len(history) == len(expected)
    for made, moments in zip(history, expected, strict=True):
        assert made.trace == pytest.approx(moments.trace, rel=1e-4)
        assert made.grad_sq == pytest.approx(moments.grad_sq, rel=1e-4, abs=1e-4)


# ---------------------------------------------------------------- measured right


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("nothing", ALL),
        ("clips in its hook", ALL),
        ("zeros", ALL),
        ("early hook", 2 * ALL - FIRST),
        ("cancels to none", FIRST),
        ("cancels to zero", FIRST),
        ("freezes", FIRST),
        ("unfreezes", FIRST),
    ],
)
def test_what_the_optimizer_sees_is_measured(disturbed, name, weights):
    _, module, others, is_measured = disturbed.CASES[name]
    assert is_measured
    one = train(module(), disturbed, before=[make() for make in others])
    assert_measured(one.history, by_hand(disturbed, lambda window, micro_batch: weights))
    if name != "early hook":  # its 90 % interval, of these 40 windows, is one of the others
        assert one.noise_scale.low < disturbed.NOISE_SCALE < one.noise_scale.high


def test_a_dry_run_of_a_module_that_cancels_a_layer_is_bit_identical(disturbed):
    """And so is the scaler's own measurement, which decides."""

    class Learns(disturbed.CancelsAtFirst):
        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    scaler = BatchSizeScaler(dry_run=True, measure_every=1, memory=1.0, warmup=0)
    changes_nothing(Learns, disturbed, scaler)
    expected = by_hand(disturbed, lambda window, micro_batch: FIRST if window < WINDOWS // 4 else ALL)
    assert_measured(scaler.history, expected)


def test_an_expert_that_some_micro_batches_do_not_use_counts_as_zero_there(disturbed):
    """It requires its gradient all the time: what it adds to the mean is a mean over examples."""

    class Routes(disturbed.TwoLayers):
        def training_step(self, batch, batch_idx):
            (x,) = batch
            return self.first(x[:, :HALF]).mean() if batch_idx % 2 else self.loss(x)

    expected = by_hand(disturbed, lambda window, micro_batch: FIRST if micro_batch % 2 else ALL)
    assert_measured(train(Routes(), disturbed).history, expected)


# ---------------------------------------------------------------- refused


REFUSED = ["noise", "part of the loss", "clips", "post-accumulate", "late hook", "kept", "callback clips"]


@pytest.mark.parametrize("name", [*REFUSED, "callback scales"])
def test_what_cannot_agree_is_refused(disturbed, name):
    _, module, others, is_measured = disturbed.CASES[name]
    assert not is_measured
    one = refused(module(), disturbed, before=[make() for make in others])
    assert one.noise_scale is None
    # Every third window is as it should be: the first, and the one in which it is compared again.
    assert len(one.history) == (2 if name == "kept" else 0)


def test_without_the_comparison_it_would_be_wrong_and_resolved(disturbed, monkeypatch):
    """The twin: what is then said of half a loss that is sent through a backward pass of its own."""
    monkeypatch.setattr(comparison.Difference, "is_explained", True)
    noise = train(disturbed.SendsAPartByItself(), disturbed).noise_scale
    assert noise.resolved
    assert noise.high < disturbed.NOISE_SCALE / 10


def test_the_scaler_holds_its_batch(disturbed):
    class Learns(disturbed.SendsAPartByItself):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    scaler = BatchSizeScaler(measure_every=1, memory=1.0, warmup=0, max_batch_size=256)
    refused(Learns(), disturbed, watching=scaler)
    assert scaler.batch_size == ACCUMULATE * SIZE
    assert scaler.decisions
    assert not any(record.is_change for record in scaler.decisions)
    assert all(record.situation.noise is None for record in scaler.decisions)


def test_the_warning_names_the_parameter(disturbed):
    with pytest.warns(UserWarning, match=r"last\.weight"):
        train(disturbed.HooksWithinTheWindow(), disturbed)


class NoiseIn(pl.Callback):
    """Adds noise to the gradient in some windows, before the monitor sees the sum."""

    def __init__(self, windows):
        self.windows = windows

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_step in self.windows:
            for parameter in module.parameters():
                parameter.grad += 0.3 * torch.randn_like(parameter.grad)


def test_what_begins_later_is_found_by_the_next_comparison(disturbed):
    begins = COMPARED_EVERY + 5
    one = refused(disturbed.TwoLayers(), disturbed, before=[NoiseIn(range(begins, WINDOWS))])
    assert one.noise_scale is None
    assert len(one.history) == 2 * COMPARED_EVERY
    assert_measured(one.history[:begins], by_hand(disturbed)[:begins])


def test_measuring_begins_again_where_it_agrees_and_ends_at_the_second_time(disturbed):
    """Noise in the first 20 windows: refused in window 0, and again in 18; in 35 it agrees, which 37 knows."""
    windows = 100
    expected = by_hand(disturbed, windows=windows)
    one = refused(disturbed.TwoLayers(), disturbed, before=[NoiseIn(range(20))], windows=windows)
    again = 1 + 2 * COMPARED_EVERY
    assert_measured(one.history, [expected[again], *expected[again + 2 :]])
    assert one.noise_scale.noise_scale == pytest.approx(disturbed.NOISE_SCALE, rel=0.3)

    noise = NoiseIn([*range(20), *range(again + 10, windows)])
    one = refused(disturbed.TwoLayers(), disturbed, before=[noise], windows=windows)
    assert one.noise_scale is None
    assert len(one.history) == 1 + COMPARED_EVERY  # those until the comparison that finds it


@FOLDER_NOT_EMPTY
def test_resumed_it_stays_refused(disturbed, tmp_path):
    """The checkpoint, in window 30, knows that it was refused, and that it is compared again in windows 35 and 52."""
    save = pl.callbacks.ModelCheckpoint(tmp_path, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    settings = dict(before=[NoiseIn(range(40)), save], windows=30, max_epochs=3, enable_checkpointing=True)
    first = refused(disturbed.TwoLayers(), disturbed, **settings)
    resumed = train(disturbed.TwoLayers(), disturbed, **settings, ckpt_path=tmp_path / "epoch=0.ckpt")
    expected, again = by_hand(disturbed, windows=30) * 3, 1 + 3 * COMPARED_EVERY
    for one in (first, resumed):
        assert_measured(one.history, [expected[again], *expected[again + 2 :]])


@pytest.mark.parametrize("accumulate", [4, 16])
def test_rounding_is_no_change(disturbed, accumulate):
    """In bfloat16 throughout, `.grad` has three digits."""

    class Rough(disturbed.TwoLayers):
        def training_step(self, batch, batch_idx):
            return self.loss(batch[0].bfloat16())

    settings = dict(precision="bf16-true", accumulate_grad_batches=accumulate)
    assert len(train(Rough(), disturbed, **settings).history) == WINDOWS * ACCUMULATE // accumulate


class Shapes(pl.LightningModule):
    """Parameters of many kinds: convolutions in another memory format, sparse, complex, 0-d, empty, tied, unused."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
        self.rows = nn.Embedding(10, 8, sparse=True)
        self.wave = nn.Parameter(torch.randn(8, dtype=torch.complex64))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.square = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.square.weight
        self.unused = nn.Linear(8, 8)

    def training_step(self, batch, batch_idx):
        (x,) = batch
        image = x[:, :48].reshape(-1, 3, 4, 4).contiguous(memory_format=torch.channels_last)
        hidden = self.convolution(image).mean((2, 3)) + self.rows((x[:, 48:52].abs() * 4).long() % 10).mean(1)
        hidden = self.tied(torch.tanh(self.square(hidden).t()).t()) * self.scale + self.empty.sum()
        return (hidden * self.wave).abs().square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def test_parameters_of_all_kinds_agree(disturbed):
    assert len(train(Shapes(), disturbed).history) == WINDOWS


@pytest.mark.parametrize("name", ["convolution.weight", "wave", "scale", "square.weight"])
def test_a_change_in_one_parameter_of_any_kind_is_found(disturbed, name):
    class Changes(Shapes):
        def on_after_backward(self):
            self.get_parameter(name).grad *= 1.5

    assert refused(Changes(), disturbed, windows=10).noise_scale is None


def test_a_window_in_which_everything_is_cancelled_is_not_measured(disturbed):
    class CancelsAll(disturbed.TwoLayers):
        def on_after_backward(self):
            if self.global_step % 2:
                self.zero_grad()

    assert_measured(train(CancelsAll(), disturbed).history, by_hand(disturbed)[::2])


# ---------------------------------------------------------------- not initialised yet


class Lazy(pl.LightningModule):
    """Two layers of which the second learns its shape in the first forward pass."""

    def __init__(self, only=False):
        super().__init__()
        torch.manual_seed(1)
        self.before = nn.Identity() if only else nn.Linear(2 * HALF, 8)
        self.lazy = nn.LazyLinear(1)

    def make(self, x):
        if isinstance(self.lazy, nn.LazyLinear):
            torch.manual_seed(2)
            self.lazy(self.before(x))

    def training_step(self, batch, batch_idx):
        self.make(batch[0])
        return self.lazy(torch.tanh(self.before(batch[0]))).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize("only", [False, True])
@pytest.mark.parametrize("make", [monitor, lambda: BatchSizeScaler(dry_run=True, measure_every=1, memory=1.0)])
def test_parameters_that_do_not_exist_yet(disturbed, make, only):
    """Nothing else changes, and from the second window on they are measured as those of a module that has them."""
    watching = make()
    changes_nothing(lambda: Lazy(only), disturbed, watching)
    torch.manual_seed(0)
    eager = Lazy(only)
    eager.make(torch.zeros(1, 2 * HALF))
    alike = train(eager, disturbed, watching=make())
    found = [(made.examples_seen, made.trace, made.grad_sq) for made in watching.history]
    expected = [(made.examples_seen, made.trace, made.grad_sq) for made in alike.history]
    assert found[-(WINDOWS - 1) :] == [pytest.approx(made, rel=1e-4) for made in expected[1:]]
    assert len(found) == (WINDOWS - 1 if only else WINDOWS)
    assert all(math.isfinite(made.trace) for made in watching.history)


# ---------------------------------------------------------------- what is easily overlooked


class Quantiles(pl.LightningModule):
    """Scalars under an absolute error: their gradients are +1 and -1, and often add up to zero over a window."""

    def __init__(self):
        super().__init__()
        self.points = nn.ParameterList([nn.Parameter(torch.tensor(0.2 * i - 1)) for i in range(16)])

    def training_step(self, batch, batch_idx):
        return sum((batch - point).abs().mean() for point in self.points)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize(("batch_size", "accumulate"), [(1, 4), (2, 2)])
def test_gradients_that_add_up_to_zero_by_chance_are_measured(batch_size, accumulate):
    """Leaving such a parameter out would choose windows by their outcome: the trace would be far too low."""
    examples = torch.randn(2048, generator=torch.Generator().manual_seed(0))
    module, loader = Quantiles(), DataLoader(examples, batch_size=batch_size)
    own = torch.stack([torch.sign(point.detach() - examples) for point in module.points])
    one = train(module, loader=loader, accumulate_grad_batches=accumulate)
    assert one.noise_scale.trace == pytest.approx(own.var(1).sum().item(), rel=0.1)


class Words(pl.LightningModule):
    """An embedding of which every micro-batch uses a few rows; `change` is made to its gradient after a backward."""

    def __init__(self, change, *, sparse):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(2000, 8, sparse=sparse)
        self.others = nn.ParameterList([nn.Parameter(torch.ones(4)) for _ in range(100)])
        self.change = change

    def training_step(self, batch, batch_idx):
        target = 0.1 * batch.float().mean()
        return (self.words(batch) ** 2).mean() + sum(((other - target) ** 2).mean() for other in self.others)

    def on_after_backward(self):
        self.change(self.words.weight)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def twice(weight):
    weight.grad = weight.grad * 2


def keep_only_new_rows(weight):
    weight.grad[:-1] = 0


def words():
    """60 micro-batches of 4 words, without the last word of the table."""
    return torch.randint(1999, (240,), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("change", "sparse"), [(twice, True), (twice, False), (keep_only_new_rows, False)])
def test_a_change_to_an_embedding_is_found(change, sparse):
    batches = words()
    batches[::4] = 1999  # the new row, in every micro-batch
    module, loader = Words(change, sparse=sparse), DataLoader(batches, batch_size=4)
    assert refused(module, loader=loader).noise_scale is None


@pytest.mark.parametrize("sparse", [True, False])
def test_an_embedding_that_nobody_changes_is_measured(sparse):
    module, loader = Words(lambda weight: None, sparse=sparse), DataLoader(words(), batch_size=4)
    assert len(train(module, loader=loader).history) == 15


class AddsOnce(pl.Callback):
    """Changes `.grad` in the first micro-batch of each window only, before the monitor has looked at it."""

    def on_after_backward(self, trainer, pl_module):
        if trainer.fit_loop.epoch_loop.batch_idx % 4 == 0:
            for parameter in pl_module.parameters():
                parameter.grad += 0.5


def test_a_change_in_the_first_micro_batch_of_each_window_is_found():
    assert refused(Regression(), loader=regression_loader(400), before=[AddsOnce()]).noise_scale is None
