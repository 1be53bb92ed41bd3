"""Draw what the noise scale is: python docs/draw_noise_scale.py.

One picture shows gradients of single examples as arrows around their mean, for a model of two weights whose loss is
half the squared distance to an example; the examples are made up. The other shows what an example and a step are worth
against the batch. All numbers in them are computed by the package's own formulas.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

from lightning_bsscale.theory.moments import window_moments
from lightning_bsscale.theory.tradeoff import relative_examples, relative_steps, sample_efficiency, step_progress

ARROWS = Path(__file__).parent / "noise_scale_arrows.svg"
WORTH = Path(__file__).parent / "noise_scale_worth.svg"
EXAMPLES, DRAWN, BATCH, REACH = 400, 50, 16, 4.8
PLACES = {"early": (2.4, 1.6), "late": (0.36, 0.24)}  # seen from the best weights, (0, 0)
MULTIPLES = (1 / 4, 1 / 2, 1, 2, 4)
BLUE, ORANGE, GREY = "#1f5fa8", "#c2571a", "#999999"


def gradients(place: tuple[float, float]) -> list[tuple[float, float]]:
    """Return the gradient of each example: of half its squared distance from the weights, so weights minus example."""
    dice = random.Random(1)
    return [(place[0] - dice.gauss(0, 1), place[1] - dice.gauss(0, 1)) for _ in range(EXAMPLES)]


def mean(arrows: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the mean arrow."""
    return sum(a for a, _ in arrows) / len(arrows), sum(b for _, b in arrows) / len(arrows)


def measured(arrows: list[tuple[float, float]]) -> float:
    """Return the noise scale, computed as the callback does, from micro-batches of one example."""
    squares = [math.hypot(*arrow) ** 2 for arrow in arrows]
    moments = window_moments(squares, math.hypot(*mean(arrows)) ** 2, [1] * len(arrows))
    return moments.trace / moments.grad_sq


def labels() -> list[str]:
    """Return the titles of the arrows' panels, with their numbers."""
    early, late = (measured(gradients(place)) for place in PLACES.values())
    return [
        f"Early: single examples\nnoise scale {early:.2g}",
        f"Late: single examples\nnoise scale {late:.2g}",
        f"Late: batches of {BATCH}\nnoise against signal {late / BATCH:.2g}",
    ]


def rows() -> list[str]:
    """Return the texts beside the points of the curve of steps against examples."""
    shares = [f"1/{round(1 / m)}" if m < 1 else f"{m}" for m in MULTIPLES]
    return [
        f"B = {share} B_crit: {relative_steps(m, 1):.3g} x steps, {relative_examples(m, 1):.3g} x examples"
        for share, m in zip(shares, MULTIPLES, strict=True)
    ]


def draw_arrows():
    """Return the picture of arrows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.1), facecolor="white", layout="constrained")
    early, late = (gradients(place) for place in PLACES.values())
    batches = [mean(late[begin : begin + BATCH]) for begin in range(0, EXAMPLES - BATCH + 1, BATCH)]
    for panel, title, arrows, whole in zip(
        figure.subplots(1, 3), labels(), (early[:DRAWN], late[:DRAWN], batches), (early, late, late), strict=True
    ):
        for a, b in arrows:
            panel.annotate("", (a, b), (0, 0), arrowprops={"arrowstyle": "->", "color": BLUE, "alpha": 0.45, "lw": 1})
        panel.annotate("", mean(whole), (0, 0), arrowprops={"arrowstyle": "-|>", "color": ORANGE, "lw": 3})
        panel.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal", xticks=[0], yticks=[0])
        panel.tick_params(length=0, labelsize=8)
        panel.grid(color="#e6e6e6", lw=0.8)
        panel.spines[:].set_color("#cccccc")
        panel.set_title(title, fontsize=10.5)
        panel.set_xlabel("gradient of weight 1", fontsize=9)
    figure.axes[0].set_ylabel("gradient of weight 2", fontsize=9)
    return figure


def draw_worth():
    """Return the picture of what a batch buys, and of steps against examples."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.3), facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2)
    batches = [2 ** (n / 10) for n in range(-50, 51)]
    left.plot(batches, [sample_efficiency(b, 1) for b in batches], color=BLUE, lw=2.2)
    left.plot(batches, [step_progress(b, 1) for b in batches], color=ORANGE, lw=2.2, ls="--")
    left.text(1 / 28, 0.72, "worth of an example", color=BLUE, fontsize=10)
    left.text(30, 0.72, "progress of a step", color=ORANGE, fontsize=10, ha="right")
    left.axvline(1, color=GREY, lw=1, ls=":")
    left.annotate("batch = noise scale:\nhalf of each", (1, 0.5), (1.6, 0.3), fontsize=9.5, color="#444444")
    left.set_xscale("log", base=2)
    ticks = [1 / 32, 1 / 8, 1 / 2, 1, 2, 8, 32]
    left.set_xticks(ticks, ["1/32", "1/8", "1/2", "1", "2", "8", "32"])
    left.set_yticks([0, 0.5, 1], ["0", "1/2", "1"])
    left.set(xlim=(1 / 32, 32), ylim=(0, 1.02), xlabel="batch, in noise scales", ylabel="relative to the most possible")
    right.plot([relative_steps(b, 1) for b in batches], [relative_examples(b, 1) for b in batches], color=BLUE, lw=2.2)
    for multiple, text in zip(MULTIPLES, rows(), strict=True):
        place = relative_steps(multiple, 1), relative_examples(multiple, 1)
        right.plot(*place, "o", color=ORANGE if multiple == 1 else BLUE, ms=7 if multiple == 1 else 5)
        right.annotate(text, place, (8, 4), textcoords="offset points", fontsize=9, color="#333333")
    right.set_xscale("log", base=2)
    right.set_yscale("log", base=2)
    right.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    right.set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    right.set(xlim=(0.95, 48), ylim=(0.95, 12))
    right.set(xlabel="steps, relative to the fewest", ylabel="examples, relative to the fewest")
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="#eeeeee", lw=0.7)
    return figure


def main() -> None:
    """Write both pictures."""
    import matplotlib

    # The same numbers give the same file: no date, no random ids, and text as text.
    matplotlib.rcParams.update({"svg.hashsalt": "noise scale", "svg.fonttype": "none", "font.family": "DejaVu Sans"})
    draw_arrows().savefig(ARROWS, metadata={"Date": None, "Title": "Gradients of single examples around their mean"})
    draw_worth().savefig(WORTH, metadata={"Date": None, "Title": "What a batch buys, and steps against examples"})
    print(f"{ARROWS}: {', '.join(label.replace(chr(10), ', ') for label in labels())}")
    print(f"{WORTH}: {len(MULTIPLES)} batches")


if __name__ == "__main__":
    main()
