"""Branches through the real Trainer: what each one sees, from which state, and that a stopped probe goes on."""

import json
import math
import re

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_bsscale import BatchSizeScaler, Milestones
from lightning_bsscale.critical_batch import ProbeError, measure, measure_critical_batch
from lightning_bsscale.critical_batch.branch_file import BranchFile
from lightning_bsscale.critical_batch.checkpoint import BranchingPoint
from lightning_bsscale.critical_batch.measure import _Branches
from lightning_bsscale.critical_batch.plan import plan_branches
from tests.helpers.training import QUIET, Broken, Regression, regression_loader

SEEN: list[dict] = []


class Recording(torch.optim.SGD):
    """Notes the learning rate of every update."""

    def step(self, closure=None):
        loss = closure()
        SEEN[-1]["rates"].append(self.param_groups[0]["lr"])
        super().step()
        return loss


class Module(pl.LightningModule):
    """A regression with dropout that notes the examples of every training step, and its weights at the start."""

    def __init__(self, metric="val_loss", norm=False):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(
            nn.Linear(8, 6), nn.BatchNorm1d(6) if norm else nn.Tanh(), nn.Dropout(0.1), nn.Linear(6, 2)
        )
        self.metric = metric

    def on_train_start(self):
        weights = torch.cat([p.detach().flatten() for p in self.parameters()])
        buffers = [state["momentum_buffer"] for state in self.optimizers().state.values()]
        SEEN.append(dict(examples=[], rates=[], weights=weights.clone(), momentum=len(buffers)))

    def training_step(self, batch, batch_idx):
        if SEEN:  # the noise scale is measured before any training
            SEEN[-1]["examples"].append(batch[0][:, 0].tolist())
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, prog_bar=True)
        return {"loss": loss}

    def validation_step(self, batch, batch_idx):
        self.log(self.metric, nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer = Recording(self.parameters(), lr=0.02, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Plain(Module):
    """The same without dropout, whose random numbers depend on how long a training is."""

    def __init__(self):
        super().__init__()
        self.net[2] = nn.Identity()


@pytest.fixture
def checkpoint(tmp_path):
    SEEN.clear()
    trainer = pl.Trainer(**QUIET, max_steps=5, num_sanity_val_steps=0)
    trainer.fit(module := Module(), regression_loader(80), regression_loader(8))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    SEEN.clear()
    return tmp_path / "last.ckpt", torch.cat([p.detach().flatten() for p in module.parameters()])


def probe(tmp_path, **changed):
    lines = []
    given = dict(
        module=Module(),
        train_loader=DataLoader(regression_loader(200).dataset, batch_size=4, shuffle=True),
        val_loader=regression_loader(64, batch_size=32),
        record=tmp_path / "probe.jsonl",
        trainer_options={**QUIET, "gradient_clip_val": 5.0},
        lr_rule="linear",
        offsets=2,
        examples=128,
        say=lines.append,
    )
    return measure_critical_batch(**given | changed), lines


def branches_seen():
    """Trainings that made steps; the noise scale's and the rule's make none."""
    return [seen for seen in SEEN if seen["rates"]]


def test_branches_differ_in_batch_and_learning_rate_alone(tmp_path, checkpoint):
    path, weights = checkpoint
    module, state = Module(), torch.get_rng_state()
    before = [p.detach().clone() for p in module.parameters()]
    found, lines = probe(tmp_path, module=module, ckpt_path=path)
    seen = branches_seen()
    assert len(seen) == 10
    for one, multiple in zip(seen, [0.5, 1, 2, 4, 8] * 2, strict=True):
        assert torch.equal(one["weights"], weights)
        assert one["momentum"] == 4
        # The rate of the checkpoint, in the middle of its warmup, times the rule's factor; no scheduler moves it.
        assert one["rates"] == pytest.approx([0.02 * 0.6 * multiple] * round(32 / multiple))
    for offset in (seen[:5], seen[5:]):
        streams = [[x for part in one["examples"] for x in part] for one in offset]
        assert all(stream == streams[0] for stream in streams)
        assert len(streams[0]) == 128
    assert seen[0]["examples"] != seen[5]["examples"]
    assert [len(part) for part in seen[0]["examples"]] == [2] * 64
    # Nothing of the caller's has changed.
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(*pair) for pair in zip(module.parameters(), before, strict=True))
    assert "log" not in vars(module)
    assert found.batch_size == 4
    assert [row.batch_size for row in found.answer.rows] == [2, 4, 8, 16, 32]
    assert re.match(r"forecast: 2 offsets of 5 branches over 128 examples each, about \d+ s to go", lines[1])
    assert re.match(r"offset 1 of 2 done after \d+ s, about \d+ s to go", lines[2])
    value = found.answer.value if found.answer.resolved and found.noise.resolved else math.nan
    assert found.ratio.value == pytest.approx(value / found.noise.noise_scale, nan_ok=True)
    json.dumps(found.to_json(), allow_nan=False)


def test_branches_begin_at_the_batch_and_the_learning_rate_of_the_last_step(tmp_path, checkpoint):
    """A checkpoint's optimizer holds the user's learning rate, to which the scaler's factor belongs."""
    path, _ = checkpoint
    made = torch.load(path, weights_only=False)
    scaler = BatchSizeScaler(policy=Milestones({0.25: 2, 0.5: 4}), lr_rule="linear", warmup=0)
    pl.Trainer(**{**QUIET, "callbacks": [scaler], "max_epochs": 1}).fit(Regression(), regression_loader(160))
    torch.save({**made, "callbacks": {scaler.state_key: scaler.state_dict()}}, path)
    found, _ = probe(tmp_path, ckpt_path=path, multiples=(1, 2))
    assert [row.batch_size for row in found.answer.rows] == [16, 32]
    assert found.batch_size == 16
    same, twice = branches_seen()[:2]
    assert same["rates"] == pytest.approx([0.02 * 0.6 * 4] * 8)
    assert twice["rates"] == pytest.approx([0.02 * 0.6 * 8] * 4)
    assert "grown from 4" in found.to_json()["notes"][0]


def test_from_a_start_the_learning_rate_is_the_initial_one(tmp_path):
    SEEN.clear()
    probe(tmp_path, trainer_options={**QUIET, "accumulate_grad_batches": 2}, multiples=(0.5, 1, 2))
    first, second = branches_seen()[:2]
    assert first["rates"] == pytest.approx([0.01] * 32)
    assert second["rates"] == pytest.approx([0.02] * 16)
    assert torch.equal(first["weights"], second["weights"])
    assert first["momentum"] == 0


def test_a_stopped_probe_goes_on_with_the_same_result(tmp_path, monkeypatch):
    whole, _ = probe(tmp_path / "whole")
    steps, real = [], Module.on_train_start

    def dies(self):
        steps.append(self)
        if len(steps) == 6:
            raise Broken
        real(self)

    monkeypatch.setattr(Module, "on_train_start", dies)
    with pytest.raises(Broken):
        probe(tmp_path)
    monkeypatch.setattr(Module, "on_train_start", real)
    written = (tmp_path / "probe.jsonl").read_text()
    (tmp_path / "probe.jsonl").write_text(written + '{"branch": [1, 4')  # torn by the kill
    SEEN.clear()
    resumed, _ = probe(tmp_path)
    assert len(branches_seen()) == 10 - written.count('"branch"') < 10
    assert repr(resumed.answer) == repr(whole.answer)  # NaN is not equal to itself
    assert resumed.noise == whole.noise
    with pytest.raises(ProbeError, match="holds branches of another probe"):
        probe(tmp_path, multiples=(1, 2))


def test_a_loader_batch_that_cannot_be_split_is_the_first_multiple(tmp_path):
    found, _ = probe(tmp_path, module=Module(norm=True))
    assert [row.batch_size for row in found.answer.rows] == [4, 8, 16, 32, 64]
    assert "cannot be split" in found.notes[0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(minutes=1e-9, offsets=None), "3 offsets need about .* allow more minutes"),
        (dict(module=Module(metric="accuracy")), "logs accuracy: name the metric by `monitor`"),
        (dict(monitor="loss"), "must log 'loss', but it logs val_loss"),
        (dict(train_loader=[]), "training loader yields nothing"),
        (dict(val_loader=[]), "validation loader yields nothing"),
        (dict(ckpt_path="missing.ckpt"), "missing.ckpt cannot be read: No such file"),
        (dict(multiples=(1, 1.3)), "1.3 x 1 is not"),
        (dict(multiples=(2, 1)), "multiples must be"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(tmp_path, changed, message):
    with pytest.raises(ProbeError, match=message):
        probe(tmp_path, **changed)


def test_the_smallest_branch_is_looked_at_where_a_critical_batch_would_have_its_loss(tmp_path):
    """Each look is the held-out loss of a branch that ends there."""
    given = dict(multiples=(0.5, 1, 2), trainer_options=QUIET, module=Plain())
    probe(tmp_path, **given)
    lines = [json.loads(line) for line in (tmp_path / "probe.jsonl").read_text().splitlines()]
    (settings,) = (line["settings"] for line in lines if "settings" in line)
    assert settings["looks"] == [48, 40]
    first = next(line for line in lines if line.get("branch") == [0, 2.0])
    for place, examples in enumerate((96, 80)):
        out = tmp_path / str(examples)
        probe(out, **given, examples=examples)
        shorter = [json.loads(line) for line in (out / "probe.jsonl").read_text().splitlines()]
        end = next(line["loss"] for line in shorter if line.get("branch") == [0, 2.0])
        assert first["earlier"][place] == pytest.approx(end, rel=1e-6)
    assert first["loss"] < min(first["earlier"])


def test_a_branch_that_was_held_up_is_not_believed_in_the_forecast(tmp_path):
    plan, _ = plan_branches(Module(), next(iter(regression_loader(4))), 1, (1, 2, 4), 16)
    lines = BranchFile(tmp_path / "probe.jsonl", {})
    run = _Branches(None, None, plan, BranchingPoint(1), None, None, lines)
    lines.add(0, 4.0, 1.0, 10.0, "")
    assert run.seconds() == 30  # the larger ones take no longer than the first
    lines.add(0, 8.0, 1.0, 900.0, "")
    lines.add(0, 16.0, 1.0, 6.0, "")
    assert run.seconds() == 26
    lines.add(1, 4.0, 1.0, 700.0, "")
    lines.add(2, 4.0, 1.0, 12.0, "")
    lines.add(1, 8.0, 1.0, 9.0, "")
    lines.add(2, 8.0, 1.0, 8.0, "")
    assert run.seconds() == 12 + 9 + 6


class WithAdam(Module):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.02)


def test_adams_learning_rate_follows_a_branch_by_the_square_root(tmp_path, monkeypatch):
    """The scaler's steeper power would raise the loss of a branch, which has no decay that takes it back."""
    factors = []

    def branch(self, batches, accumulate, factor, looks=()):
        factors.append(factor)
        return 0.5, [0.6 for _ in looks]

    monkeypatch.setattr(measure.Trainers, "branch", branch)
    probe(tmp_path, module=WithAdam(), lr_rule="auto", multiples=(1, 4, 16), examples=64)
    assert factors == pytest.approx([1, 2, 4] * 2)


def test_the_clock_alone_decides_the_number_of_offsets(tmp_path, monkeypatch):
    """Each branch takes ten seconds, so two of them fit fifteen times into five minutes."""
    now = [0.0]

    def branch(self, batches, accumulate, factor, looks=()):
        now[0] += 10
        return 0.5, [0.6 for _ in looks]

    monkeypatch.setattr(measure.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(measure.Trainers, "branch", branch)
    found, lines = probe(tmp_path, multiples=(1, 2), examples=8, offsets=None, minutes=5)
    assert found.answer.offsets == 15
    assert lines[1].startswith("forecast: 14 offsets")  # the first branch is made by then
    assert [line for line in lines if line.startswith("offset 8 of about 15 done after 2.7 min, about 2.3 min to go")]
