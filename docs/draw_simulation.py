"""Draw docs/simulation.svg and docs/simulate.svg, the pictures of docs/simulation.md, by exact computation.

python docs/draw_simulation.py            # about 20 seconds
"""

import argparse
import math
from pathlib import Path

import numpy as np

from lightning_bsscale.simulation.forecast import Numbers, forecast
from lightning_bsscale.simulation.optimum import best_schedule
from lightning_bsscale.simulation.pictures import draw_forecast
from lightning_bsscale.simulation.quadratic import NoisyQuadratic, expected_losses, sign_step
from lightning_bsscale.theory.schedules import WarmupCosine

DOCS = Path(__file__).parent
GREY, ORANGE, BLUE, GREEN = "#777777", "#D55E00", "#0072B2", "#009E73"


def hyperbola(axes) -> None:
    """Steps against examples to a tenth of the loss, at a share of the best learning rate of each step."""
    batches = np.geomspace(1, 256, 9)

    def steps_to(batch: float, share: float) -> float:
        moment, steps = 1.0, 0.0
        while True:
            after = moment * (1 - share * (2 - share) / (1 + 4 / moment / batch))
            if after <= 0.1:
                return steps + math.log(moment / 0.1) / math.log(moment / after)
            moment, steps = after, steps + 1

    for share, color, label in ((0.05, BLUE, "small steps"), (1.0, ORANGE, "each step takes all it can")):
        fewest = steps_to(1e6, share)
        examples = 0.1 * steps_to(0.1, share)
        points = [(steps_to(b, share) / fewest, b * steps_to(b, share) / examples) for b in batches]
        axes.plot(*zip(*points, strict=True), "o", color=color, label=label)
    line = np.geomspace(1.02, 40, 200)
    axes.plot(line, 1 + 1 / (line - 1), color=GREY, label="$(S/S_{min}-1)(E/E_{min}-1)=1$")
    axes.set(
        xscale="log", yscale="log", xlabel="steps / fewest", ylabel="examples / fewest", xlim=(1, 40), ylim=(0.9, 40)
    )
    axes.set_title("Steps against examples")


def surge(axes) -> None:
    """The best learning rate of sign updates against the batch."""
    dimension = 200
    gradient, deviation = np.full(dimension, 0.02), np.ones(dimension)
    for coupling, color in ((0.5, ORANGE), (0.0, BLUE)):
        hessian = coupling * np.ones((dimension, dimension)) + (1 - coupling) * np.eye(dimension)
        scale = float(np.trace(hessian) / (gradient @ hessian @ gradient))
        batches = np.geomspace(0.1, 1e4, 200)
        rates = np.array([sign_step(hessian, gradient, deviation, batch)[0] for batch in batches])
        label = "curvature couples the coordinates" if coupling else "it does not"
        axes.plot(batches, rates / rates[0], color=color, label=label)
        if coupling:
            axes.axvline(
                math.pi / 2 * scale, color=GREY, linestyle="--", label=r"$\frac{\pi}{2}$ tr(H$\Sigma$)/G$^T$HG"
            )
    axes.set(xscale="log", yscale="log", xlabel="batch", ylabel="best learning rate, relative")
    axes.set_title("Sign updates: the surge")


def decay_or_growth(axes) -> None:
    """A cosine decay, Seesaw, and constant learning rate with growth, for normalised SGD; relative losses."""
    ratios = np.geomspace(1e-6, 1e3, 10)

    def loss(noise: float, grow: float, cut: float) -> float:
        quadratic, moments, seen, total = NoisyQuadratic.power_law(20, 1.0, noise), np.ones(20), 0.0, 4000.0
        first = math.sqrt(quadratic.grad_sq(moments) + noise)
        while seen < total:
            factor = WarmupCosine(final=0.05).factor(seen, total, 0)
            batch = factor**-grow
            rate = 0.05 * factor**cut * first / math.sqrt(quadratic.grad_sq(moments) + noise / batch)
            moments, seen = quadratic.after_sgd(moments, batch, rate), seen + batch
        return float(quadratic.loss(moments))

    start = float(NoisyQuadratic.power_law(20, 1.0, 1.0).grad_sq(np.ones(20)))
    for grow, cut, color, label in (
        (1.0, 0.5, ORANGE, "Seesaw: batch 1/f, rate √f"),
        (1.0, 0.0, BLUE, "batch 1/f, rate 1"),
    ):
        values = [loss(noise, grow, cut) / loss(noise, 0, 1) for noise in ratios]
        axes.plot(ratios / start, values, "o-", markersize=3, color=color, label=label)
    axes.axhline(1, color=GREY, label="cosine decay f")
    axes.set(xscale="log", yscale="log", xlabel="first noise scale / first batch", ylabel="loss / that of the decay")
    axes.set_title("Growth instead of decay (normalised SGD)")


def best(axes) -> None:
    """The best schedule of two modes at three prices of a step."""
    quadratic, start = NoisyQuadratic(curvature=[1.0, 0.02], noise=[10.0, 0.2]), [1.0, 5.0]
    rates = np.geomspace(0.02, 1.9, 40)
    for price, color in ((1e-4, BLUE), (1e-3, ORANGE), (3e-3, GREEN)):
        found = best_schedule(
            quadratic, start, units=128, unit=4, batches=(1, 2, 4, 8, 16, 32), rates=rates, price=price, points=40
        )
        edges = np.concatenate([[0], np.cumsum(found.batches)])
        axes.step(edges, [*found.batches, found.batches[-1]], where="post", color=color,
                  label=f"step costs {price:g}: {len(found.batches)} steps, loss {found.loss:.3f}")  # fmt: skip
    constant = min(
        (float(expected_losses(quadratic, start, [4 * b] * (128 // b), [rate] * (128 // b))[-1]), 128 // b)
        for b in (1, 2, 4, 8, 16, 32)
        for rate in rates
    )
    axes.plot([], [], color=GREY, label=f"best constant: {constant[1]} steps, loss {constant[0]:.3f}")
    axes.set_yscale("log", base=2)
    axes.set(xlabel="examples", ylabel="batch")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylim(2, 160)
    axes.set_title("The best schedule (two modes)")


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DOCS, help="folder (default: docs)")
    out = parser.parse_args().out
    import matplotlib
    from matplotlib.figure import Figure

    # The same numbers give the same file: no date, no random ids.
    matplotlib.rcParams.update({"svg.hashsalt": "lightning_bsscale", "font.family": "DejaVu Sans"})
    figure = Figure(figsize=(10, 7.6), layout="constrained")
    for axes, draw in zip(figure.subplots(2, 2).flat, (hyperbola, surge, decay_or_growth, best), strict=True):
        draw(axes)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.legend(fontsize="x-small" if draw is best else "small", loc="lower right" if draw is best else "best")
    figure.savefig(out / "simulation.svg", metadata={"Date": None})
    numbers = Numbers(noise_scale=10, noise_scale_end=400, examples=32_000, batch_size=4, max_batch_size=4000)
    found = forecast(numbers, fixed=[16, 128])
    draw_forecast(found).savefig(out / "simulate.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
