"""Running out of memory: the step is computed again in smaller micro-batches, and nothing else changes."""

import random
import subprocess
import sys
import warnings
import weakref
from dataclasses import replace
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import default_collate

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from lightning_bsscale.callbacks.trainer.batches import rows_of
from lightning_bsscale.replay import replay
from tests.helpers import random_windows
from tests.helpers.expected_warnings import CANNOT_MEASURE, CKPT_PATH, MID_EPOCH
from tests.helpers.processes import script_environment
from tests.helpers.training import ByStep, KeepSteps, Saves, fit, gradient_scaler, regression_loader, run_of

SMALLER = "memory ran out in a micro-batch of"
pytestmark = [
    CANNOT_MEASURE,
    CKPT_PATH,
    MID_EPOCH,
    pytest.mark.filterwarnings(f"ignore:.*{SMALLER}"),
    pytest.mark.filterwarnings("ignore:.*has BatchNorm1d.*"),
    pytest.mark.filterwarnings("ignore:.*differ in their first dimension.*"),
    pytest.mark.filterwarnings("ignore:.*cannot be split.*"),
]

ERRORS = {
    "cuda": lambda: torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"),
    "host": lambda: MemoryError("std::bad_alloc"),
}


class FailsBackward(torch.autograd.Function):
    """The layers after it have their gradient by then, those before it do not."""

    @staticmethod
    def forward(ctx, x, fail):
        ctx.fail = fail
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        ctx.fail()


class Small(pl.LightningModule):
    """A device that holds `room` examples at a time, from the call `since` on; what does not fit fails at one place."""

    def __init__(
        self, place="forward", room=10**6, since=0, error="cuda", returns="loss", norm=None, more=False, times=99
    ):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last = nn.Linear(8, 5), nn.Sequential(nn.Tanh(), norm or nn.Identity(), nn.Linear(5, 2))
        self.more, self.times = more, times  # whether a batch holds what is no example; how often it fails
        self.place, self.room, self.since, self.returns, self.make = place, room, since, returns, ERRORS[error]
        self.sizes, self.raised, self.grads, self.losses, self.rates = [], [], [], [], []

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [*batch, torch.ones(3)] if self.more else batch

    def training_step(self, batch, batch_idx):
        x, y = batch[:2]
        fails = len(x) > self.room and len(self.sizes) >= self.since and len(self.raised) < self.times
        self.sizes.append(len(x))
        hidden = self.first(x)
        if fails and self.place == "forward":
            self.fail()
        if fails and self.place == "backward":
            hidden = FailsBackward.apply(hidden, self.fail)
        loss = nn.functional.mse_loss(self.last(hidden), y)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("most", x.max(), on_step=False, on_epoch=True, reduce_fx="max")
        if fails and self.place == "logged":
            self.fail()
        return {"loss": loss, "other": x.sum()} if self.returns == "dict" else loss

    def fail(self):
        self.raised.append(self.make())
        raise self.raised[-1]

    def on_before_optimizer_step(self, optimizer):
        self.grads.append(torch.cat([p.grad.flatten() for p in self.parameters()]))
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [{"scheduler": StepLR(optimizer, 3, 0.9), "interval": "step"}]


def run(model=None, settings=None, callbacks=(), examples=205, **options):
    """Windows of one, two and four loader batches of 8, the last one of 5."""
    scaler = BatchSizeScaler(
        **{"policy": ByStep([8, 16, 32, 32]), "warmup": 0, "memory": 1.0, "max_batch_size": 32, "lr_rule": "sqrt"}
        | options
    )
    logger, module = KeepSteps(), Small(**(model or {}))
    settings = {"precision": "64-true", "max_epochs": 2, "logger": logger, "log_every_n_steps": 1, **(settings or {})}
    trainer = fit(module, regression_loader(examples, batch_size=8), [scaler, *callbacks], **settings)
    return module, scaler, trainer, logger


def assert_same(found, wanted, rtol=1e-10, atol=1e-12):
    """Steps, weights, rates, schedule, examples, decisions, and what the user logged."""
    for ours, theirs in zip(found[0].grads, wanted[0].grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)
    for ours, theirs in zip(found[0].parameters(), wanted[0].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)
    assert found[0].rates == pytest.approx(wanted[0].rates)
    assert found[2].global_step == wanted[2].global_step
    assert found[1].examples_seen == wanted[1].examples_seen
    assert [r.batch_size for r in found[1].decisions] == [r.batch_size for r in wanted[1].decisions]
    for key in ("loss_epoch", "most"):
        values = [[value for _, value in one[3].points(key)] for one in (found, wanted)]
        assert values[0] == pytest.approx(values[1], rel=max(rtol, 1e-12))
    assert [step for step, _ in found[3].points("loss_step")] == [step for step, _ in wanted[3].points("loss_step")]


@pytest.fixture(scope="module")
def without_error():
    return run()


@pytest.mark.parametrize("place", ["forward", "backward", "logged"])
@pytest.mark.parametrize(
    "options", [{}, {"max_micro_batch_size": 32}, {"max_micro_batch_size": 20, "measure_every": 1}]
)
@pytest.mark.parametrize(("room", "since", "limit"), [(7, 0, 4), (7, 9, 4), (1, 0, 1), (3, 20, 2)])
def test_the_same_steps_in_smaller_micro_batches(without_error, place, options, room, since, limit):
    found = run(dict(place=place, room=room, since=since), **options)
    assert_same(found, without_error)
    assert run_of(found[1]).row_limit == limit
    retried = len(found[0].raised)
    assert 1 <= retried <= 5  # halved at once, and not tried again in later windows
    assert sum(found[0].losses) > 0


@pytest.mark.parametrize("place", ["forward", "backward"])
def test_gathered_loader_batches_fail_together_and_fit_alone(without_error, place):
    found = run(dict(place=place, room=16), max_micro_batch_size=32, measure_every=10**6)
    assert_same(found, without_error)
    assert len(found[0].raised) == 1
    assert run_of(found[1]).row_limit == 16
    assert max(found[0].sizes[-12:]) == 16


@pytest.mark.parametrize(
    ("model", "settings", "rtol"),
    [
        (dict(returns="dict"), dict(gradient_clip_val=0.05), 1e-10),
        (dict(error="cpu"), dict(gradient_clip_val=0.01, gradient_clip_algorithm="value"), 1e-10),
        (dict(error="host"), dict(accumulate_grad_batches=2), 1e-10),
        ({}, dict(precision="bf16-mixed"), 5e-2),
        ({}, "gradient scaler", 2e-3),
    ],
    ids=["dict", "cpu", "host", "bf16", "gradient scaler"],
)
@pytest.mark.parametrize("place", ["forward", "backward"])
def test_whatever_else_is_set(model, settings, rtol, place):
    settings = {"precision": None, **gradient_scaler()} if settings == "gradient scaler" else settings
    wanted = run({}, settings)
    assert_same(run(dict(model, place=place, room=6, since=5), settings), wanted, rtol, 1e-12 if rtol < 1e-5 else rtol)


def test_halves_that_were_held_together_are_tried_apart_first(without_error):
    """The loss that is reported is that of both, so both forward passes come before the first backward pass."""
    found = run(dict(place="backward", room=3, times=1), measure_every=1)
    assert found[0].sizes[:4] == [4, 4, 4, 4]
    assert run_of(found[1]).row_limit == 4
    assert_same(found, without_error)


@pytest.mark.parametrize("is_measured", [True, False])
@pytest.mark.parametrize("returns", ["loss", "dict"])
def test_nothing_of_the_failed_attempt_is_held_when_the_next_begins(returns, is_measured):
    graphs, alive = [], []

    class Fails:
        """Held by a graph, and by nothing else."""

        def __init__(self, fail):
            self.fail = fail

        def __call__(self):
            self.fail()

    class Watched(Small):
        def training_step(self, batch, batch_idx):
            self.raised.clear()  # an error holds what led to it
            alive.append(sum(graph() is not None for graph in graphs))
            if len(batch[0]) <= self.room:
                return super().training_step(batch, batch_idx)
            fails = Fails(self.fail)
            graphs.append(weakref.ref(fails))
            loss = self.last(FailsBackward.apply(self.first(batch[0]), fails)).sum()
            return {"loss": loss} if self.returns == "dict" else loss

    options = dict(measure_every=1 if is_measured else 10**6)
    scaler = BatchSizeScaler(warmup=0, **options)
    fit(Watched(room=2, returns=returns), regression_loader(32, batch_size=8), [scaler], max_epochs=1)
    assert len(graphs) >= 2
    assert max(alive[len(graphs) :]) == 0


def test_only_what_was_damaged_is_not_measured(without_error):
    """Forward passes that failed damage no sample; a backward pass that failed damages its window."""
    every = dict(measure_every=1, max_micro_batch_size=8)  # windows of one loader batch in halves, which fit
    wanted = {made.optimizer_steps: made for made in run(**every)[1].history}
    steps = {}
    for place in ("forward", "backward"):
        scaler = run(dict(place=place, room=4, since=4), **every)[1]
        for made in scaler.history:
            assert made.window_examples == wanted[made.optimizer_steps].window_examples
            if made.optimizer_steps == 1:
                assert made.trace == pytest.approx(wanted[1].trace)
        steps[place] = {made.optimizer_steps for made in scaler.history}
    assert steps["forward"] == set(wanted)
    assert set(wanted) - steps["backward"] == {3}


@pytest.mark.parametrize("place", ["forward", "backward"])
def test_at_size_one_the_error_is_the_users(place):
    with pytest.raises(RuntimeError) as caught:
        run(dict(place=place, room=0, since=6))
    assert caught.value.__context__ is caught.value.__cause__ is None
    assert not getattr(caught.value, "__notes__", None)
    assert str(caught.value) == str(ERRORS["cuda"]())


def test_the_error_at_size_one_is_the_same_object():
    models = []

    class Keeps(pl.Callback):
        def setup(self, trainer, pl_module, stage):
            models.append(pl_module)

    with pytest.raises(RuntimeError) as caught:
        run(dict(room=0), callbacks=[Keeps()])
    assert caught.value is models[0].raised[-1]
    assert models[0].sizes[-1] == 1


@pytest.mark.timeout(30)
@pytest.mark.parametrize("empty", [2, 4])
@pytest.mark.parametrize("place", ["forward", "backward"])
def test_no_part_of_nothing_that_is_counted(empty, place):
    """Where the halves would not both hold something, the error is the user's, and says why."""
    x, y = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(64, 2)
    x.view(8, 8, 8)[:, :empty, 0] = -100.0
    count = lambda batch: int((batch[0][:, 0] > -50).sum())  # noqa: E731
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)
    module = Small(place=place, room=4, since=2)
    scaler = BatchSizeScaler(policy=ByStep([1]), batch_size_fn=count, warmup=0, memory=1.0, split=True)
    if empty == 2:
        fit(module, loader, [scaler], max_epochs=1)
        assert module.sizes[-2:] == [4, 4]
        assert run_of(scaler).row_limit == 4
        return
    with pytest.raises(RuntimeError) as caught:
        fit(module, loader, [scaler], max_epochs=1)
    assert caught.value is module.raised[-1]
    if sys.version_info >= (3, 11):
        assert any("batch_size_fn" in note for note in caught.value.__notes__)


class Other(pl.Callback):
    has_raised = False

    def on_before_backward(self, *args):
        if not self.has_raised:
            self.has_raised = True
            raise RuntimeError("of another kind")


@pytest.mark.parametrize(
    ("model", "options", "note"),
    [
        (dict(norm=nn.BatchNorm1d(5)), {}, "split=True"),
        ({}, dict(split=False), "split='auto'"),
        (dict(more=True), {}, "split_fn"),
        ({}, dict(dry_run=True), "nothing"),
        ({}, "monitor", "nothing"),
    ],
    ids=["batch norm", "whole", "no parts", "dry run", "monitor"],
)
def test_where_nothing_smaller_may_be_tried_the_error_passes(model, options, note):
    monitor = [GradientNoiseScaleMonitor()]
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        run(dict(model, room=7), **options) if options != "monitor" else fit(
            Small(room=7), regression_loader(80, batch_size=8), monitor, max_epochs=1
        )
    if sys.version_info >= (3, 11):
        assert note in "".join(getattr(caught.value, "__notes__", ["nothing"]))


def test_batch_norm_is_split_if_that_is_asked_for():
    found = run(dict(norm=nn.BatchNorm1d(5), room=7, since=4), split=True)
    assert max(found[0].sizes[-8:]) <= 4


def test_another_error_is_not_touched():
    with pytest.raises(RuntimeError, match="of another kind"):
        run(callbacks=[Other()])


def test_it_is_said_once_and_how_to_make_it_permanent():
    said = []
    for model, options in ((dict(room=3, since=4, place="backward"), {}), (dict(room=3), dict(max_micro_batch_size=2))):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run(model, **options)
        said.append([str(warning.message) for warning in caught if SMALLER in str(warning.message)])
    (first,), second = said
    assert "of 8 examples" in first
    assert "max_micro_batch_size=2" in first
    assert not second


@pytest.mark.parametrize("place", ["forward", "backward"])
def test_journal_and_checkpoint_hold_the_limit(tmp_path, place):
    model, options = dict(place=place, room=3, since=12), dict(measure_every=2, max_micro_batch_size=16)
    path, saved = tmp_path / "run.jsonl", tmp_path / "saved.ckpt"
    whole = run(model, callbacks=[Saves(saved, None)], record=path, **options)
    replayed = list(replay(path, policy=ByStep([8, 16, 32, 32])))
    assert all(one.agrees for one in replayed)
    assert replayed[-1].kind == "end" or replayed[-2].kind == "end"
    assert [one.recorded.row_limit for one in replayed if one.kind == "end"] == [2]
    resumed = run(model | dict(since=0), dict(ckpt_path=saved), **options)
    # Lightning loads the weights before it converts the model to float64.
    assert not resumed[0].raised  # it begins with what the first run has learnt
    assert max(resumed[0].sizes) == 2
    for ours, theirs in zip(resumed[0].parameters(), whole[0].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    states = [replace(run_of(one[1]), measured=None, decisions=None, pending=None) for one in (resumed, whole)]
    assert states[0] == replace(states[1], is_resumed=states[0].is_resumed)


@pytest.mark.clock
def test_the_search_ends_where_memory_does():
    options = dict(policy=ByStep([64]), max_batch_size=64, max_micro_batch_size="auto", measure_every=1, lr_rule="none")
    with pytest.MonkeyPatch.context() as patch:
        module = Small(room=20)
        # A device on which every forward pass takes a second.
        patch.setattr("time.perf_counter", lambda: float(len(module.sizes)))
        fit(
            module,
            regression_loader(6400, batch_size=8),
            [scaler := BatchSizeScaler(warmup=0, **options)],
            max_epochs=1,
        )
    search = run_of(scaler).search
    assert (search.size, search.ended) == (16, "larger ones do not fit into memory")
    assert len(module.raised) == 1


@pytest.mark.parametrize("room", [16, 8])
def test_joining_may_run_out_of_memory_too(without_error, room):
    def merge(batches):
        if sum(len(batch[0]) for batch in batches) > room:
            raise ERRORS["cpu"]()
        return [torch.cat(parts) for parts in zip(*batches, strict=True)]

    found = run(max_micro_batch_size=32, merge_fn=merge)
    assert_same(found, without_error)
    assert run_of(found[1]).row_limit == room


def test_torchs_own_join_is_not_taken_for_one_that_cannot_be_joined(without_error, monkeypatch):
    def cat(tensors, *args):
        if tensors[0].ndim == 2 and sum(map(len, tensors)) > 8:
            raise ERRORS["cpu"]()
        return torch.concatenate(tensors, *args)

    monkeypatch.setattr("lightning_bsscale.callbacks.trainer.batches.torch.cat", cat)
    with pytest.warns(UserWarning, match=SMALLER):
        found = run(max_micro_batch_size=32)
    monkeypatch.undo()
    assert run_of(found[1]).row_limit == 8


def test_loader_batches_are_kept_until_the_step_and_no_longer():
    alive, at_step, refs = [], [], []

    class Counts(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            refs.append(weakref.ref(batch[0]))

        def on_train_batch_end(self, *args):
            alive.append(sum(ref() is not None for ref in refs))

        def on_before_optimizer_step(self, *args):
            at_step.append(sum(ref() is not None for ref in refs))

    run(callbacks=[Counts()], policy=ByStep([32]), settings=dict(max_epochs=1))
    assert max(alive) <= 5  # with one that Lightning has loaded ahead
    assert max(at_step) <= 2


class FailsAtRandom(random_windows.Net):
    """Runs out of memory in some of the micro-batches of more than one example, anywhere."""

    def __init__(self, seed, **options):
        super().__init__(**options)
        self.rng, self.often, self.failed = random.Random(seed), 0.05 + 0.25 * (seed % 2), 0

    def fail(self):
        self.failed += 1
        raise ERRORS["cuda"]()

    def training_step(self, batch, batch_idx):
        place = self.rng.choice(["forward", "backward", "logged"]) if self.rng.random() < self.often else None
        place = place if rows_of(batch) > 1 else None
        if place == "forward":
            self.fail()
        output = super().training_step(batch, batch_idx)
        if place == "logged":
            self.fail()
        if place is None:
            return output
        is_dict = isinstance(output, dict)
        loss = FailsBackward.apply(output["loss"] if is_dict else output, self.fail)
        return {**output, "loss": loss} if is_dict else loss


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(n, marks=pytest.mark.nightly) for n in range(8, 200))])
def test_random_programs_with_random_errors(seed, monkeypatch):
    loader, settings, options, regrouped, net = random_windows.program(seed)
    plain = random_windows.trained(loader, settings, {**options, "split": False}, **net)
    monkeypatch.setattr(random_windows, "Net", partial(FailsAtRandom, seed))
    options = {**options, **regrouped, "policy": ByStep(options["policy"].batches)}
    found = random_windows.trained(loader, settings, options, **net)
    random_windows.assert_same_steps(found, plain)
    if not run_of(plain[1]).lost_loader_batches:
        epochs = [[value for _, value in ran[3].points("loss_epoch")] for ran in (found, plain)]
        assert epochs[0] == pytest.approx(epochs[1], rel=1e-12)


class Moving(list):
    """A batch of the user's own, which counts how often it is moved to a device."""

    moved = 0

    def to(self, device, **kwargs):
        self.moved += 1
        return self


@pytest.mark.parametrize(
    ("place", "room", "moved"),
    [
        ("forward", 8, [1, 1, 1, 1]),
        ("backward", 8, [1, 1, 1, 1]),
        ("forward", 7, [2, 2, 2, 1]),
        ("backward", 7, [4, 4, 2, 1]),
    ],
)
def test_once_memory_has_run_out_what_is_kept_leaves_the_device(place, room, moved):
    """One step of four loader batches, the third of which is the first not to fit."""
    batches, model = [], Small(place, room, since=2)
    loader = regression_loader(32, batch_size=8)
    loader.collate_fn = lambda items: batches.append(Moving(default_collate(items))) or batches[-1]
    options = dict(
        split_fn=lambda batch, start, stop: [part[start:stop] for part in batch],
        batch_size_fn=lambda batch: len(batch[0]),
    )
    scaler = BatchSizeScaler(warmup=0, **options)
    fit(model, loader, [scaler], max_epochs=1, accumulate_grad_batches=4)
    assert [batch.moved for batch in batches] == moved


SCRIPT = """
import resource, sys, warnings
import lightning.pytorch as pl, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from lightning_bsscale import BatchSizeScaler

class Wide(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def training_step(self, batch, batch_idx):
        x = batch[0].expand(-1, 4096, -1)  # 64 examples of 256 KiB make activations of 16 MiB
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x.square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

torch.set_num_threads(1)
with_scaler, more = sys.argv[1] == "with", int(sys.argv[2])
scaler = BatchSizeScaler(warmup=0.5)
trainer = pl.Trainer(
    accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False, callbacks=[scaler] if with_scaler else [],
)
loader = DataLoader(TensorDataset(torch.randn(256, 1, 16)), batch_size=64)
Wide().training_step([torch.randn(1, 1, 16)], 0).backward()  # libraries load what they need at first use
mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + more * 2**20,) * 2)
trainer.fit(Wide(), loader)
print("steps", trainer.global_step, "examples", scaler.examples_seen if with_scaler else 0)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS counts on Linux only")
def test_a_script_completes_in_less_address_space_than_its_batch_needs(tmp_path):
    def ran(scaler):
        command = [sys.executable, "-c", SCRIPT, scaler, "100"]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=120, env=script_environment(), cwd=tmp_path
        )

    without = ran("without")
    assert without.returncode == 1
    assert "can't allocate memory" in without.stderr
    completed = ran("with")
    assert completed.returncode == 0, completed.stderr[-2000:]
    assert "steps 4 examples 256" in completed.stdout
    assert SMALLER in completed.stderr


ON_A_GPU = dict(accelerator="gpu", devices=1)


@pytest.mark.gpu
@pytest.mark.parametrize("place", ["forward", "backward"])
def test_on_a_gpu_with_real_errors(place):
    """Activations of more than the process may allocate: kept by the forward pass, or made by the backward pass."""

    class Keeps(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, now):
            ctx.rows, ctx.now = len(x), now
            ctx.kept = torch.empty(len(x), 2**24, device=x.device) if now else None  # 64 MiB an example
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            kept = ctx.kept if ctx.now else torch.empty(ctx.rows, 2**24, device=grad.device)
            return grad + 0 * kept[:, :1], None

    class Large(Small):
        def training_step(self, batch, batch_idx):
            self.sizes.append(len(batch[0]))
            hidden = Keeps.apply(self.first(batch[0]), place == "forward")
            return nn.functional.mse_loss(self.last(hidden), batch[1])

    trained, total = [], torch.cuda.get_device_properties(0).total_memory
    for share in (1.0, 300 * 2**20 / total):  # a loader batch of 8 needs 512 MiB
        module = Large()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(share)
        try:
            fit(module, regression_loader(205, batch_size=8), [BatchSizeScaler()], max_epochs=1, **ON_A_GPU)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        trained.append(module)
    assert max(trained[0].sizes) == 8
    assert max(trained[1].sizes[-20:]) <= 4
    for ours, theirs in zip(*(module.grads for module in trained), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
