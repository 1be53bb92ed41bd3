"""The page's colours: enough contrast for words and lines, in light and in dark."""

import re
from importlib import resources

import pytest

STYLE = resources.files("lightning_bsscale.report").joinpath("style.css").read_text(encoding="utf-8")
COLOURS = {name: pair for name, *pair in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", STYLE)}
WORDS = ("ink", "soft", "link")
LINES = ("noise", "batch", "rate", "bound", "rest", "gap", "run-3", "run-4", "run-5")


def luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    """The ratio of WCAG 2.2."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_the_ratio_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(("name", "least"), [*((name, 4.5) for name in WORDS), *((name, 3.0) for name in LINES)])
def test_contrast(scheme, name, least):
    for ground in ("paper", "card") if name in WORDS else ("paper",):
        assert contrast(COLOURS[name][scheme], COLOURS[ground][scheme]) >= least


def test_every_colour_is_defined_and_used():
    used = set(re.findall(r"var\(--([\w-]+)\)", STYLE))
    assert used == set(COLOURS)
