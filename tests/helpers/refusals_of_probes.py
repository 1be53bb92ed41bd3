"""Everything that can be wrong in a measurement at fixed parameters or by branching, and what brings it about."""

from __future__ import annotations

import functools
import tempfile
import time
from pathlib import Path

import torch
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from torch import nn
from torch.utils.data import DataLoader

from lightning_bsscale.cli.probe import _from_config
from lightning_bsscale.critical_batch import ProbeError
from lightning_bsscale.critical_batch.branch_file import BranchFile
from lightning_bsscale.critical_batch.checkpoint import BranchingPoint, branching_point
from lightning_bsscale.critical_batch.measure import _all_offsets, _Branches
from lightning_bsscale.critical_batch.plan import plan_branches
from lightning_bsscale.critical_batch.trainers import Trainers, load_weights
from lightning_bsscale.critical_batch.training_data import TrainingData
from lightning_bsscale.functional import measure_noise_scale
from lightning_bsscale.report.page import make_page
from lightning_bsscale.theory.branching import critical_batch
from tests.helpers.refusals import Case, Said, command
from tests.helpers.refusals_of_training import CASES, by_hand
from tests.helpers.training import QUIET, Regression, regression_loader

BATCH = torch.ones(4, 3)


def measure(loss_fn=lambda model, batch: model(batch).mean(), model=None, batches=(BATCH, BATCH)):
    measure_noise_scale(model or nn.Linear(3, 1), batches, loss_fn)


def changes_a_parameter(model, batch):
    loss = model(batch).mean()
    with torch.no_grad():
        model.bias += 1
    return loss


def plan_of(*multiples):
    return plan_branches(Regression(), BATCH, 1, multiples, None)[0]


def trainers(module=None, val=None, ckpt_path=None, monitor=None, **options):
    held_out = DataLoader(RandomDataset(32, 8)) if val is None else val
    return Trainers(module or BoringModel(), held_out, None, {**QUIET, **options}, ckpt_path, monitor, 0)


def in_folder(use):
    """Adds a case: this function, with a folder."""

    @functools.wraps(use)
    def run():
        with tempfile.TemporaryDirectory() as folder:
            use(Path(folder))

    CASES.append(Case(run, error=(ProbeError, ValueError)))


@in_folder
def two_probes_with_one_file(folder):
    for seed in (0, 1):
        BranchFile(folder / "probe.jsonl", {"seed": seed})


@in_folder
def no_time_is_left(folder):
    file = BranchFile(folder / "probe.jsonl", {})
    file.add(0, 4.0, loss=1.0, seconds=60.0, data="")
    run = _Branches(None, None, plan_of(1, 2), BranchingPoint(1), None, None, file)
    _all_offsets(run, None, time.monotonic(), 5.0, print)


@in_folder
def a_file_of_weights(folder):
    torch.save(Regression().state_dict(), folder / "weights.pt")
    trainers(ckpt_path=folder / "weights.pt")


@in_folder
def a_config_without_a_model(folder):
    (folder / "config.yaml").write_text("seed_everything: 1")
    _from_config(folder / "config.yaml")


@in_folder
def a_config_without_data(folder):
    (folder / "config.yaml").write_text(
        "model: {class_path: lightning.pytorch.demos.boring_classes.BoringModel}\ntrainer: {logger: false}"
    )
    _from_config(folder / "config.yaml")


CASES += [
    Case(lambda: measure(model=nn.ReLU())),
    Case(lambda: measure(batches=[BATCH])),
    Case(lambda: measure(lambda model, batch: model(batch))),
    Case(lambda: measure(changes_a_parameter), error=(RuntimeError,)),
    Case(lambda: critical_batch([16, 8], 2.0, [[1.0, 1.0]] * 2)),
    Case(lambda: critical_batch([8, 16], 2.0, [[1.0, 1.0]])),
    Case(lambda: critical_batch([8, 16], 2.0, [[1.0, 1.0]] * 2)),
    Case(lambda: branching_point({"callbacks": {"BatchSizeScaler": {"schema": 1}}}, 4, 1), error=(ProbeError,)),
    Case(lambda: plan_of(2, 1), error=(ProbeError,)),
    Case(lambda: plan_of(1, 1.3), error=(ProbeError,)),
    Case(lambda: TrainingData([], 0).first(), error=(ProbeError,)),
    Case(lambda: (data := TrainingData(iter([BATCH]), 0)).first() is data.part(0, 1), error=(ProbeError,)),
    Case(lambda: trainers(val=[]).limit_held_out(8), error=(ProbeError,)),
    Case(lambda: trainers(ckpt_path="nowhere.ckpt"), error=(ProbeError,)),
    Case(lambda: trainers(devices=2).branch([BATCH], 1, 1.0), error=(ProbeError,)),
    Case(lambda: trainers(by_hand()).branch([*regression_loader(4)], 1, 1.0), error=(ProbeError,)),
    Case(lambda: trainers(monitor="accuracy").held_out_loss(None), "'accuracy' nothing", error=(ProbeError,)),
    Case(lambda: load_weights(Regression(), {"state_dict": {}}), error=(ProbeError,)),
    Case(lambda: make_page([])),
    Case(lambda: command("probe", "--task", "task"), error=(Said,)),
    Case(lambda: command("probe", "--task", "nowhere:task"), error=(Said,)),
    Case(lambda: command("probe", "--task", "builtins:dict"), "{}", error=(Said,)),
    Case(lambda: command("probe", "--config", "nowhere.yaml"), error=(Said,)),
]
