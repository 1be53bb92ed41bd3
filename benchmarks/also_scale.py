"""Measure what the rules of `also_scale` do to the loss: the scaler with and without each of them.

Paired by seed: a seed fixes the initial weights, the examples and their order.

- The language model of front.py (AdamW, weight decay 0.1) reads 12,000 sequences once, from a batch of 4 at the
  learning rate that was best for it. Adam's second beta is torch's default, 0.999.
- The pieces of source code of front.py, from a batch of 4 (Adam, 0.999).
- The digits of the demo, 25 epochs, from a batch of 8: with AdamW (0.999), and with SGD and momentum 0.9.

Beside the loss, each run records what its optimizer really updated with: the decay in all (the sum of learning rate
times weight decay over the steps, so that weights without a gradient shrink to exp of minus this) and the lowest
second beta or momentum.

Finished runs are lines of results/also_scale.jsonl and are not made again, so the command may be stopped and resumed.
The table of docs/also_scale.md, between its markers, follows from them.

    python benchmarks/also_scale.py              # make the missing runs, then the table
    python benchmarks/also_scale.py --table      # only the table
    python benchmarks/also_scale.py --check      # exit with status 1 if the page is not that of the results
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from front_tasks import PIECES, PieceModel, Task
from front_tasks import TASKS as TRAININGS
from language_model import TASK, ByteModel, corpus, warmup_and_cosine
from machine import describe, mean_and_error

from lightning_bsscale import BatchSizeScaler, Beta2, HyperparameterRule, Momentum, WeightDecay
from lightning_bsscale.callbacks.output.quiet import quiet
from lightning_bsscale.demo import DigitsModel

RESULTS = Path(__file__).parent / "results" / "also_scale.jsonl"
DOCS = Path(__file__).parents[1] / "docs"
SEQUENCES = 12_000
# 97.5 % quantiles of Student's t, by the number of seeds; more seeds take the last.
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
SHOWN = ("loss", "steps", "growth", "decay", "averaging")
Record = dict[str, Any]
Rules = tuple[HyperparameterRule, ...]


def recording(optimizer: type[torch.optim.Optimizer]) -> Any:
    """Make a class of optimizer that records what it updates with.

    Args:
        optimizer: The class.

    Returns:
        A class of it, whose `decay` is the sum of learning rate times weight decay over the steps so far, and whose
        `averaging` is the lowest second beta, or momentum.
    """

    class Recording(optimizer):  # type: ignore[misc, valid-type]
        decay = 0.0
        averaging = math.inf

        def step(self, closure: Callable[[], Any] | None = None) -> Any:
            loss = None if closure is None else closure()
            group = self.param_groups[0]
            self.decay += group["lr"] * group["weight_decay"]
            self.averaging = min(self.averaging, group["betas"][1] if "betas" in group else group["momentum"])
            super().step()
            return loss

    return Recording


class Language(ByteModel):
    """The language model with torch's second beta."""

    def configure_optimizers(self) -> Any:
        optimizer = recording(torch.optim.AdamW)(
            self.parameters(), lr=self.rate, weight_decay=TASK["weight_decay"], fused=True
        )
        return warmup_and_cosine(optimizer, int(self.trainer.estimated_stepping_batches))


class Pieces(PieceModel):
    """The model of the pieces."""

    def configure_optimizers(self) -> Any:
        optimizer = recording(torch.optim.Adam)(self.parameters(), lr=self.rate, fused=True)
        return warmup_and_cosine(optimizer, int(self.trainer.estimated_stepping_batches))


class Digits(DigitsModel):
    """The demo's model."""

    def make_optimizer(self) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = recording(torch.optim.SGD)(self.parameters(), lr=self.rate, momentum=0.9)
        return made


class DigitsByAdam(DigitsModel):
    """The demo's model with AdamW."""

    def make_optimizer(self) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = recording(torch.optim.AdamW)(self.parameters(), lr=self.rate)
        return made


class Training(NamedTuple):
    """One training, and what is compared on it.

    Attributes:
        task: The training of the front that it is a variant of.
        model: Makes the module, given the learning rate.
        rate: The learning rate.
        rules: The rules of each run, by name; a fixed batch is made too, and all are compared with `SCALER`.
        examples: Examples to read; None for all.
    """

    task: Task
    model: Callable[[float], pl.LightningModule]
    rate: float
    rules: dict[str, Rules]
    examples: int | None = None


FIXED = "fixed batch"
SCALER = "also_scale=()"
TASKS = {
    "language model": Training(
        TRAININGS["lm"],
        Language,
        0.7 * TASK["base_rate"],
        {"WeightDecay()": (WeightDecay(),), "Beta2()": (Beta2(),), "both": (WeightDecay(), Beta2())},
        SEQUENCES,
    ),
    "pieces": Training(TRAININGS["pieces"], Pieces, 0.7 * PIECES["base_rate"], {"Beta2()": (Beta2(),)}),
    "digits, AdamW": Training(TRAININGS["digits"], DigitsByAdam, 1e-3, {"Beta2()": (Beta2(),)}),
    "digits, SGD": Training(TRAININGS["digits"], Digits, 0.01, {"Momentum()": (Momentum(),)}),
}


class Ended(pl.Callback):
    """Keeps the optimizer's record and the number of steps.

    Attributes:
        record: What was kept, from the end of training on.
    """

    def __init__(self) -> None:
        self.record: Record = {}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        optimizer: Any = trainer.optimizers[0]
        self.record = {"steps": trainer.global_step, "decay": optimizer.decay, "averaging": optimizer.averaging}


def run(job: Record) -> Record:
    """Make one run.

    Args:
        job: Its task, name and seed.

    Returns:
        Its results.
    """
    torch.set_num_threads(1)
    training = TASKS[job["task"]]
    task, ended = training.task, Ended()
    rules = {SCALER: (), **training.rules}.get(job["name"])
    scaler = None if rules is None else BatchSizeScaler(also_scale=rules)
    settings: Record = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with quiet():
        loader = task.make_loader(task.start, job["seed"], training.examples)
        torch.manual_seed(job["seed"])
        model = training.model(training.rate)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=task.epochs,
            callbacks=[ended] if scaler is None else [ended, scaler],
            gradient_clip_val=task.clip,
            enable_model_summary=False,
            **settings,
        )
        trainer.fit(model, loader)
    model.eval()
    growth = 1.0 if scaler is None else scaler.batch_size / task.start
    return {"loss": task.score(model), **ended.record, "growth": growth}


def jobs(seeds: int) -> list[Record]:
    """List the runs, seed by seed, so that an unfinished file is balanced.

    Args:
        seeds: Number of seeds.

    Returns:
        The settings of each run.
    """
    found = []
    for seed in range(seeds):
        for name, training in TASKS.items():
            settings = {"rate": training.rate, **training.task.settings}
            if training.task.reads_source:
                settings["text"] = corpus()[2]["sha256"]
            if training.examples is not None:
                settings["examples"] = training.examples
            found += [
                {"task": name, "name": run_name, "seed": seed, "settings": json.loads(json.dumps(settings))}
                for run_name in (FIXED, SCALER, *training.rules)
            ]
    return found


def finished(path: Path) -> list[tuple[Record, Record]]:
    """Read the finished runs.

    Args:
        path: The results file.

    Returns:
        Settings and results.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [(line["job"], line["result"]) for line in map(json.loads, lines)]


def make(path: Path, seeds: int) -> None:
    """Make the missing runs, one after the other.

    Args:
        path: The results file.
        seeds: Number of seeds.
    """
    done = [job for job, _ in finished(path)]
    missing = [job for job in jobs(seeds) if job not in done]
    for number, job in enumerate(missing, 1):
        result = run(job)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"job": job, "result": result, "machine": describe()}) + "\n")
        shown = ", ".join(f"{key} {value:.5g}" for key, value in result.items())
        print(f"{number}/{len(missing)} {job['task']}, {job['name']}, seed {job['seed']}: {shown}", flush=True)


def by_name(runs: list[tuple[Record, Record]], task: str) -> dict[str, dict[int, Record]]:
    """Group a task's results, and leave out the seeds that are not finished.

    Args:
        runs: Settings and results.
        task: The task.

    Returns:
        The results by name and seed, in the order of `TASKS`.
    """
    groups: dict[str, dict[int, Record]] = {name: {} for name in (FIXED, SCALER, *TASKS[task].rules)}
    for job, result in runs:
        if job["task"] == task and job["name"] in groups:
            groups[job["name"]][job["seed"]] = result
    whole = set.intersection(*(set(group) for group in groups.values()))
    return {name: {seed: group[seed] for seed in sorted(whole)} for name, group in groups.items()}


def differences(groups: dict[str, dict[int, Record]], name: str) -> list[float]:
    """Subtract the loss of the scaler without rules, seed by seed.

    Args:
        groups: A task's results by name and seed.
        name: The runs to compare.

    Returns:
        One difference for each seed.
    """
    return [result["loss"] - groups[SCALER][seed]["loss"] for seed, result in groups[name].items()]


def half_width(error: float, seeds: int) -> float:
    """Return half the width of a 95 % interval.

    Args:
        error: The standard error.
        seeds: How many seeds it is from, at least two.

    Returns:
        The error times Student's quantile.
    """
    return error * STUDENT.get(seeds, STUDENT[8])


def rows(groups: dict[str, dict[int, Record]], task: str) -> list[str]:
    """Write a task's rows.

    Args:
        groups: Its results by name and seed.
        task: Its name.

    Returns:
        Markdown rows.
    """
    lines = []
    for name, group in groups.items():
        means = {key: mean_and_error([one[key] for one in group.values()]) for key in SHOWN}
        loss, difference, interval = f"{means['loss'][0]:.4f}", "–", "–"
        if name != SCALER:
            mean, error = mean_and_error(differences(groups, name))
            difference = f"{mean:+.4f}"
        if len(group) > 1:
            loss += f" ± {means['loss'][1]:.4f}"
        if len(group) > 1 and name != SCALER:
            difference += f" ± {error:.4f}"
            ends = (mean - half_width(error, len(group)), mean + half_width(error, len(group)))
            interval = "{:+.4f} to {:+.4f}".format(*ends)
        decay = f"{means['decay'][0]:.3f}" if means["decay"][0] else "–"
        lines.append(
            f"| {task} | {name} | {len(group)} | {loss} | {difference} | {interval} | {means['steps'][0]:,.0f}"
            f" | {means['growth'][0]:.1f} | {decay} | {means['averaging'][0]:.3g} |"
        )
    return lines


def table(runs: list[tuple[Record, Record]]) -> str:
    """Write the table.

    Args:
        runs: Settings and results.

    Returns:
        Markdown.
    """
    lines = [
        "| task | run | seeds | held-out loss | difference to also_scale=() | its 95 % interval | steps"
        " | last batch / first | decay in all | lowest β₂ or momentum |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        groups = by_name(runs, task)
        if groups[SCALER]:
            lines += rows(groups, task)
    lines += ["", "Losses in nats (per byte, or per image); ± is one standard error. Differences are paired by seed."]
    return "\n".join(lines)


def page_with(text: str, made: str) -> str:
    """Put the table between its markers.

    Args:
        text: The page.
        made: The table.

    Returns:
        The page with it.
    """
    start, end = "<!-- results -->", "<!-- end of results -->"
    before, rest = text.split(start)
    return f"{before}{start}\n\n{made}\n\n{end}{rest.split(end)[1]}"


def main() -> int:
    """Make the missing runs, then write the table.

    Returns:
        The exit status: 1 if `--check` finds that the page is not that of the results.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8, help="number of seeds (default: 8)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file of finished runs")
    parser.add_argument("--table", action="store_true", help="make no runs")
    parser.add_argument("--check", action="store_true", help="only compare the page with the results")
    options = parser.parse_args()
    if not (options.table or options.check):
        make(options.out, options.seeds)
    runs = finished(options.out)
    page = DOCS / "also_scale.md"
    text = page.read_text(encoding="utf-8")
    made = table(runs)
    if options.check:
        return int(page_with(text, made) != text)
    page.write_text(page_with(text, made), encoding="utf-8")
    print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
