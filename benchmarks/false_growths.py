"""How often does the control grow beyond the noise scale, and what does it cost to promise that it seldom does?

Runs are simulated with the package's own averages, policy and limits (`lightning_bsscale.simulation.control`). First
those whose noise scale stays as it is, with Gaussian gradients. *Beyond* is the share of runs with at least one growth
to a batch above the true noise scale times `target_ratio`, *high bound* the share that grew at least once on a bound
above the true noise scale (a batch is rounded down, and grows by at least a quarter, so few of these go beyond),
*final* the mean of the last batch as a share of the truth times `target_ratio`, *largest* the largest batch of any run.
Standard errors are at most 0.05 for 100 runs. `target_ratio` is 1 for the bounds of 90 %, and 1.25 for the defaults;
`min_steps`, which would hide all of this in runs so short, is 0.

*Disturbed* runs break what the bound assumes. Heavy tails: single examples are Student t with 3 degrees of freedom, so
that a squared norm has no variance. Drift: the noise scale waves between half and twice its middle, four times in a
run (a wave is five times the memory), or falls to a quarter. *Beyond* and *high bound* are then against the true noise
scale at the moment of the growth; *above mean* is the share that grew on a bound above the true mean over the memory,
which is all that the bound can promise, because an average lags behind what it averages.

The price is measured where growth is right: the noise scale rises from 20 to 500 examples, exponentially or linearly,
and the number of optimizer steps is compared.

    python benchmarks/false_growths.py            # about 12 minutes, one thread; may be stopped and started again
    python benchmarks/false_growths.py --table    # only write the tables of docs/simulation.md
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_bsscale import NoiseScalePolicy
from lightning_bsscale.simulation.control import Control, Still, controlled, false_growths

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "simulation.md"
Rows = dict[tuple[str, tuple[Any, ...], str], dict[str, Any]]
UNIT = 8  # examples of a loader batch, and the first batch
TAIL = 3.0
POLICIES = {
    "0.8 for each look (default)": NoiseScalePolicy(min_steps=0),
    "0.9 for each look": NoiseScalePolicy(target_ratio=1.0, confidence=0.9, min_steps=0),
    "0.9 for the whole run": NoiseScalePolicy(target_ratio=1.0, confidence=0.9, min_steps=0, whole_run=True),
}
# Loader batches in the budget, noise scale in loader batches, measure_every, memory.
STILL = (
    (2000, 7.3, 8, 0.05),
    (2000, 23, 8, 0.05),
    (2000, 61, 8, 0.05),
    (2000, 23, 8, 0.02),
    (2000, 23, 8, 0.2),
    (20_000, 161, 8, 0.05),
)
# Middle of the noise scale in loader batches, how it moves, and degrees of freedom of Student's t; budget 2,000.
DISTURBED = (
    (23, "stays", TAIL),
    (61, "stays", TAIL),
    (61, "waves", math.inf),
    (61, "waves", TAIL),
    (61, "falls", math.inf),
    (61, "falls", TAIL),
)
WINDOWS = 2000
RISING = ((2000, "exponential"), (2000, "linear"))
FIRST, LAST = 20.0, 500.0
WAVES = 4


@dataclass(frozen=True)
class Moving:
    """A world whose noise scale moves with the examples.

    Attributes:
        total: The budget, in examples.
        law: How it moves.
        middle: The geometric mean of the noise scale, in examples, where the law does not fix its ends.
    """

    total: float
    law: str
    middle: float = math.nan

    def truth(self, examples_seen: float) -> tuple[float, float]:
        share = examples_seen / self.total
        scales = {
            "exponential": FIRST * (LAST / FIRST) ** share,
            "linear": FIRST + (LAST - FIRST) * share,
            "stays": self.middle,
            "waves": self.middle * 2 ** math.sin(2 * math.pi * WAVES * share),
            "falls": self.middle * 2 ** (1 - 2 * share),
        }
        return scales[self.law], 1.0

    def train(self, examples_seen: float, batch_size: int, steps: int, rate: float) -> None:
        pass


def control(policy: str, windows: int, measure_every: int = 8, memory: float = 0.05, tail: float = math.inf) -> Control:
    return Control(
        policy=POLICIES[policy],
        loader_batch=UNIT,
        max_batch_size=windows,
        total_examples=windows * UNIT,
        measure_every=measure_every,
        memory=memory,
        tail=tail,
    )


def target(policy: str) -> float:
    ratio = POLICIES[policy].target_ratio
    assert isinstance(ratio, float)
    return ratio


def still(policy: str, setting: tuple[int, float, int, float], runs: int) -> dict[str, Any]:
    windows, scale, measure_every, memory = setting
    found = false_growths(
        control(policy, windows, measure_every, memory),
        Still(UNIT * scale),
        target_ratio=target(policy),
        runs=runs,
        seed=0,
    )
    return {"kind": "still", "policy": policy, "setting": list(setting), "runs": runs, **found._asdict()}


def disturbed(policy: str, setting: tuple[float, str, float], runs: int) -> dict[str, Any]:
    scale, law, tail = setting
    world = Moving(WINDOWS * UNIT, law, UNIT * scale)
    found = false_growths(control(policy, WINDOWS, tail=tail), world, target_ratio=target(policy), runs=runs, seed=0)
    return {"kind": "disturbed", "policy": policy, "setting": list(setting), "runs": runs, **found._asdict()}


def rising(policy: str, setting: tuple[int, str], runs: int) -> dict[str, Any]:
    windows, law = setting
    steps, beyond = [], []
    for run in range(runs):
        stretches = [
            *controlled(control(policy, windows), Moving(windows * UNIT, law), np.random.default_rng((1, run)))
        ]
        steps.append(sum(stretch.steps for stretch in stretches))
        beyond.append(any(stretch.batch_size > max(target(policy) * stretch.true_scale, UNIT) for stretch in stretches))
    error = np.std(steps, ddof=1) / len(steps) ** 0.5
    return {
        "kind": "rising",
        "policy": policy,
        "setting": list(setting),
        "runs": runs,
        "steps": float(np.mean(steps)),
        "error": float(error),
        "beyond": float(np.mean(beyond)),
    }


def missing(path: Path, runs: int) -> Iterator[dict[str, Any]]:
    """Make the rows that the file does not hold yet."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    made = {(row["kind"], row["policy"], tuple(row["setting"]), row["runs"]) for row in map(json.loads, lines)}
    for setting in STILL:
        for policy in POLICIES:
            if ("still", policy, setting, runs) not in made:
                yield still(policy, setting, runs)
    for disturbance in DISTURBED:
        for policy in POLICIES:
            if ("disturbed", policy, disturbance, runs) not in made:
                yield disturbed(policy, disturbance, runs)
    for growth in RISING:
        for policy in POLICIES:
            if ("rising", policy, growth, runs // 2) not in made:
                yield rising(policy, growth, runs // 2)


def still_table(by_setting: Rows) -> list[str]:
    """Write the rows whose noise scale stays as it is."""
    lines = [
        "| budget, loader batches | noise scale | memory | confidence | beyond | high bound | final | largest |",
        "|" + "---|" * 8,
    ]
    for windows, scale, every, memory in STILL:
        for policy in POLICIES:
            row = by_setting["still", (windows, scale, every, memory), policy]
            lines.append(
                f"| {windows:,} | {scale:g} | {memory:.0%} | {policy} | {row['share']:.0%} | "
                f"{row['on_high_bound']:.0%} | {row['final']:.2f} | {row['largest']:.2f} |"
            )
    return lines


def disturbed_table(by_setting: Rows) -> list[str]:
    """Write the rows with heavy tails or drift."""
    lines = [
        "| noise scale | examples | confidence | beyond | high bound | above mean | final | largest |",
        "|" + "---|" * 8,
    ]
    for scale, law, tail in DISTURBED:
        ends = {"stays": f"{scale:g}", "waves": f"waves, {scale / 2:g} to {2 * scale:g}"}
        moves = ends.get(law, f"falls, {2 * scale:g} to {scale / 2:g}")
        kind = "Gaussian" if tail == math.inf else f"Student t ({tail:g})"
        for policy in POLICIES:
            row = by_setting["disturbed", (scale, law, tail), policy]
            lines.append(
                f"| {moves} | {kind} | {policy} | {row['share']:.0%} | {row['on_high_bound']:.0%} | "
                f"{row['on_high_mean_bound']:.0%} | {row['final']:.2f} | {row['largest']:.2f} |"
            )
    return lines


def rising_table(by_setting: Rows) -> list[str]:
    """Write the rows in which growth is right."""
    lines = [
        "| budget, loader batches | noise scale rises | confidence | optimizer steps | beyond |",
        "|" + "---|" * 5,
    ]
    for windows, law in RISING:
        for policy in POLICIES:
            row = by_setting["rising", (windows, law), policy]
            steps = f"{row['steps']:,.0f} ± {row['error']:.0f}"
            lines.append(f"| {windows:,} | {law} | {policy} | {steps} | {row['beyond']:.0%} |")
    return lines


TABLES = {"still": still_table, "disturbed": disturbed_table, "rising": rising_table}


def page_with(text: str, rows: list[dict[str, Any]]) -> str:
    """Put the tables into the page.

    Args:
        text: The page.
        rows: The finished rows.

    Returns:
        The page with the tables, each between its markers.
    """
    by_setting = {(row["kind"], tuple(row["setting"]), row["policy"]): row for row in rows}
    for name, write in TABLES.items():
        start, end = f"<!-- false growths: {name} -->", f"<!-- end of {name} -->"
        made = "\n".join(write(by_setting))
        text = f"{text.split(start)[0]}{start}\n\n{made}\n\n{end}{text.split(end)[1]}"
    return text


def main() -> int:
    """Make the missing rows, unless only the table is requested, and write the table.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="runs per row (default: 100)")
    parser.add_argument("--out", type=Path, default=RESULTS / "false_growths.jsonl", help="file of finished rows")
    parser.add_argument("--table", action="store_true", help="only write the tables of the finished rows")
    options = parser.parse_args()
    if not options.table:
        for row in missing(options.out, options.runs):
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)
    rows = [json.loads(line) for line in options.out.read_text(encoding="utf-8").splitlines()]
    PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
