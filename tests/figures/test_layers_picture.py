"""The noise scale of each layer: bars, or a heat map."""

import math
from dataclasses import replace

import pytest

from lightning_bsscale.figures import plot_layers
from lightning_bsscale.theory.noise_report import Ending, NoiseReport
from tests.helpers.records import NOISE

KNOWN = replace(NOISE, noise_scale=100.0, low=50.0, high=200.0, resolved=True)


def report(**layers):
    return NoiseReport(noise=KNOWN, layers=layers, relative_error=0.1, ending=Ending.REACHED, batches=8, examples=64)


def test_layers_are_bars_with_a_resolved_one_marked(tmp_path):
    figure, axes = plot_layers(report(first=KNOWN, second=replace(KNOWN, high=math.inf, resolved=False)))
    assert [bar.get_width() for bar in axes.patches] == [150.0, axes.get_xlim()[1] - 50.0]
    assert [list(line.get_xdata()) for line in axes.lines] == [[100.0], [100.0, 100.0]]
    figure.savefig(tmp_path / "layers.png")


@pytest.mark.parametrize(("low", "high"), [(144.0, 199.0), (310.0, 480.0), (50.0, 200.0), (3.0, 4000.0)])
def test_an_axis_has_numbers_over_all_its_length(low, high):
    """Also where it is too narrow for 1, 2 and 5 times powers of ten."""
    noise = replace(KNOWN, noise_scale=math.sqrt(low * high), low=low, high=high)
    _, axes = plot_layers(replace(report(first=noise), noise=noise))
    axes.figure.canvas.draw()
    left, right = map(math.log, axes.get_xlim())
    ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    minor = zip(axes.get_xticks(minor=True), axes.get_xticklabels(minor=True), strict=True)
    numbers = [math.log(tick) for tick, label in (*ticks, *minor) if label.get_text()]
    places = sorted((number - left) / (right - left) for number in numbers if left <= number <= right)
    assert len(places) >= 2
    assert places[0] < 0.5 < places[-1]


def test_layers_at_several_checkpoints_are_a_heat_map(tmp_path):
    later = report(first=replace(KNOWN, noise_scale=400.0), third=replace(KNOWN, resolved=False))
    figure, axes = plot_layers({"start": report(first=KNOWN), "end": later})
    assert axes.images[0].get_array().filled(-1).tolist() == [[100.0, 400.0], [-1, -1]]
    assert [text.get_text() for text in axes.texts] == ["100", "400"]
    figure.savefig(tmp_path / "layers.png")
