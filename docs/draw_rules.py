"""Draw the learning-rate rules against the batch: python docs/draw_rules.py.

The factors are those of the package's rules, from a batch of 32 at a noise scale of 512 examples.
"""

from __future__ import annotations

from pathlib import Path

from lightning_bsscale.theory.estimate import noise_scale_from_means
from lightning_bsscale.theory.rules import RULES

PICTURE = Path(__file__).parent / "rules.svg"
START, NOISE = 32, 512
BATCHES = tuple(32 * 2**n for n in range(8))
SHOWN = (128, 512, 2048)  # of these the page and the picture name the factors
STYLES = {
    "linear": ("#c2571a", "-"),
    "power": ("#1f5fa8", "-"),
    "sqrt": ("#1f5fa8", "--"),
    "saturating": ("#2a7f3f", "-"),
    "surge": ("#7a3e9d", "-."),
    "none": ("#777777", ":"),
}


def factor(name: str, batch: float) -> float:
    """Return the factor of a rule from the first batch to this one."""
    noise = noise_scale_from_means(
        trace=NOISE,
        grad_sq=1.0,
        trace_variance=0.0,
        grad_sq_variance=0.001,
        covariance=0.0,
        effective_windows=100.0,
        confidence=0.9,
    )
    return RULES[name]().ratio(START, batch, noise)


def table() -> dict[str, str]:
    """Return for each rule its row of the table in docs/explanation.md."""
    return {name: " | ".join(f"{factor(name, batch):.3g}" for batch in SHOWN) for name in STYLES}


def draw():
    """Return the picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 4.6), facecolor="white", layout="constrained")
    panel = figure.subplots()
    batches = [START * 2 ** (n / 10) for n in range(71)]
    for name, (color, style) in STYLES.items():
        values = [factor(name, batch) for batch in batches]
        panel.plot(batches, values, color=color, ls=style, lw=2.2)
        panel.annotate(
            f"{name} ({table()[name].replace(' | ', ', ')})",
            (batches[-1], values[-1]),
            (6, {"sqrt": -9, "saturating": 3, "surge": 2, "none": -7}.get(name, -3)),
            textcoords="offset points",
            color=color,
            fontsize=9.5,
            annotation_clip=False,
        )
    panel.axvline(NOISE, color="#999999", lw=1, ls=":")
    panel.text(NOISE * 1.05, 100, "noise scale", fontsize=9, color="#666666")
    panel.set_xscale("log", base=2)
    panel.set_yscale("log", base=2)
    panel.set_xticks(BATCHES, [f"{batch:,}" for batch in BATCHES])
    panel.set_yticks([1, 2, 4, 8, 16, 32, 64, 128], ["1", "2", "4", "8", "16", "32", "64", "128"])
    panel.set(xlim=(START, BATCHES[-1]), ylim=(0.85, 150))
    panel.set(xlabel="batch, examples", ylabel="factor on the learning rate")
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(color="#eeeeee", lw=0.7)
    return figure


def main() -> None:
    """Write the picture."""
    import matplotlib

    # The same numbers give the same file: no date, no random ids, and text as text.
    matplotlib.rcParams.update({"svg.hashsalt": "rules", "svg.fonttype": "none", "font.family": "DejaVu Sans"})
    draw().savefig(PICTURE, metadata={"Date": None, "Title": "Learning-rate factor against the batch, by rule"})
    print(f"{PICTURE}: {table()}")


if __name__ == "__main__":
    main()
