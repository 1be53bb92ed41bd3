"""A window computed in micro-batches of any size: the same steps as plain accumulation, to rounding."""

import random
import warnings
from contextlib import nullcontext

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsscale.callbacks.trainer import timing
from lightning_bsscale.theory import size_search
from tests.helpers.expected_warnings import CANNOT_MEASURE, CKPT_PATH, MID_EPOCH
from tests.helpers.random_windows import Examples, assert_same_steps, program, trained
from tests.helpers.training import (
    ByStep,
    Regression,
    fit,
    gradient_scaler,
    regression_loader,
    run_of,
    scripted,
)

pytestmark = [
    CANNOT_MEASURE,
    MID_EPOCH,
    CKPT_PATH,
    pytest.mark.filterwarnings("ignore:.*the tensors in a batch.*"),
    pytest.mark.filterwarnings("ignore:.*dropped the last.*"),
    pytest.mark.filterwarnings("ignore:.*is longer than the data.*"),
]


@pytest.mark.parametrize("seed", range(40))
def test_random_programs_make_the_steps_of_plain_accumulation(seed, monkeypatch):
    loader, settings, options, regrouped, net = program(seed)
    plain = trained(loader, settings, {**options, "split": False, "max_micro_batch_size": None}, **net)
    times = random.Random(seed)
    monkeypatch.setattr(size_search, "TIMES_NEEDED", 2)
    monkeypatch.setattr(timing.RowTimes, "take", lambda self: (times.random(), 1))
    found = trained(loader, settings, {**options, **regrouped, "policy": ByStep(options["policy"].batches)}, **net)
    assert_same_steps(found, plain)
    # What an epoch's early end dropped was never computed, where it had been put aside.
    if not run_of(plain[1]).lost_loader_batches:
        epochs, wanted = ([v["loss_epoch"] for _, v in ran[3].logged if "loss_epoch" in v] for ran in (found, plain))
        assert epochs == pytest.approx(wanted, rel=1e-12)
        assert sum(found[0].sizes) == sum(plain[0].sizes)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(40, 300))
def test_many_random_programs(seed, monkeypatch):
    test_random_programs_make_the_steps_of_plain_accumulation(seed, monkeypatch)


@pytest.mark.parametrize("returns", ["loss", "dict"])
def test_what_is_reported_adds_up_to_the_windows_mean(returns):
    options = dict(policy=ByStep([8, 24]), warmup=0, memory=1.0, max_batch_size=24, lr_rule="none")
    loader = DataLoader(Examples(96, "tuple"), batch_size=8)
    settings = dict(max_epochs=1, precision="64-true")
    plain = trained(loader, settings, {**options, "split": False}, returns=returns)
    options |= dict(policy=ByStep([8, 24]), max_micro_batch_size=100, measure_every=1)
    found = trained(loader, settings, options, returns=returns)
    windows = [1, 3, 1, 3, 1, 3]
    assert found[0].sizes == [4, 4, 16, 8] * 3  # a window of one in halves, one of three in two and one
    assert found[0].outputs.count(0.0) == 3
    ends = [sum(windows[: n + 1]) for n in range(len(windows))]
    for begin, end in zip([0, *ends], ends, strict=False):
        assert sum(found[0].outputs[begin:end]) == pytest.approx(sum(plain[0].outputs[begin:end]))


@pytest.mark.parametrize("none_at", [(5,), (0, 3), range(4, 20, 4)], ids=["one", "first", "half"])
def test_none_of_a_micro_batch_leaves_out_all_of_it(none_at):
    """As with accumulation, the window's divisor counts what was left out."""
    options = dict(policy=ByStep([16]), warmup=0, memory=1.0, max_batch_size=16, lr_rule="none", split=False)
    loader, settings = DataLoader(Examples(160, "tuple"), batch_size=8), dict(max_epochs=1, precision="64-true")
    settings["accumulate_grad_batches"] = 2
    both = {index for one in none_at for index in (one & ~1, one | 1)}  # a gathered micro-batch bears the second index
    plain = trained(loader, settings, options, none_at=both)
    options |= dict(policy=ByStep([16]), max_micro_batch_size=16, measure_every=10**6)
    found = trained(loader, settings, options, none_at=both)
    for ours, wanted in zip(found[0].parameters(), plain[0].parameters(), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-12)


class Stops(pl.Callback):
    def __init__(self, at, how):
        self.at, self.how = at, how

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == self.at:
            if self.how == "stop":
                trainer.should_stop = True
            else:
                raise ZeroDivisionError("on purpose")


@pytest.mark.parametrize("how", ["stop", "exception"])
def test_what_was_put_aside_when_training_ends_is_dropped_and_nothing_is_left(how):
    module, scaler = Regression(), scripted(32, max_micro_batch_size=100)
    callbacks, loader = [scaler, Stops(4, how)], regression_loader(80)
    with pytest.raises(ZeroDivisionError) if how == "exception" else nullcontext():
        fit(module, loader, callbacks, max_epochs=1)
    assert scaler.examples_seen == 4
    assert run_of(scaler).lost_loader_batches == (4 if how == "stop" else 0)


def test_with_a_gradient_scaler_and_in_bfloat16_the_steps_are_the_same():
    for precision, tolerance in ((gradient_scaler(), 1e-3), (dict(precision="bf16-mixed"), 3e-2)):
        weights = []
        for largest in (None, 100):
            module = Regression(lambda p: torch.optim.SGD(p, lr=0.05), hidden=5)
            scaler = scripted(8, 16, 32, max_micro_batch_size=largest, split=largest is not None, measure_every=2)
            fit(module, regression_loader(400), [scaler], max_epochs=1, **precision)
            weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
        torch.testing.assert_close(*weights, rtol=tolerance, atol=tolerance)
        assert not torch.equal(*weights)


def test_own_functions_join_and_split():
    calls = []

    def merge(batches):
        calls.append(("merge", len(batches)))
        return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))

    def split(batch, start, stop):
        calls.append(("split", start, stop))
        return tuple(part[start:stop] for part in batch)

    functions = dict(merge_fn=merge, split_fn=split, batch_size_fn=lambda batch: 10)
    scaler = scripted(10, 30, max_micro_batch_size=8, split=True, measure_every=1, **functions)
    fit(Regression(), regression_loader(40), [scaler], max_epochs=1)
    assert calls[:2] == [("split", 0, 2), ("split", 2, 4)]
    assert ("merge", 2) in calls
    assert [made.window_examples for made in scaler.history[:3]] == [20, 20, 30]  # each half counts 10 here


class Counts(Regression):
    """Counts its forward passes."""

    def training_step(self, batch, batch_idx):
        self.sizes = [*getattr(self, "sizes", []), len(batch[0])]
        return super().training_step(batch, batch_idx)


def test_a_compiled_model_is_compiled_a_few_times_for_many_sizes():
    compiled = []

    def backend(graph, examples):
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    module = Counts()
    module.net = torch.compile(module.net, backend=backend)
    scaler = scripted(*range(8, 200, 8), max_micro_batch_size=72, split=True, measure_every=4)
    fit(module, regression_loader(4096, batch_size=8), [scaler], max_epochs=1)
    torch._dynamo.reset()
    assert len(set(module.sizes)) > 6
    assert len(compiled) <= 3


class TokenMean(Regression):
    """Its loss is a mean over the rows that are not padding, whose targets are negative."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return ((self.net(x) - y) ** 2)[y[:, 0] >= 0].mean()


@pytest.mark.parametrize("options", [dict(split=True), dict(max_micro_batch_size=3), dict(max_micro_batch_size=64)])
@pytest.mark.parametrize("is_told", [True, False])
def test_a_mean_over_tokens_keeps_plain_accumulations_weights(options, is_told):
    torch.manual_seed(0)
    x, y = torch.randn(160, 8, dtype=torch.float64), torch.rand(160, 2, dtype=torch.float64)
    y[torch.rand(160) < 0.4] = -1
    y[80:84] = -1  # half of a loader batch is nothing but padding

    def weights(**options):
        module = TokenMean()
        counts = dict(batch_size_fn=lambda batch: int((batch[1][:, 0] >= 0).sum()), measure_every=1)
        scaler = scripted(*(2 * n for n in (1, 1, 1, 2, 4, 3)), **{**counts, "max_micro_batch_size": None, **options})
        fit(module, DataLoader(TensorDataset(x, y), batch_size=8), [scaler], max_epochs=1, precision="64-true")
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    told = dict(loss_is_mean_over="batch_size_fn") if is_told else {}
    assert torch.allclose(weights(**options, **told), weights(), rtol=1e-12, atol=1e-14) == is_told


@pytest.mark.clock
def test_the_search_finds_a_size_and_a_resumed_run_keeps_it(tmp_path):
    """A device on which every forward pass costs the same, whatever its size."""
    clock = [0.0]

    class Costly(Regression):
        def training_step(self, batch, batch_idx):
            clock[0] += 1.0
            self.sizes.append(len(batch[0]))
            return super().training_step(batch, batch_idx)

    def run(**settings):
        module, scaler = Costly(), scripted(64, max_micro_batch_size="auto", measure_every=1, max_batch_size=64)
        module.sizes = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("time.perf_counter", lambda: clock[0])
            trainer = fit(module, regression_loader(6400), [scaler], **{"max_epochs": 1, **settings})
        return module, scaler, trainer

    module, scaler, trainer = run()
    search = run_of(scaler).search
    assert (search.size, search.ended) == (32, None)  # measured windows are halves of 64: it waits for a larger batch
    assert module.sizes[-4] == 32
    path = tmp_path / "saved.ckpt"
    trainer.save_checkpoint(path)
    module, scaler, _ = run(ckpt_path=path, max_epochs=2)
    assert module.sizes[0] == 32
    assert run_of(scaler).search == search


@pytest.mark.parametrize("why", ["deterministic", "dry run", "batch norm"])
def test_nothing_is_searched_where_it_must_not_be(why):
    module = Regression()
    if why == "batch norm":
        module.net = nn.Sequential(module.net, nn.BatchNorm1d(2))
    options = dict(max_micro_batch_size="auto", dry_run=why == "dry run")
    scaler = scripted(16, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(module, regression_loader(80), [scaler], max_epochs=1, deterministic=why == "deterministic")
    torch.use_deterministic_algorithms(False)
    assert run_of(scaler).search is None
