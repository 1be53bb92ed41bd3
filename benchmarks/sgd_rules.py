"""Which learning-rate rule suits SGD? The digits at four learning rates, from too low to too high, under each rule.

The training is that of benchmarks/digits.py: the demo's small CNN, SGD with momentum, 25 epochs. A fixed batch of 8
does best at about 1 to 2 times the demo's learning rate, is undertrained at a quarter of it, and near divergence at
four times. At each of these rates the scaler starts from batch 8 under every rule, paired with the fixed batch by seed.

    python benchmarks/sgd_rules.py               # 8 seeds, about 25 minutes on one core; writes docs/options.md's table
    python benchmarks/sgd_rules.py --table       # only the table
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from machine import describe
from paired import make_runs, parser, summarize

from lightning_bsscale import BatchSizeScaler
from lightning_bsscale.demo import RATE, SMALL, train
from lightning_bsscale.theory.rules import Power

PAGE = Path(__file__).parents[1] / "docs" / "options.md"
MULTIPLES = (0.25, 1, 2, 4)
FIXED = "fixed 8"
RULES: dict[str, Any] = {
    FIXED: None,
    "`saturating`, the default": "auto",
    "`Power(0.75)`": Power(0.75),
    "`linear`": "linear",
}
SCORES = ("val_loss", "val_accuracy")


def one(job: tuple[str, int]) -> dict[str, Any]:
    """Make one run.

    Args:
        job: The rule's name and the multiple of the learning rate, separated by "@"; and the seed.

    Returns:
        Its results.
    """
    name, multiple = job[0].split("@")
    rule = RULES[name]
    callbacks = [] if rule is None else [BatchSizeScaler(lr_rule=rule)]
    made = train(job[0], batch_size=SMALL, rate=RATE * float(multiple), seed=job[1], epochs=25, callbacks=callbacks)
    return {**dataclasses.asdict(made), "seed": job[1], "cpu_seconds": made.seconds}


def table(results: dict[str, Any]) -> str:
    """Write the table.

    Args:
        results: What the command stored.

    Returns:
        Markdown: one row for each learning rate and rule.
    """
    lines = ["| learning rate | rule | steps | loss | loss, difference | accuracy, difference |", "|" + "---|" * 6]
    for multiple in MULTIPLES:
        rows = summarize([run for run in results["runs"] if run["name"].endswith(f"@{multiple:g}")], SCORES)
        for row in rows:
            differences = (
                ["–", "–"]
                if row is rows[0]
                else [f"{row[f'{key}_difference']:+.4f} ± {row[f'{key}_difference_error']:.4f}" for key in SCORES]
            )
            cells = [f"{RATE * multiple:g}", row["name"].split("@")[0], f"{row['optimizer_steps']:,.0f}"]
            cells += [f"{row['val_loss']:.4f}", *differences]
            lines.append(f"| {' | '.join(cells)} |")
    machine = results["machine"]
    seeds = len({run["seed"] for run in results["runs"]})
    return "\n".join(lines) + (
        f"\n\n{seeds} seeds; ± is one standard error, differences are to fixed 8 at the same learning rate, paired by"
        f" seed. Python {machine['python']}, torch {machine['torch']}, lightning {machine['lightning']},"
        f" {machine['processor']}, 1 thread a run.\n"
    )


def page_with(text: str, made: str) -> str:
    """Put the table into the page.

    Args:
        text: The page.
        made: The table.

    Returns:
        The page with it, between its markers.
    """
    start, end = "<!-- sgd rules -->", "<!-- end of sgd rules -->"
    return f"{text.split(start)[0]}{start}\n\n{made}\n{end}{text.split(end)[1]}"


def main() -> int:
    """Make all runs and write the table.

    Returns:
        The exit status.
    """
    options = parser(__doc__, name="sgd_rules", seeds=8)
    options.add_argument("--table", action="store_true", help="only write the table, from finished runs")
    chosen = options.parse_args()
    if not chosen.table:
        names = [f"{name}@{multiple:g}" for multiple in MULTIPLES for name in RULES]
        records = make_runs(one, names, chosen.seeds, chosen.workers)
        chosen.out.write_text(json.dumps({"machine": describe(threads=1), "runs": records}, indent=1) + "\n")
    PAGE.write_text(page_with(PAGE.read_text(), table(json.loads(chosen.out.read_text()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
