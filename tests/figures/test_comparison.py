"""Several runs in one picture: of callbacks, journals and columns of numbers."""

import itertools
import math

import matplotlib.pyplot as plt
import pytest

from lightning_bsscale import GradientNoiseScaleMonitor
from lightning_bsscale.figures import plot_comparison
from lightning_bsscale.journal import Journal
from lightning_bsscale.theory.events import WindowEvent
from lightning_bsscale.theory.losses import LossEvent
from tests.helpers.expected_warnings import CANNOT_MEASURE
from tests.helpers.training import Regression, fit, regression_loader, scripted

pytestmark = CANNOT_MEASURE


@pytest.fixture(autouse=True)
def no_figure_is_left():
    yield
    plt.close("all")


class Logs(Regression):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", Regression.training_step(self, batch, batch_idx))


def trained(callback, **settings):
    settings = dict(max_epochs=3, log_every_n_steps=2) | settings
    fit(Logs(), regression_loader(64), [callback], val=regression_loader(8), **settings)
    return callback


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    journal = tmp_path_factory.mktemp("runs") / "grown.jsonl"
    return {
        "fixed": trained(GradientNoiseScaleMonitor(split=False)),
        "grown": trained(scripted(8, 16, unit="images", record=journal)),
    }


def curves(axes):
    """The lines of the runs, without the marks at their ends."""
    return [line for line in axes.lines if len(line.get_xdata()) > 1]


def numbers(axes):
    return sorted(text.get_text() for text in axes.texts)


def test_a_loss_against_steps_examples_and_seconds(runs, tmp_path):
    figure, axes = plot_comparison(runs)
    steps, examples, seconds, _front = axes.flat
    assert {panel.get_ylabel() for panel in axes.flat} == {"val_loss"}  # that of a validation, if all have it
    for index, name in enumerate(runs):
        points = runs[name].losses["val_loss"]
        assert list(curves(steps)[index].get_xdata()) == [point.optimizer_steps for point in points]
        assert list(curves(examples)[index].get_xdata()) == [point.examples_seen for point in points]
        assert list(curves(examples)[index].get_ydata()) == [point.value for point in points]
        assert len(curves(seconds)[index].get_xdata()) == 3
    assert steps.get_xlabel() == "optimizer steps"
    assert examples.get_xlabel() == "examples seen"
    assert seconds.get_xlabel().startswith("time of training, in ")
    # Fewer steps, in the order that the front begins with.
    assert [numbers(panel) for panel in axes.flat] == [["1", "2"]] * 4
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["1: fixed", "2: grown"]
    figure.savefig(tmp_path / "comparison.png")


def test_a_journal_says_the_same_as_its_callback(runs):
    journal = runs["grown"].journal_path
    _, axes = plot_comparison([runs["grown"], journal, str(journal)], loss="train_loss")
    for panel in axes.flat[:2]:
        of_callback, *of_journal = curves(panel)
        for one in of_journal:
            assert list(one.get_xdata()) == list(of_callback.get_xdata())
            assert list(one.get_ydata()) == list(of_callback.get_ydata())
    # The journal's clock is the same one, rounded; it has the pauses that the pace leaves out.
    of_callback, of_journal, _ = curves(axes[1, 0])
    assert len(of_journal.get_xdata()) == len(of_callback.get_xdata())
    assert list(of_journal.get_xdata()) == sorted(of_journal.get_xdata())
    assert axes[0, 1].get_xlabel() == "images seen"


def test_seconds_of_a_journal_are_added_up_to_each_loss(tmp_path):
    journal = Journal(tmp_path / "a.jsonl", {"state": {"windows": 10}, "profile": {"unit": "tokens"}})
    for index in range(6):
        journal.write(WindowEvent(start=index, length=1, took=None if index < 2 else 2.0))
        if index % 2:
            journal.write(
                LossEvent(name="loss", value=1.0 / (1 + index), examples_seen=8.0 * index, optimizer_steps=10 + index)
            )
    journal.close()
    _, axes = plot_comparison([journal.path])
    assert list(curves(axes[1, 0])[0].get_xdata()) == pytest.approx([0.0, 2.0, 6.0])
    assert list(curves(axes[0, 0])[0].get_xdata()) == [11, 13, 15]
    assert axes[0, 1].get_xlabel() == "tokens seen"


def test_columns_of_numbers_need_not_have_everything(runs):
    """A mapping, as a DataFrame is one: a baseline that had no callback."""
    baseline = {"loss": [3.0, 2.0, 1.0], "steps": [10, 20, 30]}
    figure, axes = plot_comparison({"baseline": baseline, "the same": dict(baseline, seconds=[60, 7200, 10800])})
    assert [len(curves(panel)) for panel in axes.flat[:3]] == [2, 0, 1]
    assert "None of these runs knows its examples seen." in " ".join(axes[0, 1].texts[0].get_text().split())
    assert axes[1, 0].get_xlabel() == "time of training, in h"
    assert curves(axes[1, 0])[0].get_xdata()[1] == 2.0
    figure.canvas.draw()


def test_the_front_is_the_line_of_runs_that_none_beats():
    runs = {
        "few steps": {"loss": [3.0, 2.0], "steps": [5, 10]},
        "beaten": {"loss": [3.0, 2.5], "steps": [5, 20]},
        "many steps": {"loss": [3.0, 1.0], "steps": [5, 40]},
        "broken": {"loss": [3.0, math.nan], "steps": [5, 80]},  # its last known loss
    }
    _, axes = plot_comparison(runs)
    front = next(line for line in axes[1, 1].lines if line.get_drawstyle() == "steps-post")
    assert list(zip(front.get_xdata(), front.get_ydata(), strict=True)) == [(5, 3.0), (10, 2.0), (40, 1.0)]
    assert numbers(axes[1, 1]) == ["1", "2", "3", "4"]


def test_numbers_of_runs_that_end_at_one_place_can_be_read():
    run = {"loss": [3.0, 2.0], "steps": [5, 10], "examples": [5, 10], "seconds": [1, 2]}
    _, axes = plot_comparison([run] * 4)
    for panel in axes.flat:
        offsets = sorted(text.xyann[1] for text in panel.texts)
        assert all(above - below >= 9 for below, above in itertools.pairwise(offsets))


def test_a_run_without_this_loss_is_named():
    runs = {"a": {"loss": [1.0], "steps": [1]}, "b": trained(GradientNoiseScaleMonitor(split=False))}
    figure, axes = plot_comparison(runs, loss="loss")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["1: a", "2: b (has no loss)"]
    assert numbers(axes[0, 0]) == ["1"]


def test_without_any_loss_the_picture_says_what_to_do(tmp_path):
    figure, axes = plot_comparison([GradientNoiseScaleMonitor()])
    assert "self.log" in axes.texts[0].get_text()
    assert len(figure.axes) == 1
    figure.savefig(tmp_path / "empty.png")


@pytest.mark.parametrize("size", [(10, 7.4), (6, 5), (5, 4)])
def test_it_is_laid_out_at_every_size(runs, size):
    figure, axes = plot_comparison(runs)
    figure.set_size_inches(*size)
    figure.canvas.draw()
    for panel in axes.flat:
        assert panel.get_window_extent().width > 60
        assert panel.get_window_extent().height > 40


def test_nothing_is_shown_where_it_is_not_wanted(runs):
    figure, _ = plot_comparison(runs, is_shown=False)
    assert plt.get_fignums() == []
    figure.canvas.draw()
