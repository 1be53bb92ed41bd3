"""docs/extending.md: its policy, rule and estimator train, as a user's own and as files of the package."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import lightning as L
import pytest
import yaml
from lightning.pytorch.cli import LightningCLI

from lightning_bsscale import BatchSizeScaler
from tests.helpers.training import QUIET, KeepsRates, Regression, fit, regression_loader

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(?:# (\S+\.py)\n)?(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
(YAML,) = (text for language, _, text in BLOCKS if language == "yaml")
(SCRIPT,) = (text for language, path, text in BLOCKS if language == "python" and not path)
TRAINED = """
import json
import lightning_bsscale
from tests.helpers.training import Regression, fit, regression_loader

options = dict(policy="double_every", lr_rule="logarithmic", warmup=0, max_micro_batch_size=None)
scaler = lightning_bsscale.BatchSizeScaler(**options)
fit(Regression(), regression_loader(800), [scaler], max_epochs=1)
changes = [record.batch_size for record in scaler.decisions if record.is_change]
sums = [(one.trace, one.grad_sq) for one in scaler.history]
print(json.dumps([lightning_bsscale.__file__, changes, scaler.lr_scale, sums]))
"""


@pytest.fixture
def growth(tmp_path, monkeypatch):
    """The module that the page's first blocks make."""
    (tmp_path / "growth.py").write_text("\n".join(text for _, path, text in BLOCKS if path == "growth.py"))
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("growth")
    del sys.modules["growth"]


def model():
    return Regression(lambda parameters: KeepsRates(parameters, lr=0.05))


def assert_it_doubled_at_each_quarter(scaler, module):
    # 800 examples from a batch of 4. The last decision is taken at the end of the last window.
    changes = [record for record in scaler.decisions if record.is_change]
    assert [record.batch_size for record in changes] == [8, 16, 32, 64]
    assert [record.situation.examples_seen // 200 for record in changes] == [1, 2, 3, 4]
    used = {round(rate / 0.05, 9) for (rate,) in module.optimizers().used}
    assert used == {round(1.1**doublings, 9) for doublings in range(4)}
    assert scaler.lr_scale == pytest.approx(1.1**4)


@pytest.mark.usefixtures("growth")
def test_a_users_script(monkeypatch):
    trainer_class = L.Trainer
    monkeypatch.setattr(L, "Trainer", lambda **settings: trainer_class(**settings, **QUIET))
    names = {"L": L, "model": model(), "train_loader": regression_loader(800)}
    exec(compile(SCRIPT, "docs/extending.md", "exec"), names)
    assert_it_doubled_at_each_quarter(names["scaler"], names["model"])


@pytest.mark.usefixtures("growth")
def test_a_users_yaml_file():
    config = yaml.safe_load(YAML)
    args = {"trainer": {**QUIET, **config["trainer"]}}
    with mock.patch.object(sys, "argv", ["main.py"]):  # else LightningCLI warns of pytest's own arguments
        cli = LightningCLI(Regression, run=False, args=args, save_config_callback=None, seed_everything_default=False)
    module = model()
    cli.trainer.fit(module, regression_loader(800))
    (scaler,) = (callback for callback in cli.trainer.callbacks if type(callback).__name__ == "BatchSizeScaler")
    assert_it_doubled_at_each_quarter(scaler, module)


def test_a_file_and_a_line_in_a_table(tmp_path, growth):
    """In a copy of the package, since that is what a contributor changes."""
    shutil.copytree(ROOT / "lightning_bsscale", tmp_path / "lightning_bsscale", ignore=shutil.ignore_patterns("*.pyc"))
    changed = [(language, tmp_path / path, text) for language, path, text in BLOCKS if path.startswith("lightning_")]
    assert len(changed) == 6
    for language, path, text in changed:
        if language == "python":
            path.write_text(text)
            continue
        for hunk in text.split("@@\n"):
            lines = hunk.splitlines(keepends=True)
            before = "".join(line[1:] for line in lines if line[0] != "+")
            source = path.read_text()
            assert source.count(before) == 1
            path.write_text(source.replace(before, "".join(line[1:] for line in lines if line[0] != "-")))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-c", TRAINED]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr[-3000:]
    file, changes, factor, sums = json.loads(run.stdout.splitlines()[-1])
    assert Path(file).is_relative_to(tmp_path)
    assert changes == [8, 16, 32, 64]
    assert factor == pytest.approx(1.1**4)
    # The package's own estimator sees the same gradients.
    scaler = BatchSizeScaler(policy=growth.DoubleEvery(), lr_rule=growth.Logarithmic(), warmup=0)
    fit(Regression(), regression_loader(800), [scaler], max_epochs=1)
    assert len(sums) == len(scaler.history) > 10
    for found, one in zip(sums, scaler.history, strict=True):
        assert found == pytest.approx((one.trace, one.grad_sq), rel=1e-4)
