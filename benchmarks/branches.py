"""Probe the critical batch by branches, and set it beside the noise scales and the hyperbola.

Two trainings: the digits CNN of experiments.py (SGD at a constant learning rate, batch 8) where its loss first reaches
1, 0.5 and 0.3, and the language model of front.py (AdamW, batch 4 at its best learning rate) after 10 % and 50 % of its
training. From each checkpoint `measure_critical_batch` branches as `probe` does, with a fixed number of offsets, so
that the load of the machine changes nothing. Beside it stand B_simple at the checkpoint, B_noise where it is measured,
and the hyperbola: of the whole training to a loss, and of the way from one loss to a lower one, from the same runs.

    python benchmarks/branches.py digits
    python benchmarks/branches.py language
    python benchmarks/branches.py all --table     # only the page, from the finished probes

Each finished probe is a line of results/branches.jsonl, and a stopped one resumes from runs/branches/.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from experiments import by_seed, finished, number, rows, tuned, with_interval, with_table
from fits import best, crossing, fit, hyperbola, interval
from language_model import TASK
from machine import describe
from matplotlib.figure import Figure
from plain_training import noise_of
from probed_tasks import ConstantRate, Digits, Text, ValidatedByteModel, clipping, sequences_seen, train_to

from lightning_bsscale.critical_batch import Probe, measure_critical_batch
from lightning_bsscale.theory.estimate import NoiseScale

RESULTS = Path(__file__).parent / "results"
FOUND = RESULTS / "branches.jsonl"
WORK = Path(__file__).parents[1] / "runs" / "branches"
DOCS = Path(__file__).parents[1] / "docs"
Job = dict[str, Any]
Record = dict[str, Any]

# The loss at the checkpoint, and the lower one to which the local hyperbola goes.
STAGES = {1.0: 0.5, 0.5: 0.2, 0.3: 0.2}
# At a loss of 1 as many as `probe` makes at most; the later ones are what a shared machine had time for.
OFFSETS = {1.0: 64, 0.5: 24, 0.3: 24}
SHARES = (0.1, 0.5)
# Sequences of a branch: the batches relative to 4, and the number of offsets.
BRANCHES: dict[int, tuple[tuple[float, ...], int]] = {512: ((0.5, 2, 8, 16), 8), 2048: ((1, 16, 64), 6)}
RATE = 0.1


def jobs(task: str) -> list[Job]:
    """List the probes of a task."""
    if task == "language":
        return [
            {"task": task, "stage": share, "seed": 0, "examples": number} for share in SHARES for number in BRANCHES
        ]
    return [{"task": task, "stage": stage, "rate": RATE, "seed": 0} for stage in STAGES]


def probe(job: Job) -> Record:
    """Train to the checkpoint, unless it is there, and branch from it."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    WORK.mkdir(parents=True, exist_ok=True)
    path = WORK / f"{job['task']}_{job['stage']}_{job['seed']}.ckpt"
    if not path.exists():
        train_to(path, job)
    if job["task"] == "digits":
        module, loaders, settings = ConstantRate(job["rate"]), Digits(), {"multiples": (0.5, 1, 2, 4, 8, 16)}
        settings |= {"examples": 1024, "offsets": OFFSETS[job["stage"]]}
    else:
        module, loaders = ValidatedByteModel(), Text(job["seed"], first=sequences_seen(job))
        multiples, offsets = BRANCHES[job["examples"]]
        settings = {"multiples": multiples, "examples": job["examples"], "held_out_examples": 512, "offsets": offsets}
    began, cpu = time.monotonic(), time.process_time()
    found = measure_critical_batch(
        module,
        loaders.train_dataloader(),
        loaders.val_dataloader(),
        record=path.with_name("_".join(str(value) for value in job.values()) + ".jsonl"),
        ckpt_path=path,
        trainer_options={"accelerator": "cpu", "gradient_clip_val": clipping(job["task"])},
        say=lambda text: print(text, flush=True),
        **settings,
    )
    record = {"probe": found.to_json(), "wall": time.monotonic() - began, "cpu": time.process_time() - cpu}
    if job["task"] == "digits":
        module.load_state_dict(torch.load(path, weights_only=False)["state_dict"])
        report = noise_of(module.layers, seed=job["seed"], hessian=True)
        record["hessian"] = report.hessian and _plain(report.hessian)
    return record | {"preconditioned": _preconditioned(found)}


def _preconditioned(found: Probe) -> list[float | None] | None:
    report = found.report
    return None if report is None or report.preconditioned is None else _plain(report.preconditioned)


def _plain(noise: NoiseScale) -> list[float | None]:
    values = (noise.noise_scale if noise.resolved else math.inf, noise.low, noise.high)
    return [value if math.isfinite(value) else None for value in values]


def done() -> list[tuple[Job, Record]]:
    """Read the finished probes."""
    lines = FOUND.read_text(encoding="utf-8").splitlines() if FOUND.exists() else []
    return [(line["job"], line["result"]) for line in map(json.loads, lines)]


# ---------------------------------------------------------------- the hyperbola


def local_hyperbola(seeds: Sequence[Any], start: float, end: float) -> float:
    """Fit the steps from one loss to a lower one, at the best learning rate of each batch for this part of the way."""
    steps: dict[int, dict[float, list[float]]] = {}
    for seed in seeds:
        for job, record in seed:
            if job["optimizer"] == "SGD":
                taken = crossing(record["curve"], end) - crossing(record["curve"], start)
                steps.setdefault(job["batch"], {}).setdefault(job["rate"], []).append(taken)
    costs = {
        batch: best(list(by_rate), [float(np.exp(np.mean(np.log(one)))) for one in by_rate.values()])[1]
        for batch, by_rate in steps.items()
    }
    return fit(hyperbola, list(costs), list(costs.values())).batch


def whole_hyperbola(seeds: Sequence[Any], target: float) -> float:
    """Fit the steps of the whole training to a loss, as experiments.py does."""
    found = tuned(seeds, "SGD", target)
    return fit(hyperbola, list(found), [steps for _, steps in found.values()]).batch


def language_runs() -> list[dict[str, float]]:
    """Return the final losses of front.py's fixed batches, each at its best learning rate, for each seed.

    Beside them is the loss of batch 8 after 14.8 % more sequences, which says what a difference is worth.
    """
    everything, longer = (
        [json.loads(line) for line in (RESULTS / name).read_text(encoding="utf-8").splitlines()]
        for name in ("front_lm.jsonl", "front_longer.jsonl")
    )
    losses: dict[str, dict[float, dict[int, float]]] = {}
    for run in everything:
        if run["name"].startswith("fixed"):
            losses.setdefault(run["name"], {}).setdefault(run["rate"], {})[run["seed"]] = run["val_loss"]
    best_rates = {
        name: min(by_rate.values(), key=lambda one: np.mean([*one.values()])) for name, by_rate in losses.items()
    }
    more = {run["seed"]: run["val_loss"] for run in longer}
    return [
        {name: losses_of[seed] for name, losses_of in best_rates.items()} | {"longer": more[seed]}
        for seed in sorted(more)
    ]


def language_hyperbola(seeds: Sequence[dict[str, float]]) -> float:
    """Fit a hyperbola to whole trainings of equal examples, whose losses differ little.

    A difference in loss is turned into examples by what 14.8 % more of them gained batch 8.
    """
    mean = {name: float(np.mean([seed[name] for seed in seeds])) for name in seeds[0]}
    slope = (mean["fixed8"] - mean["longer"]) / math.log(36_736 / TASK["sequences"])
    batches = sorted(int(name.removeprefix("fixed")) for name in mean if name.startswith("fixed"))
    examples = [math.exp((mean[f"fixed{batch}"] - mean["fixed8"]) / slope) for batch in batches]
    return fit(hyperbola, batches, [one / batch for one, batch in zip(examples, batches, strict=True)]).batch


# ---------------------------------------------------------------- the page


def ends(found: Record) -> str:
    """Write the branches' answer, or what is known of it."""
    low, high, value = (found["critical_batch_size"][name] for name in ("low", "high", "value"))
    if value is None:
        return f"above {number(low)}" if low else f"below {number(high)}" if high else "not resolved"
    return with_interval(value, (low, high))


def scale(values: Sequence[float | None] | dict[str, float | None] | None) -> str:
    """Write a noise scale with its interval."""
    if values is None:
        return "–"
    value, low, high = values.values() if isinstance(values, dict) else values
    if value is None:
        return f"above {number(low)}" if low else "not resolved"
    return with_interval(value, (low or 0.0, math.inf if high is None else high))


def fitted(compute: Any, seeds: Sequence[Any], *losses: float) -> tuple[float, tuple[float, float]]:
    """Return a fitted critical batch with its interval over seeds."""
    return compute(seeds, *losses), interval(lambda some: compute(some, *losses), seeds)


@cache
def of_stage(stage: float) -> tuple[Any, Any]:
    """Return the fitted critical batch of the whole way to a loss, and of the way from it on, with their intervals."""
    seeds = by_seed(finished("sweep"))
    return fitted(whole_hyperbola, seeds, stage), fitted(local_hyperbola, seeds, stage, STAGES[stage])


def digits_table(probes: Sequence[tuple[Job, Record]]) -> str:
    body = []
    for job, record in sorted(probes, key=lambda one: -one[0]["stage"]):
        stage, found, (whole, local) = job["stage"], record["probe"], of_stage(job["stage"])
        body.append(
            [
                f"{stage:g} ({found['start_loss']:.2f})",
                scale(found["noise_scale"]),
                scale(record["hessian"]),
                with_interval(*whole),
                with_interval(*local),
                f"**{ends(found)}**",
                f"{found['offsets']}",
                f"{record['cpu']:.0f}",
            ]
        )
    head = ["loss (at the checkpoint)", "B_simple", "B_noise", "hyperbola, to this loss"]
    head += ["hyperbola, from this loss on", "branches", "offsets", "CPU seconds"]
    return rows(head, body)


def language_table(probes: Sequence[tuple[Job, Record]]) -> str:
    seeds, body = language_runs(), []
    for job, record in probes:
        found = record["probe"]
        body.append(
            [
                f"{job['stage']:.0%} ({found['start_loss']:.2f})",
                f"{job['examples']:,}",
                scale(found["noise_scale"]),
                scale(record["preconditioned"]),
                with_interval(*fitted(language_hyperbola, seeds)),
                f"**{ends(found)}**",
                f"{found['offsets']}",
                f"{record['cpu']:.0f}",
            ]
        )
    head = ["read (loss)", "sequences of a branch", "B_simple", "preconditioned", "hyperbola, whole training"]
    head += ["branches", "offsets", "CPU seconds"]
    return rows(head, body)


def worth_table(probes: Sequence[tuple[Job, Record]]) -> str:
    """Show what an example was worth in each batch, with what decided."""
    batches = sorted({row["batch_size"] for _, record in probes for row in record["probe"]["branches"]})
    body = []
    for job, record in probes:
        by_batch = {row["batch_size"]: row for row in record["probe"]["branches"]}
        name = (
            f"digits, loss {job['stage']:g}"
            if job["task"] == "digits"
            else f"language, {job['stage']:.0%}, {job['examples']:,}"
        )
        cells = []
        for batch in batches:
            row = by_batch.get(batch)
            worth = "" if row is None else "none" if (row["worth"] or 0) <= 0 else f"{row['worth']:.2f}"
            is_open = row is not None and row["verdict"] == "undecided"
            cells.append(f"{worth} ?" if is_open else worth)
        body.append([name, *cells])
    return rows(["from", *(f"{batch:g}" for batch in batches)], body)


def draw(figure: Any, probes: Sequence[tuple[Job, Record]]) -> None:
    """Draw all intervals of each stage beside each other."""
    figure.set_size_inches(9, 4)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    colors = ("tab:orange", "tab:green", "tab:blue", "tab:cyan", "tab:red")
    names = ("B_simple", "B_noise", "hyperbola, to here", "hyperbola, from here", "branches")
    for place, stage in enumerate(STAGES):
        some = [one for job, one in probes if (job["task"], job["stage"]) == ("digits", stage)]
        whole, local = of_stage(stage)
        shown = [
            [[*one["probe"]["noise_scale"].values()] for one in some],
            [one["hessian"] for one in some],
            [[whole[0], *whole[1]]],
            [[local[0], *local[1]]],
            [[*one["probe"]["critical_batch_size"].values()] for one in some],
        ]
        _bars(left, place, shown, colors, names)
    left.set_xticks(range(len(STAGES)), [f"{stage:g}" for stage in STAGES])
    left.set_xlabel("digits: loss at the checkpoint")
    language = [(job, one) for job, one in probes if job["task"] == "language"]
    language.sort(key=lambda one: (one[0]["stage"], one[0]["examples"]))
    whole = fitted(language_hyperbola, language_runs())
    for place, (_, one) in enumerate(language):
        found = one["probe"]
        shown = [
            [[*found["noise_scale"].values()]],
            [],
            [[whole[0], *whole[1]]],
            [],
            [[*found["critical_batch_size"].values()]],
        ]
        _bars(right, place, shown, colors, names)
    right.set_xticks(range(len(language)), [f"{job['stage']:.0%}, {job['examples']:,}" for job, _ in language])
    right.set_xlabel("language model: share of the training, and sequences of a branch")
    left.set_ylabel("examples")
    left.set_yscale("log", base=2)
    left.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    left.legend(fontsize="small", loc="lower center", ncols=2)
    left.set_ylim(bottom=1)
    for axes, number_of in ((left, len(STAGES)), (right, len(language))):
        axes.set_xlim(-0.6, max(1, number_of) - 0.4)


def _bars(axes: Any, place: int, shown: Sequence[Any], colors: Sequence[str], names: Sequence[str]) -> None:
    for kind, (intervals, color, name) in enumerate(zip(shown, colors, names, strict=True)):
        for seed, (value, low, high) in enumerate(intervals):
            x = place + 0.16 * (kind - 2) + 0.06 * seed
            axes.plot([x, x], [low or 1, high or 1024], color=color, linewidth=4, alpha=0.4, solid_capstyle="butt")
            label = name if place == 0 and seed == 0 else "_"
            axes.plot([x], [math.nan if value is None else value], "o", color=color, markersize=5, label=label)


def page(text: str) -> str:
    """Put the tables on the page."""
    probes = done()
    digits = sorted((one for one in probes if one[0]["task"] == "digits"), key=lambda one: -one[0]["stage"])
    language = sorted(
        (one for one in probes if one[0]["task"] == "language"), key=lambda one: (one[0]["stage"], one[0]["examples"])
    )
    text = with_table(text, "digits", digits_table(digits))
    text = with_table(text, "language", language_table(language))
    return with_table(text, "worth", worth_table([*digits, *language]))


def make(task: str) -> None:
    """Make the probes of a task that are missing."""
    for job in jobs(task):
        if job in [made for made, _ in done()]:
            continue
        print(f"{job}: some minutes", flush=True)
        result = probe(job)
        with FOUND.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"job": job, "result": result, "machine": describe()}) + "\n")


def main() -> int:
    """Make the missing probes, and write the tables and the picture of docs/probe.md.

    Returns:
        The exit status: 1 if `--check` finds another page than the results make.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["digits", "language", "all"])
    parser.add_argument("--table", action="store_true", help="make no probes")
    parser.add_argument("--check", action="store_true", help="only compare the page with the results")
    options = parser.parse_args()
    if not (options.table or options.check):
        for task in ("digits", "language") if options.task == "all" else (options.task,):
            make(task)
    path = DOCS / "probe.md"
    before = path.read_text(encoding="utf-8")
    text = page(before)
    if options.check:
        return int(text != before)
    path.write_text(text, encoding="utf-8")
    matplotlib.rcParams["svg.hashsalt"] = "branches"
    figure = Figure(layout="constrained")
    draw(figure, sorted(done(), key=lambda one: one[0]["stage"]))
    figure.savefig(DOCS / "probe.svg", metadata={"Date": None})
    return 0


if __name__ == "__main__":
    sys.exit(main())
