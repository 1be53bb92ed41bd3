"""The command `probe`: from a task or a config to one sentence, a table, a picture and a JSON file."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest

from lightning_bsscale.cli import main

ROOT = Path(__file__).parents[2]
TASK = """
import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset


def data(examples):
    generator = torch.Generator().manual_seed(examples)
    x = torch.randn(examples, 4, generator=generator)
    return TensorDataset(x, x.sum(1, keepdim=True) + torch.randn(examples, 1, generator=generator))


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 1)

    def loss(self, batch):
        return torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.02)


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(data(400), batch_size=4, shuffle=True)

    def val_dataloader(self):
        return DataLoader(data(256), batch_size=256)


def task():
    return Model(), Data().train_dataloader(), Data().val_dataloader()


def wrong():
    return Model()
"""
CONFIG = """
model: {class_path: probed_task.Model}
data: {class_path: probed_task.Data}
trainer: {accelerator: cpu, logger: false, gradient_clip_val: 10.0}
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the command in a folder with a task and a config; returns status, output and errors."""
    (tmp_path / "probed_task.py").write_text(TASK)
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(*words):
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            status = main(["probe", *words])
        return status, out.getvalue(), errors.getvalue()

    return run


SHORT = ("--offsets", "3", "--multiples", "1", "2", "4", "--examples", "32", "--lr-rule", "linear")


@pytest.mark.parametrize(
    "source", [("--task", "probed_task:task"), ("--config", "config.yaml")], ids=["task", "config"]
)
def test_one_sentence_one_table_one_picture_one_json(command, source):
    status, out, errors = command(*source, *SHORT)
    assert status == 0, errors
    found = json.loads(Path("probe.json").read_text())
    assert set(found["critical_batch_ratio"]) == {"value", "low", "high"}
    assert [row["batch_size"] for row in found["branches"]] == [4, 8, 16]
    assert found["offsets"] == 3
    assert re.match(r"(The critical batch is about|Not resolved).*noise scale", out)
    assert "worth of an example" in out.splitlines()[2]
    assert Path("probe.png").stat().st_size > 5000
    assert "forecast: 3 offsets x 3 branches" in errors
    status, again, errors = command(*source, *SHORT, "--json")
    assert json.loads(again) == found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--task", "probed_task"), "must be package.module:function"),
        (("--task", "nowhere:task"), "cannot be loaded: No module named 'nowhere'"),
        (("--task", "probed_task:wrong"), "must return (module, training loader, validation loader)"),
        (("--config", "missing.yaml"), "no such config: missing.yaml"),
        (("--task", "probed_task:task", "--ckpt", "none.ckpt"), "none.ckpt cannot be read"),
        (("--task", "probed_task:task", "--lr-rule", "cubic", *SHORT[:-2]), "lr_rule must be one of"),
    ],
)
def test_a_mistake_is_one_sentence(command, words, message):
    status, out, errors = command(*words)
    assert (status, out) == (1, "")
    assert message in errors
    assert "Traceback" not in errors


def test_the_pages_code_runs(capsys):
    text = (ROOT / "docs" / "probe.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    exec(compile(block, "docs/probe.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "the relative error asked for is reached" in printed
    assert "total, Hessian-weighted" in printed
