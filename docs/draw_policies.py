"""Draw what each policy does with the batch over one training with a cosine: python docs/draw_policies.py.

The training is made up: a noise scale that rises as those of language models do, known to ten percent, and a metric
that is bad for a while. The decisions are those of the package.
"""

from __future__ import annotations

import argparse
import itertools
from functools import cache
from pathlib import Path

from lightning_bsscale import (
    HoldIfWorse,
    Largest,
    Limits,
    MetricValue,
    Milestones,
    NoiseScale,
    NoiseScalePolicy,
    NormTest,
    Seesaw,
    Sequence,
    Situation,
    Smith,
    WarmupCosine,
)
from lightning_bsscale.theory.estimate import noise_scale_from_means

PICTURE = Path(__file__).parent / "policies.svg"
START, TOTAL, WARMUP = 32, 80_000, 4_000
LIMITS = Limits(granularity=8, min_batch_size=8, max_batch_size=2048)
SCHEDULE = WarmupCosine(final=0.05)
BAD = (0.35, 0.6)  # shares of the budget between which the metric is bad
PANELS = {
    "NoiseScalePolicy()": NoiseScalePolicy(),
    "NoiseScalePolicy(not_before=0.5)": NoiseScalePolicy(not_before=0.5),
    "NoiseScalePolicy(step_price=60, example_price=1)": NoiseScalePolicy(step_price=60, example_price=1),
    "NoiseScalePolicy.meta() and NormTest()": NormTest(),
    "Seesaw() and Seesaw(gate=None)": Seesaw(),
    "Smith()": Smith(),
    "Milestones({0.3: 2, 0.6: 4})": Milestones({0.3: 2, 0.6: 4}),
    "HoldIfWorse(NoiseScalePolicy())": HoldIfWorse(NoiseScalePolicy()),
    "Sequence([NoiseScalePolicy(), Seesaw()], at=[0.2])": Sequence([NoiseScalePolicy(), Seesaw(gate=None)], at=[0.2]),
    "Largest([Seesaw(), Milestones({0.8: 16})])": Largest([Seesaw(), Milestones({0.8: 16})]),
}
SECOND = {
    "NoiseScalePolicy.meta() and NormTest()": NoiseScalePolicy.meta(),
    "Seesaw() and Seesaw(gate=None)": Seesaw(gate=None),
}


def noise_scale(share: float) -> float:
    """The made-up noise scale, in examples."""
    return 40 * 15 ** min(1.0, share / 0.8)


@cache
def estimate(share: float) -> NoiseScale:
    """What is measured of it."""
    return noise_scale_from_means(
        trace=noise_scale(share),
        grad_sq=1.0,
        trace_variance=0.0,
        grad_sq_variance=0.01,
        covariance=0.0,
        effective_windows=100.0,
        confidence=0.9,
    )


def metric(share: float) -> float:
    """The made-up metric."""
    return (1.2 if BAD[0] < share < BAD[1] else 1.0) * (0.01 + share) ** -0.2


def walk(policy) -> tuple[list[float], list[int]]:
    """Return examples and the batch from there on, window by window."""
    batch, seen, peak, changed_at, values = START, 0.0, 0.0, None, []
    places, batches = [0.0], [START]
    while seen + batch <= TOTAL:
        seen += batch
        share, factor = seen / TOTAL, SCHEDULE.factor(seen, TOTAL, WARMUP)
        peak = max(peak, factor)
        if int(share * 100) > len(values):
            values.append(MetricValue(name="val_loss", examples_seen=seen, value=metric(share)))
        before = [one for one in values if one.examples_seen <= (changed_at or 0)]
        situation = Situation(
            batch_size=batch,
            start_batch_size=START,
            examples_seen=seen,
            total_examples=TOTAL,
            warmup_examples=WARMUP,
            schedule_factor=factor,
            schedule_peak=peak,
            examples_at_last_change=changed_at,
            noise=estimate(round(share, 2)),
            metrics=tuple([*before[-8:], *values[len(before) :][-8:]]),
        )
        decided = LIMITS.clip(policy.decide(situation, LIMITS).batch_size)
        if decided != batch:
            batch, changed_at = decided, seen
            places, batches = [*places, seen], [*batches, batch]
    return [*places, float(TOTAL)], [*batches, batch]


def steps_of(places: list[float], batches: list[int]) -> float:
    """Return the optimizer steps relative to those of the start batch."""
    pairs = itertools.pairwise(places)
    made = sum((end - begin) / size for (begin, end), size in zip(pairs, batches, strict=False))
    return made / (TOTAL / START)


def draw():
    """Return the picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 11), facecolor="white", layout="constrained")
    axes = figure.subplots(5, 2, sharex=True, sharey=True)
    shares = [n / 200 for n in range(201)]
    factors = [START / SCHEDULE.factor(share * TOTAL, TOTAL, WARMUP) for share in shares if share * TOTAL >= WARMUP]
    after = [share for share in shares if share * TOTAL >= WARMUP]
    for panel, (name, policy) in zip(axes.flat, PANELS.items(), strict=True):
        panel.plot(
            shares,
            [noise_scale(share) for share in shares],
            color="#999999",
            ls="--",
            lw=1.1,
            label="noise scale" if panel is axes[0, 0] else None,
        )
        panel.plot(
            after,
            factors,
            color="#999999",
            ls=":",
            lw=1.3,
            label="start batch / schedule" if panel is axes[0, 0] else None,
        )
        drawn = [(policy, "#1f5fa8", "-")] + ([(SECOND[name], "#c2571a", "-")] if name in SECOND else [])
        for one, color, style in drawn:
            places, batches = walk(one)
            label = type(one).__name__
            text = f"{steps_of(places, batches):.0%} of the steps"
            if name in SECOND:
                detail = "gate=None" if getattr(one, "gate", 1) is None else "gated" if label == "Seesaw" else label
                text = f"{detail}: {text}"
            panel.step(
                [place / TOTAL for place in places], batches, where="post", color=color, ls=style, lw=2, label=text
            )
        if isinstance(policy, HoldIfWorse):
            panel.axvspan(*BAD, color="#f0d9d9", lw=0, label="metric behind its trend")
        panel.set_yscale("log", base=2)
        panel.set_title(name, fontsize=10, family="monospace")
        panel.set(xlim=(0, 1), ylim=(16, 2500), yticks=[16, 64, 256, 1024], yticklabels=["16", "64", "256", "1024"])
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="#e6e6e6", lw=0.7)
        panel.legend(fontsize=8, frameon=False, loc="upper left")
    for panel in axes[-1]:
        panel.set_xlabel("share of the examples")
    for panel in axes[:, 0]:
        panel.set_ylabel("batch, examples")
    return figure


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=PICTURE, help="default: docs/policies.svg")
    out = parser.parse_args().out
    import matplotlib

    # The same decisions give the same file: no date, no random ids, and text as text.
    matplotlib.rcParams.update({"svg.hashsalt": "policies", "svg.fonttype": "none", "font.family": "DejaVu Sans"})
    metadata = {"Date": None, "Title": "What each policy does with the batch"} if out.suffix == ".svg" else {}
    draw().savefig(out, dpi=110, metadata=metadata)
    print(f"{out}: {len(PANELS)} panels")


if __name__ == "__main__":
    main()
