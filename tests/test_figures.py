"""Pictures from records: what is drawn is what was measured."""

import builtins
import gc
import math
import os
import subprocess
import sys
import threading
import weakref
from dataclasses import replace
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from lightning_bsscale.figures import plot_branches, plot_layers, plot_noise_scale, plot_run
from lightning_bsscale.theory.branching import critical_batch, shares_needed
from lightning_bsscale.theory.noise_report import Ending, NoiseReport
from tests.helpers import inline_backend
from tests.helpers.records import DECISION, MEASUREMENT, NOISE

KNOWN = replace(NOISE, noise_scale=100.0, low=50.0, high=200.0, resolved=True)


def history():
    return [
        replace(MEASUREMENT, examples_seen=100, noise=None),
        replace(MEASUREMENT, examples_seen=200, noise=NOISE),
        replace(MEASUREMENT, examples_seen=300, noise=KNOWN),
        replace(MEASUREMENT, examples_seen=400, noise=replace(KNOWN, noise_scale=120.0), lr=0.3, lr_scale=3.0),
    ]


def decisions():
    grown = replace(DECISION, batch_size=16, lr_scale=3.0, situation=replace(DECISION.situation, examples_seen=250))
    return [DECISION, grown]


def lines(axes):
    return {line.get_label(): line for line in axes.lines}


def test_an_unresolved_estimate_is_a_gap_and_an_unknown_end_the_edge(tmp_path):
    figure, axes = plot_run(history(), decisions())
    drawn = lines(axes[0])
    noise = drawn["noise scale (where resolved)"]
    assert list(noise.get_xdata()) == [200, 300, 400]
    assert math.isnan(noise.get_ydata()[0])
    assert list(noise.get_ydata())[1:] == [100.0, 120.0]
    assert list(drawn["batch"].get_xdata()) == [0, 250, 400]
    assert list(drawn["batch"].get_ydata()) == [8, 16, 16]
    assert all(math.isfinite(limit) for limit in axes[0].get_ylim())
    rates = lines(axes[1])
    # The measured windows' own factor is 1.5 (a probe); the one in force was 1 before the growth and 3 after it.
    assert list(rates["learning rate"].get_ydata()) == pytest.approx([0.1 / 1.5, 0.1 / 1.5, 0.2, 0.3])
    assert rates["without the factor"].get_ydata()[-1] == pytest.approx(0.1)
    figure.savefig(tmp_path / "run.png")


@pytest.mark.parametrize(("measured", "decided"), [([], []), ([MEASUREMENT], []), ([], [DECISION])])
def test_little_or_nothing_to_draw(tmp_path, measured, decided):
    figure, _ = plot_run(measured, decided)
    figure.savefig(tmp_path / "empty.png")


def report(**layers):
    return NoiseReport(noise=KNOWN, layers=layers, relative_error=0.1, ending=Ending.REACHED, batches=8, examples=64)


def test_layers_are_bars_with_a_resolved_one_marked(tmp_path):
    figure, axes = plot_layers(report(first=KNOWN, second=replace(KNOWN, high=math.inf, resolved=False)))
    assert [bar.get_width() for bar in axes.patches] == [150.0, axes.get_xlim()[1] - 50.0]
    assert [list(line.get_xdata()) for line in axes.lines] == [[100.0], [100.0, 100.0]]
    figure.savefig(tmp_path / "layers.png")


def test_branches_are_drawn_with_the_interval_and_the_line_that_decides(tmp_path):
    sizes, swing = [8, 16, 32, 64, 128], [0, 0, 0.5, 0, 0]
    losses = [[2 - 1 / (1 + size / 45) + sign * x for size, x in zip(sizes, swing, strict=True)] for sign in (-1, 0, 1)]
    earlier = [[2 - share / (1 + 8 / 45) + sign / 1000 for share in shares_needed(sizes)] for sign in (-1, 0, 1)]
    figure, axes = plot_branches(critical_batch(sizes, 2.0, losses, earlier))
    drawn = lines(axes)
    assert list(drawn["half its worth in a very small batch"].get_ydata())[:2] == [1.0, 0.75]
    assert list(drawn["undecided"].get_xdata()) == [32]
    assert list(drawn["worth of an example"].get_xdata()) == sizes
    assert axes.get_title() == "The critical batch is between 16 and 64"
    assert axes.patches[0].get_x() == 16
    figure.savefig(tmp_path / "branches.png")


def test_layers_at_several_checkpoints_are_a_heat_map(tmp_path):
    later = report(first=replace(KNOWN, noise_scale=400.0), third=replace(KNOWN, resolved=False))
    figure, axes = plot_layers({"start": report(first=KNOWN), "end": later})
    assert axes.images[0].get_array().filled(-1).tolist() == [[100.0, 400.0], [-1, -1]]
    assert [text.get_text() for text in axes.texts] == ["100", "400"]
    figure.savefig(tmp_path / "layers.png")


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    found = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-bsscale\[plot\]'"):
        plot_run([], [])


# ---------------------------------------------------------------- where figures are shown, and kept

# What makes a figure without axes of the user's, and how many axes it has.
PLOTS = {
    "plot_run": (lambda: plot_run(history(), decisions()), 2),
    "plot_noise_scale": (lambda: plot_noise_scale(history()), 1),
    "scaler": (lambda: BatchSizeScaler().plot(), 2),
    "monitor": (lambda: GradientNoiseScaleMonitor().plot(), 1),
}


@pytest.fixture
def pyplot():
    """Without a figure before and after; whatever the backend becomes, it is put back."""
    before = matplotlib.get_backend()
    plt.close("all")
    yield plt
    plt.close("all")
    matplotlib.interactive(False)
    plt.switch_backend(before)


@pytest.mark.parametrize("name", PLOTS)
def test_a_notebook_shows_each_figure_once_at_the_end_of_its_cell(name, pyplot):
    plot, panels = PLOTS[name]
    pyplot.switch_backend("module://tests.helpers.inline_backend")
    plot()
    assert inline_backend.end_of_cell() == [panels]
    assert inline_backend.end_of_cell() == []
    for _ in range(15):  # more than a script keeps
        plot()
    assert inline_backend.end_of_cell() == [panels] * 15


def test_given_axes_are_shown_with_their_own_figure_only(pyplot):
    pyplot.switch_backend("module://tests.helpers.inline_backend")
    figure, axes = pyplot.subplots(3)
    assert plot_run(history(), decisions(), ax=axes[0]) == (figure, axes[0])
    assert axes[0].lines
    assert BatchSizeScaler().plot(ax=axes[1])[0] is figure
    assert GradientNoiseScaleMonitor().plot(ax=axes[2])[0] is figure
    assert inline_backend.end_of_cell() == [3]


def test_plt_show_and_plt_savefig_find_the_figures_of_a_script(pyplot, tmp_path):
    figures = [plot()[0] for plot, _ in PLOTS.values()]
    assert [pyplot.figure(number) for number in pyplot.get_fignums()] == figures
    assert pyplot.gcf() is figures[-1]
    pyplot.savefig(tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 5000


def test_a_script_collects_no_figures(pyplot, tmp_path):
    """Warnings are errors here: pyplot's own is said from 21 figures on."""
    users = pyplot.figure()
    first, _ = plot_noise_scale(history())
    made = [weakref.ref(PLOTS[name][0]()[0]) for name in [*PLOTS] * 10]
    assert len(pyplot.get_fignums()) == 11
    assert pyplot.fignum_exists(users.number)  # only ours are closed
    first.savefig(tmp_path / "first.png")  # and one that is closed can still be saved
    assert (tmp_path / "first.png").stat().st_size > 5000
    gc.collect()
    assert sum(figure() is not None for figure in made) == 10


def test_a_figure_that_the_user_closed_is_gone(pyplot):
    for _ in range(12):
        figure, _ = plot_noise_scale(history())
        pyplot.close(figure)
        assert pyplot.get_fignums() == []


def test_in_another_thread_no_window_is_opened(pyplot, tmp_path):
    made = []
    thread = threading.Thread(target=lambda: made.append(plot_run(history(), decisions())[0]))
    thread.start()
    thread.join()
    assert pyplot.get_fignums() == []
    made[0].savefig(tmp_path / "run.png")


def test_without_a_display_a_figure_can_still_be_saved(tmp_path):
    code = (
        "import sys; from lightning_bsscale.figures import plot_run\n"
        "plot_run([], [])[0].savefig(sys.argv[1]); print('saved')"
    )
    environment = {name: value for name, value in os.environ.items() if name not in {"DISPLAY", "WAYLAND_DISPLAY"}}
    environment |= {"MPLBACKEND": "TkAgg", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", code, str(tmp_path / "run.png")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "saved\n", done.stderr
