"""The command `simulate`: what each policy would do with the user's numbers."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_bsscale.cli.amounts import amount, count, whole
from lightning_bsscale.cli.files import picture_of, unwritable, write_whole
from lightning_bsscale.cli.terminal import Working, complain, one_line, write, write_json

if TYPE_CHECKING:
    from lightning_bsscale.simulation.forecast import Forecast

HELP = "simulate what each policy would do with your numbers, in seconds"
ABOUT = """
Shows, for each policy, what the batch would do, how many optimizer steps that takes, and what it costs in loss, for a
noise scale that goes from one value to another. Batches and noise scales are in examples; numbers may be written as
33,675, 12.3M or 1e6. Measurements, decisions and learning-rate factors are those of the package, the loss is that of
a model (a quadratic) and given relative to the first batch held to the end.
"""
EXAMPLES = (
    "--noise-scale 10 --noise-scale-end 400 --examples 32000 --batch-size 4",
    "--noise-scale 10 --noise-scale-end 400 --examples 32k --batch-size 4 --policy noise_scale --fixed 64 --out s.png",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    training = parser.add_argument_group("the training")
    training.add_argument(
        "--noise-scale", type=amount, required=True, metavar="N", help="noise scale at the beginning, in examples"
    )
    training.add_argument(
        "--noise-scale-end", type=amount, metavar="N", help="noise scale at the end (default: as at the beginning)"
    )
    training.add_argument(
        "--growth",
        default="linear",
        metavar="LAW",
        help="how it grows with the examples: linear, power (fast at first) or exponential (fast at the end)",
    )
    training.add_argument("--examples", type=count, required=True, metavar="N", help="examples of the whole training")
    training.add_argument("--batch-size", type=count, required=True, metavar="N", help="first batch, in examples")
    training.add_argument(
        "--max-batch-size", type=count, metavar="N", help="largest batch (default: one that leaves 8 steps)"
    )
    training.add_argument("--optimizer", default="adam", metavar="NAME", help="adam or sgd")
    training.add_argument(
        "--rule",
        default="auto",
        metavar="NAME",
        help="learning rate against batch: linear, sqrt, power, saturating, surge, none, or auto for the optimizer's",
    )
    training.add_argument(
        "--schedule",
        default="cosine",
        metavar="NAME",
        help="of the learning rate: cosine, linear, step, exponential, wsd or constant",
    )
    compared = parser.add_argument_group("what is compared")
    compared.add_argument(
        "--policy",
        action="append",
        metavar="NAME",
        help="noise_scale, seesaw, smith, norm_test or meta; may be repeated (default: all of them)",
    )
    compared.add_argument(
        "--fixed", action="append", type=count, metavar="N", help="a fixed batch, in examples; may be repeated"
    )
    compared.add_argument("--seed", type=whole, default=0, metavar="N", help="seed of the simulated measurements")
    answer = parser.add_argument_group("the answer")
    answer.add_argument("--out", type=Path, metavar="FILE", help="draw it (.png, .svg or .pdf)")
    answer.add_argument("--json", action="store_true", help="print one JSON object instead of the table")


def run(arguments: argparse.Namespace) -> int:
    """Simulate, and print a sentence and a table, or JSON.

    Args:
        arguments: The parsed options.

    Returns:
        The exit status: 0, or 1 if the numbers are impossible.
    """
    from lightning_bsscale.simulation.forecast import Numbers, forecast

    out: Path | None = arguments.out
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
        with Working("simulating"):
            found = forecast(numbers, policies=arguments.policy, fixed=arguments.fixed or (), seed=arguments.seed)
        drawn = None if out is None else _drawn(found, out)
    except (ModuleNotFoundError, TypeError, ValueError) as error:
        return complain(f"simulate: {one_line(error)}")
    if out is not None and drawn is not None:
        try:
            write_whole(out, drawn)
        except OSError as error:
            return complain(unwritable(out, error))
    if arguments.json:
        write_json(as_json(found))
        return 0
    write(as_text(found) + ("" if out is None else f"\n\npicture: {out}"))
    return 0


def _drawn(found: Forecast, path: Path) -> bytes:
    from lightning_bsscale.simulation.pictures import draw_forecast

    return picture_of(draw_forecast(found), path)


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
