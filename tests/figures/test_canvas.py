"""Where figures are shown, and how many are kept."""

import builtins
import gc
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from lightning_bsscale.figures import DrawnRun, plot_comparison, plot_noise_scale, plot_run
from tests.helpers import inline_backend
from tests.helpers.records import DECISION, MEASUREMENT

RUN = DrawnRun(history=[MEASUREMENT], decisions=[DECISION], examples_seen=100)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    found = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-bsscale\[plot\]'"):
        plot_run(DrawnRun())


# ---------------------------------------------------------------- where figures are shown, and kept

# What makes a figure without axes of the user's, and how many axes it has.
PLOTS = {
    "plot_run": (lambda: plot_run(RUN), 2),
    "plot_noise_scale": (lambda: plot_noise_scale(RUN), 1),
    "scaler": (lambda: BatchSizeScaler().plot(), 1),
    "monitor": (lambda: GradientNoiseScaleMonitor().plot(), 1),
    "plot_comparison": (lambda: plot_comparison({"a": {"loss": [2, 1], "steps": [1, 2]}}), 4),
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
    assert plot_run(RUN, axes[0]) == (figure, axes[0])
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
    first, _ = plot_noise_scale(RUN)
    made = [weakref.ref(PLOTS[name][0]()[0]) for name in [*PLOTS] * 10]
    assert len(pyplot.get_fignums()) == 11
    assert pyplot.fignum_exists(users.number)  # only ours are closed
    first.savefig(tmp_path / "first.png")  # and one that is closed can still be saved
    assert (tmp_path / "first.png").stat().st_size > 5000
    gc.collect()
    assert sum(figure() is not None for figure in made) == 10


def test_a_figure_that_the_user_closed_is_gone(pyplot):
    for _ in range(12):
        figure, _ = plot_noise_scale(RUN)
        pyplot.close(figure)
        assert pyplot.get_fignums() == []


def test_in_another_thread_no_window_is_opened(pyplot, tmp_path):
    made = []
    thread = threading.Thread(target=lambda: made.append(plot_run(RUN)[0]))
    thread.start()
    thread.join()
    assert pyplot.get_fignums() == []
    made[0].savefig(tmp_path / "run.png")


def test_without_a_display_a_figure_can_still_be_saved(tmp_path):
    code = (
        "import sys; from lightning_bsscale.figures import DrawnRun, plot_run\n"
        "plot_run(DrawnRun())[0].savefig(sys.argv[1]); print('saved')"
    )
    environment = {name: value for name, value in os.environ.items() if name not in {"DISPLAY", "WAYLAND_DISPLAY"}}
    environment |= {"MPLBACKEND": "TkAgg", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, str(tmp_path / "run.png")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "saved\n", done.stderr
