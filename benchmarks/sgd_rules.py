"""Which learning-rate rule suits SGD? Two trainings at learning rates from too low to too high, under each rule.

The digits are those of benchmarks/digits.py: the demo's small CNN, SGD with momentum, 25 epochs. A fixed batch of 8
does best at about 1 to 2 times the demo's learning rate, is undertrained at a quarter of it, and near divergence at
four times. The transformer is the front's short language model with SGD and momentum in place of AdamW: a fixed batch
of 4 does best at 0.1. At each learning rate the scaler starts from the same batch under every rule, paired by seed.

    python benchmarks/sgd_rules.py                           # 8 seeds, about 40 minutes on one core
    python benchmarks/sgd_rules.py --only digits --seeds 16  # one training; the other's results are kept
    python benchmarks/sgd_rules.py --table                   # only docs/options.md's table, from finished runs
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from front_tasks import TASKS
from language_model import ByteModel, warmup_and_cosine
from machine import describe
from paired import make_runs, parser, summarize

from lightning_bsscale import BatchSizeScaler
from lightning_bsscale.demo import RATE, SMALL, train
from lightning_bsscale.theory.rules import Power

PAGE = Path(__file__).parents[1] / "docs" / "options.md"
RULES: dict[str, Any] = {
    "fixed": None,
    "`power`, the default": Power(0.75),
    "`saturating`": "saturating",
    "`linear`": "linear",
}


@dataclass(frozen=True)
class Training:
    """A training with SGD.

    Attributes:
        title: What is trained.
        rates: The learning rates.
        scores: Results to compare.
        make: Makes a run, given its learning rate, its callbacks and the seed.
    """

    title: str
    rates: tuple[float, ...]
    scores: tuple[str, ...]
    make: Callable[[float, list[pl.Callback], int], dict[str, Any]]


def digits(rate: float, callbacks: list[pl.Callback], seed: int) -> dict[str, Any]:
    """Train the demo's CNN."""
    made = train("digits", batch_size=SMALL, rate=rate, seed=seed, epochs=25, callbacks=callbacks)
    return {key: value for key, value in dataclasses.asdict(made).items() if key not in {"name", "seconds"}}


class SGDByteModel(ByteModel):
    """The front's language model, with SGD and momentum."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.9)
        return warmup_and_cosine(optimizer, int(self.trainer.estimated_stepping_batches))


def transformer(rate: float, callbacks: list[pl.Callback], seed: int) -> dict[str, Any]:
    """Train the language model."""
    task = TASKS["lm_short"]
    loader = task.make_loader(task.start, seed, task.examples)
    torch.manual_seed(seed)
    model = SGDByteModel(rate)
    trainer = task.fit(model, loader, callbacks)
    return {"optimizer_steps": trainer.global_step, "examples": model.examples, "val_loss": task.score(model)}


TRAININGS = {
    "digits": Training(
        title="the digits, CNN, from batch 8",
        rates=tuple(RATE * multiple for multiple in (0.25, 1, 2, 4)),
        scores=("val_loss", "val_accuracy"),
        make=digits,
    ),
    "lm": Training(
        title="a transformer, clipped, from batch 4",
        rates=(0.03, 0.1, 0.3),
        scores=("val_loss",),
        make=transformer,
    ),
}


def one(job: tuple[str, int]) -> dict[str, Any]:
    """Make one run.

    Args:
        job: The training, the learning rate and the rule's name, separated by "@"; and the seed.

    Returns:
        Its results.
    """
    key, rate, name = job[0].split("@")
    callbacks: list[pl.Callback] = [] if RULES[name] is None else [BatchSizeScaler(lr_rule=RULES[name])]
    return {**TRAININGS[key].make(float(rate), callbacks, job[1]), "name": job[0], "seed": job[1]}


def names_of(key: str) -> list[str]:
    """Return the names of a training's runs, those of one learning rate after the other."""
    return [f"{key}@{rate:g}@{name}" for rate in TRAININGS[key].rates for name in RULES]


def table(results: dict[str, Any]) -> str:
    """Write the table.

    Args:
        results: What the command stored.

    Returns:
        Markdown: one row for each training, learning rate and rule.
    """
    head = ["training", "learning rate", "rule", "steps", "loss", "loss, difference", "accuracy, difference"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    seeds = []
    for key, training in TRAININGS.items():
        for rate in training.rates:
            runs = [run for run in results["runs"] if run["name"].startswith(f"{key}@{rate:g}@")]
            rows = summarize(runs, training.scores)
            for row in rows:
                cells = [training.title, f"{rate:g}", row["name"].split("@")[2], f"{row['optimizer_steps']:,.0f}"]
                cells += [f"{row['val_loss']:.4f}"]
                for score in ("val_loss", "val_accuracy"):
                    if row is rows[0] or score not in training.scores:
                        cells.append("–")
                    else:
                        cells.append(f"{row[f'{score}_difference']:+.4f} ± {row[f'{score}_difference_error']:.4f}")
                lines.append(f"| {' | '.join(cells)} |")
        seeds.append(f"{rows[0]['seeds']} seeds ({training.title})")
    machine = results["machine"]
    return "\n".join(lines) + (
        f"\n\n{', '.join(seeds)}; ± is one standard error, differences are to the fixed batch at the same learning"
        f" rate, paired by seed. Python {machine['python']}, torch {machine['torch']}, lightning"
        f" {machine['lightning']}, {machine['processor']}, 1 thread a run.\n"
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
    """Make the runs and write the table.

    Returns:
        The exit status.
    """
    options = parser(__doc__, name="sgd_rules", seeds=8)
    options.add_argument("--only", choices=list(TRAININGS), help="one training (default: both)")
    options.add_argument("--table", action="store_true", help="only write the table, from finished runs")
    chosen = options.parse_args()
    if not chosen.table:
        keys = [chosen.only] if chosen.only else list(TRAININGS)
        before = json.loads(chosen.out.read_text())["runs"] if chosen.out.exists() else []
        runs = [run for run in before if run["name"].split("@")[0] not in keys]
        for key in keys:
            runs += make_runs(one, names_of(key), chosen.seeds, chosen.workers)
        chosen.out.write_text(json.dumps({"machine": describe(threads=1), "runs": runs}, indent=1) + "\n")
    PAGE.write_text(page_with(PAGE.read_text(), table(json.loads(chosen.out.read_text()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
