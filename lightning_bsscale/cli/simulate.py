"""The command `simulate`: what each policy would do with the user's numbers."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_bsscale.cli.terminal import complain, write

if TYPE_CHECKING:
    from lightning_bsscale.simulation.forecast import Forecast

HELP = "simulate what each policy would do with your numbers, in seconds"
EXAMPLE = "python -m lightning_bsscale simulate --noise-scale 10 --noise-scale-end 400 --examples 32000 --batch-size 4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--noise-scale", type=float, required=True, help="noise scale now, in examples")
    parser.add_argument("--noise-scale-end", type=float, help="noise scale at the end (default: as now)")
    parser.add_argument(
        "--growth",
        default="linear",
        help="how it grows with the examples: linear, power (fast at first) or exponential (fast at the end)",
    )
    parser.add_argument("--examples", type=int, required=True, help="examples of the whole training")
    parser.add_argument("--batch-size", type=int, required=True, help="first batch size, in examples")
    parser.add_argument("--max-batch-size", type=int, help="largest batch size (default: one that leaves 8 steps)")
    parser.add_argument("--optimizer", default="adam", help="adam or sgd")
    parser.add_argument("--rule", default="auto", help="learning rate against batch size (auto: the optimizer's)")
    parser.add_argument("--schedule", default="cosine", help="learning-rate schedule")
    parser.add_argument("--policy", action="append", help="a policy by name; repeat it (default: all)")
    parser.add_argument("--fixed", action="append", type=int, help="a fixed batch size to compare with")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulated measurements")
    parser.add_argument("--out", type=Path, help="write a picture here (.png, .svg or .pdf)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")


def run(arguments: argparse.Namespace) -> int:
    """Simulate, and print a sentence and a table, or JSON.

    Args:
        arguments: The parsed options.

    Returns:
        The exit status: 0, or 1 if the numbers are impossible.
    """
    from lightning_bsscale.simulation.forecast import Numbers, forecast

    try:
        largest = arguments.max_batch_size
        numbers = Numbers(
            noise_scale=arguments.noise_scale,
            noise_scale_end=arguments.noise_scale if arguments.noise_scale_end is None else arguments.noise_scale_end,
            growth=arguments.growth,
            examples=arguments.examples,
            batch_size=arguments.batch_size,
            max_batch_size=max(arguments.batch_size, arguments.examples // 8) if largest is None else largest,
            optimizer=arguments.optimizer,
            rule=arguments.rule,
            schedule=arguments.schedule,
        )
        found = forecast(numbers, policies=arguments.policy, fixed=arguments.fixed or (), seed=arguments.seed)
        if arguments.out is not None:
            _write_picture(found, arguments.out)
    except (ModuleNotFoundError, OSError, TypeError, ValueError) as error:
        return complain(f"simulate: {error}")
    write(json.dumps(as_json(found), allow_nan=False) if arguments.json else as_text(found))
    if arguments.out is not None and not arguments.json:
        write(f"\npicture: {arguments.out}")
    return 0


def _write_picture(found: Forecast, path: Path) -> None:
    from lightning_bsscale.simulation.pictures import draw_forecast

    figure = draw_forecast(found)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def as_text(found: Forecast) -> str:
    """Return the sentence and the table."""
    start, *others = found.rows
    shown = next((row for row in others if not row.policy.startswith("fixed")), start)
    sentence = (
        f"{shown.policy} goes from a batch of {start.final_batch_size:,} to {shown.final_batch_size:,} and takes "
        f"{shown.steps:,} steps instead of {start.steps:,}, at {shown.loss:.3f} times the loss of the first batch "
        "held to the end."
    )
    rows = [("policy", "final batch", "steps", "examples", "loss, relative")]
    rows += [
        (row.policy, f"{row.final_batch_size:,}", f"{row.steps:,}", f"{row.examples:,}", f"{row.loss:.3f}")
        for row in found.rows
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    measured = (
        f"rule {found.rule}; one loader batch in {found.measure_every} is measured; a model's loss, above its floor"
    )
    return "\n".join([sentence, "", *lines, "", measured])


def as_json(found: Forecast) -> dict[str, Any]:
    """Return numbers only: unknown or infinite ones are null."""
    numbers = found.numbers
    return {
        "noise_scale": numbers.noise_scale,
        "noise_scale_end": numbers.noise_scale_end,
        "growth": numbers.growth,
        "examples": numbers.examples,
        "batch_size": numbers.batch_size,
        "max_batch_size": numbers.max_batch_size,
        "optimizer": numbers.optimizer,
        "rule": found.rule,
        "measure_every": found.measure_every,
        "policies": [
            {
                "policy": row.policy,
                "final_batch_size": row.final_batch_size,
                "steps": row.steps,
                "examples": row.examples,
                "relative_loss": row.loss if math.isfinite(row.loss) else None,
                "changes": [
                    {"examples": stretch.examples_seen, "batch_size": stretch.record.batch_size}
                    for stretch in row.stretches
                    if stretch.record is not None and stretch.record.is_change
                ],
            }
            for row in found.rows
        ],
    }
