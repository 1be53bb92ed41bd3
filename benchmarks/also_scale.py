"""Measure what the rules of `also_scale` do to the loss: the scaler with and without each of them.

Two tasks, each with one thread and 8 seeds, paired: a seed fixes the initial weights, the examples and their order.

- The language model of front.py (AdamW, weight decay 0.1) reads 12,000 sequences once, from a batch of 4 at the
  learning rate that was best for it there. Adam's second beta is 0.95, and 0.999 for a second comparison: at 0.95
  `Beta2()` is at its floor from the start, so its floor is 0.8 there.
- The digits of the demo, 25 epochs of SGD with momentum 0.9, from a batch of 8.

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
from front import START, TASK, ByteModel, Sequences, as_is, corpus, warmup_and_cosine
from machine import describe, mean_and_error
from torch.utils.data import DataLoader

from lightning_bsscale import BatchSizeScaler, Beta2, HyperparameterRule, Momentum, WeightDecay
from lightning_bsscale.callbacks.output.quiet import quiet
from lightning_bsscale.demo import RATE, SMALL, DigitsModel
from lightning_bsscale.demo import train as train_digits

RESULTS = Path(__file__).parent / "results" / "also_scale.jsonl"
DOCS = Path(__file__).parents[1] / "docs"
SEQUENCES = 12_000
BEST_RATE = 0.7  # of front.py's rates, for its fixed batch of 4
EPOCHS = 25
# 97.5 % quantiles of Student's t, by the number of seeds; more seeds take the last.
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
SHOWN = ("loss", "steps", "growth", "decay", "averaging")
Record = dict[str, Any]


class Arm(NamedTuple):
    """One kind of run; the others of its task are compared with `SCALER`.

    Attributes:
        rules: What else follows the batch; None for a fixed batch, without the scaler.
        beta2: Adam's second beta at the start; None for the digits.
    """

    rules: tuple[HyperparameterRule, ...] | None
    beta2: float | None = None


SCALER = "the scaler alone"
TASKS: dict[str, dict[str, Arm]] = {
    "language model, β₂ = 0.95": {
        "fixed batch": Arm(None, 0.95),
        SCALER: Arm((), 0.95),
        "WeightDecay()": Arm((WeightDecay(),), 0.95),
        "Beta2(floor=0.8)": Arm((Beta2(floor=0.8),), 0.95),
        "both": Arm((WeightDecay(), Beta2(floor=0.8)), 0.95),
    },
    "language model, β₂ = 0.999": {
        SCALER: Arm((), 0.999),
        "Beta2()": Arm((Beta2(),), 0.999),
    },
    "digits, momentum 0.9": {
        "fixed batch": Arm(None),
        SCALER: Arm(()),
        "Momentum()": Arm((Momentum(),)),
    },
}


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
    """front.py's model, with a second beta of its own."""

    def __init__(self, beta2: float) -> None:
        super().__init__(TASK["base_rate"] * BEST_RATE)
        self.betas = (TASK["betas"][0], beta2)

    def configure_optimizers(self) -> Any:
        optimizer = recording(torch.optim.AdamW)(
            self.parameters(), lr=self.rate, betas=self.betas, weight_decay=TASK["weight_decay"], fused=True
        )
        return warmup_and_cosine(optimizer, int(self.trainer.estimated_stepping_batches))


class Digits(DigitsModel):
    """The demo's model."""

    def make_optimizer(self) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = recording(torch.optim.SGD)(self.parameters(), lr=self.rate, momentum=0.9)
        return made


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


def language_run(beta2: float, seed: int, sequences: int, callbacks: list[pl.Callback]) -> Record:
    """Train the language model once.

    Args:
        beta2: Adam's second beta.
        seed: Seed of the weights, the sequences and their order.
        sequences: How many it reads.
        callbacks: The Trainer's callbacks.

    Returns:
        The held-out loss, in nats per byte.
    """
    rows, held_out, _ = corpus()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:sequences]
    loader = DataLoader(Sequences(rows[order]), batch_size=START, collate_fn=as_is)
    torch.manual_seed(seed)
    model = Language(beta2)
    settings: Record = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with quiet():
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            callbacks=callbacks,
            gradient_clip_val=TASK["clip"],
            enable_model_summary=False,
            **settings,
        )
        trainer.fit(model, loader)
    model.eval()
    with torch.no_grad():
        losses = [model.loss(part).item() * len(part) for part in held_out.split(256)]
    return {"loss": sum(losses) / len(held_out)}


def digits_run(seed: int, epochs: int, callbacks: list[pl.Callback]) -> Record:
    """Train on the digits once.

    Args:
        seed: Seed of the weights and the order.
        epochs: Passes over the data.
        callbacks: The Trainer's callbacks.

    Returns:
        The validation loss, in nats, and the accuracy.
    """
    result = train_digits("", batch_size=SMALL, rate=RATE, seed=seed, epochs=epochs, callbacks=callbacks, model=Digits)
    return {"loss": result.val_loss, "accuracy": result.val_accuracy}


def run(job: Record) -> Record:
    """Make one run.

    Args:
        job: Its task, name and seed, and its length.

    Returns:
        Its results.
    """
    torch.set_num_threads(1)
    arm = TASKS[job["task"]][job["name"]]
    ended = Ended()
    scaler = None if arm.rules is None else BatchSizeScaler(also_scale=arm.rules)
    callbacks: list[pl.Callback] = [ended] if scaler is None else [ended, scaler]
    if arm.beta2 is None:
        found = digits_run(job["seed"], job["epochs"], callbacks)
    else:
        found = language_run(arm.beta2, job["seed"], job["sequences"], callbacks)
    start = SMALL if arm.beta2 is None else START
    return {**found, **ended.record, "growth": 1.0 if scaler is None else scaler.batch_size / start}


def jobs(seeds: int) -> list[Record]:
    """List the runs, seed by seed, so that an unfinished file is balanced.

    Args:
        seeds: Number of seeds.

    Returns:
        The settings of each run.
    """
    return [
        {
            "task": task,
            "name": name,
            "seed": seed,
            **({"epochs": EPOCHS} if arm.beta2 is None else {"sequences": SEQUENCES, "text": corpus()[2]["sha256"]}),
        }
        for seed in range(seeds)
        for task, arms in TASKS.items()
        for name, arm in arms.items()
    ]


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
    groups: dict[str, dict[int, Record]] = {name: {} for name in TASKS[task]}
    for job, result in runs:
        if job["task"] == task and job["name"] in groups:
            groups[job["name"]][job["seed"]] = result
    whole = set.intersection(*(set(group) for group in groups.values()))
    return {name: {seed: group[seed] for seed in sorted(whole)} for name, group in groups.items()}


def differences(groups: dict[str, dict[int, Record]], name: str) -> list[float]:
    """Subtract the loss of the scaler alone, seed by seed.

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
        "| task | run | seeds | held-out loss | difference to the scaler alone | its 95 % interval | steps"
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
