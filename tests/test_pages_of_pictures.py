"""The pages on loggers and pictures: their code runs on a real training, and their pictures can be drawn again."""

import re
import runpy
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from lightning.pytorch.loggers import CSVLogger

import lightning_bsscale
from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from tests.helpers.expected_warnings import CANNOT_MEASURE, FOLDER_NOT_EMPTY
from tests.helpers.training import Regression, fit, regression_loader
from tests.helpers.written_runs import write_run

ROOT = Path(__file__).parents[1]
pytestmark = [CANNOT_MEASURE, FOLDER_NOT_EMPTY]


class Validates(Regression):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", Regression.training_step(self, batch, batch_idx))


def code_of(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.M | re.S)


@pytest.mark.parametrize("page", ["loggers.md", "pictures.md"])
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logger = CSVLogger(tmp_path, name="logs", version=0)
    trained = {}
    for name, callback in (("scaler", BatchSizeScaler()), ("monitor", GradientNoiseScaleMonitor(split=False))):
        loader, val = regression_loader(64), regression_loader(8)
        fit(Validates(), loader, [callback], val=val, max_epochs=2, logger=logger if name == "scaler" else False)
        trained[name] = callback
    Path("runs/demo").mkdir(parents=True)
    write_run(Path("runs/demo/bsscale.jsonl"), 40)
    names = {"logger": logger, **trained}
    names |= {name: getattr(lightning_bsscale, name) for name in lightning_bsscale.__all__}
    blocks = code_of(page)
    assert blocks
    plt.close("all")  # a figure that another test left would be the current one
    try:
        for number, text in enumerate(blocks):
            names |= trained
            exec(compile(text, f"{page}, block {number}", "exec"), names)
        if page == "loggers.md":
            (line,) = plt.gca().lines
            assert list(line.get_xdata()) == [64, 128]  # the examples at each validation
    finally:
        plt.close("all")


def test_the_pictures_can_be_drawn_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["draw_pictures.py", "--out", str(tmp_path), "--epochs", "1"])
    try:
        runpy.run_path(str(ROOT / "docs" / "draw_pictures.py"), run_name="__main__")
    finally:
        plt.close("all")
    drawn = {path.name for path in tmp_path.iterdir()}
    page = (ROOT / "docs" / "pictures.md").read_text(encoding="utf-8")
    assert drawn == set(re.findall(r"\]\((\w+\.png)\)", page))
    assert all((ROOT / "docs" / name).exists() for name in drawn)
