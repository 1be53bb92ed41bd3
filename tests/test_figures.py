"""Pictures from records: what is drawn is what was measured."""

import builtins
import math
from dataclasses import replace

import pytest

from lightning_bsscale.figures import plot_noise_scale, plot_run
from tests.test_journal import DECISION, MEASUREMENT, NOISE

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
    assert list(rates["rate"].get_ydata()) == pytest.approx([0.1 / 1.5, 0.1 / 1.5, 0.2, 0.3])
    assert rates["rate without the factor"].get_ydata()[-1] == pytest.approx(0.1)
    figure.savefig(tmp_path / "run.png")


@pytest.mark.parametrize(("measured", "decided"), [([], []), ([MEASUREMENT], []), ([], [DECISION])])
def test_little_or_nothing_to_draw(tmp_path, measured, decided):
    figure, _ = plot_run(measured, decided)
    figure.savefig(tmp_path / "empty.png")


def test_given_axes_are_used():
    _, axes = plot_run(history(), decisions())
    figure, same = plot_noise_scale(history(), ax=axes[1])
    assert same is axes[1]
    assert figure is axes[1].figure


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    found = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-bsscale\[plot\]'"):
        plot_run([], [])
