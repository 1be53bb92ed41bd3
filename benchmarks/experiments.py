"""The field's experiments on batch sizes, repeated on scikit-learn's digits with a small CNN.

    python benchmarks/experiments.py linear       # linear scaling: the curves against examples
    python benchmarks/experiments.py steps        # steps against examples to a loss: the hyperbola
    python benchmarks/experiments.py rates        # the best learning rate against the batch, SGD and Adam
    python benchmarks/experiments.py growth       # the noise scale in training, in total and by layer
    python benchmarks/experiments.py decay        # decay traded for growth, and seconds per epoch
    python benchmarks/experiments.py sharp        # curvature and accuracy at equal loss, against the batch
    python benchmarks/experiments.py optimizers   # ten optimizers under the scaler, against fixed batches of their own
    python benchmarks/experiments.py all

Every finished run is a line of `results/experiments/`, so a stopped experiment resumes. Each experiment
draws a picture and writes a table, both of `docs/experiments.md`. `--table` makes both from the finished runs alone.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from fits import Fit, best, crossing, exponent, fit, hyperbola, interval, saturating, surge
from machine import describe, mean_and_error
from matplotlib.figure import Figure
from plain_training import data, largest_eigenvalue, mean_loss, noise_of, train
from trainer_runs import DECAYS, EPOCHS, OPTIMIZERS, decay_run, epoch_run, optimizer_run

from lightning_bsscale.functional import scale_learning_rate

RESULTS = Path(__file__).parent / "results" / "experiments"
DOCS = Path(__file__).parents[1] / "docs"
Job = dict[str, Any]
Record = dict[str, Any]

# ---------------------------------------------------------------- runs

MULTIPLES = (1, 2, 3, 4, 5, 6, 7, 16, 32, 64)
# Base learning rate: examples of a run. The second is near the best learning rate of the base batch.
LINEAR = {0.001: 100_000, 0.1: 8_000}
BASE = 8
BATCHES = (8, 16, 32, 64, 128, 256, 512)
TARGETS = (1.0, 0.5, 0.3, 0.2)
LONGEST = 40_000
SHARP = (8, 32, 128, 512)
MIDDLE = 1.5
CHANCE = math.log(10)
COLORS = matplotlib.colormaps["viridis"]
MOMENTS = (0, 500, 1000, 2000, 4000, 8000, 16_000)
# The learning rates at batch 8 among which each optimizer's is chosen.
RATES = {
    "SGD": (0.05, 0.1, 0.2, 0.4, 0.8),
    "momentum": (0.005, 0.01, 0.02, 0.04),
    "Adagrad": (0.01, 0.03, 0.1, 0.3, 1.0),
    "RMSprop": (0.001, 0.002, 0.004, 0.008, 0.016),
    "Adam": (0.002, 0.004, 0.008, 0.016),
    "AdamW": (0.002, 0.004, 0.008, 0.016, 0.032),
    "LAMB": (0.005, 0.01, 0.02),
    "LARS": (0.01, 0.02, 0.05),
    "Lion": (0.0003, 0.001, 0.003, 0.006),
    "Muon": (0.005, 0.01, 0.02, 0.04),
}
LARGE = 64
FACTORS = {"none": 1.0, "sqrt": math.sqrt(LARGE / BASE), "linear": LARGE / BASE}
TUNING = 100  # the first seed of the runs by which a learning rate is chosen


def linear_jobs(seeds: int) -> list[Job]:
    return [
        {"base_rate": rate, "multiple": multiple, "seed": seed}
        for seed in range(seeds)
        for rate in LINEAR
        for multiple in MULTIPLES
    ]


def linear_run(job: Job) -> Record:
    examples, multiple = LINEAR[job["base_rate"]], job["multiple"]
    looks = tuple(round(examples * number / 16) for number in range(1, 17))
    measured = []

    def at_look(model: Any, point: dict[str, float]) -> None:
        if multiple == 1 and round(16 * point["examples"] / examples) % 4 == 0:
            noise = noise_of(model, seed=job["seed"]).noise
            measured.append([point["examples"], noise.trace, noise.grad_sq])

    _, curve = train(
        batch=BASE * multiple,
        rate=job["base_rate"] * multiple,
        seed=job["seed"],
        examples=examples,
        looks=looks,
        at_look=at_look,
    )
    return {"curve": [[point["examples"], point["loss"]] for point in curve], "noise": measured}


def sweep_jobs(seeds: int) -> list[Job]:
    jobs = []
    for seed in range(seeds):
        for batch in BATCHES:
            middle = min(0.8, 0.2 * math.sqrt(batch / BASE))
            lowest = 0.002 * 2 ** round(math.log2(batch / BASE) / 3)
            rates = [("SGD", round(middle * 2 ** (number / 2), 5)) for number in range(-2, 3)]
            rates += [("Adam", round(lowest * 2**number, 5)) for number in range(6)]
            jobs += [{"optimizer": name, "batch": batch, "rate": rate, "seed": seed} for name, rate in rates]
    return jobs


def sweep_run(job: Job) -> Record:
    _, curve = train(**job, examples=LONGEST, spacing=1.1, stop=TARGETS[-1])
    return {"curve": [[point["steps"], round(point["loss"], 5)] for point in curve]}


def noise_jobs(seeds: int) -> list[Job]:
    return [{"batch": 32, "rate": 0.4, "seed": seed} for seed in range(seeds)]


def noise_run(job: Job) -> Record:
    """Measure the noise scales where the loss first falls below each target."""
    found: dict[str, dict[str, list[float]]] = {}

    def at_look(model: Any, point: dict[str, float]) -> None:
        for target in TARGETS:
            if point["loss"] <= target and str(target) not in found:
                report = noise_of(model, seed=job["seed"], hessian=True)
                found[str(target)] = {
                    name: [noise.trace, noise.grad_sq]
                    for name, noise in (("simple", report.noise), ("hessian", report.hessian))
                    if noise is not None
                }

    train(**job, examples=LONGEST, stop=TARGETS[-1], at_look=at_look)
    return {"at": found}


def growth_jobs(seeds: int) -> list[Job]:
    return [{"batch": 8, "rate": 0.1, "seed": seed} for seed in range(seeds)]


def growth_run(job: Job) -> Record:
    measured = []

    def at_look(model: Any, point: dict[str, float]) -> None:
        report = noise_of(model, seed=job["seed"])
        layers = {name: [noise.trace, noise.grad_sq] for name, noise in report.layers.items()}
        measured.append({**point, "total": [report.noise.trace, report.noise.grad_sq], "layers": layers})

    train(**job, examples=MOMENTS[-1], looks=MOMENTS[1:], at_look=at_look)
    return {"measured": measured}


def decay_jobs(seeds: int) -> list[Job]:
    return [{"name": name, "seed": seed, "epochs": 8} for seed in range(seeds) for name in DECAYS]


def epoch_jobs(seeds: int) -> list[Job]:
    return [{"batch": batch, "seed": seed} for seed in range(seeds) for batch in BATCHES]


def sharp_jobs(seeds: int) -> list[Job]:
    return [
        {"batch": batch, "scaled": scaled, "seed": seed}
        for seed in range(seeds)
        for batch in SHARP
        for scaled in (True, False)
        if batch > BASE or scaled
    ]


def sharp_run(job: Job) -> Record:
    """Train to a loss, then find the largest eigenvalue of the Hessian there and the accuracy on other images."""
    rate = 0.1 * (min(job["batch"] / BASE, 8) if job["scaled"] else 1)
    model, curve = train(batch=job["batch"], rate=rate, seed=job["seed"], examples=400_000, spacing=1.05, stop=0.1)
    images, labels, held_images, held_labels = data()
    model.eval()
    with torch.no_grad():
        accuracy = (model(held_images).argmax(1) == held_labels).float().mean().item()
        held_loss = mean_loss(model, (held_images, held_labels)).item()
    eigenvalue = largest_eigenvalue(mean_loss(model, (images, labels)), list(model.parameters()))
    end = curve[-1]
    return {"rate": rate, "accuracy": accuracy, "held_loss": held_loss, "eigenvalue": eigenvalue, **end}


def tuning_jobs(seeds: int) -> list[Job]:
    return [
        {"optimizer": name, "batch": BASE, "rate": rate, "seed": TUNING + seed, "scaler": False}
        for seed in range(seeds)
        for name, rates in RATES.items()
        for rate in rates
    ]


def tried_rates(optimizer: str) -> dict[float, float]:
    """Return the mean held-out loss of each learning rate that was tried at batch 8; infinite where a run failed."""
    losses: dict[float, list[float]] = {}
    for job, record in finished("optimizer_rates"):
        if job["optimizer"] == optimizer:
            losses.setdefault(job["rate"], []).append(loss_of(record))
    means = {rate: statistics.fmean(found) for rate, found in sorted(losses.items())}
    return {rate: mean if math.isfinite(mean) else math.inf for rate, mean in means.items()}


def best_rate(optimizer: str) -> float:
    tried = tried_rates(optimizer)
    return min(tried, key=lambda rate: tried[rate])


def loss_of(record: Record) -> float:
    return float(record.get("val_loss", math.nan))


def scaler_jobs(seeds: int) -> list[Job]:
    return [
        {"optimizer": name, "batch": BASE, "rate": best_rate(name), "seed": seed, "scaler": True}
        for seed in range(seeds)
        for name in OPTIMIZERS
    ]


def factor_by_rule(optimizer: str) -> float:
    """Return the factor from batch 8 to 64 by the rule that the scaler chose for an optimizer; nan if it chose none.

    A rule that needs one takes the median noise scale of the scaler's run of the first seed.
    """
    for job, record in finished("optimizer_scaler"):
        if job["optimizer"] == optimizer and job["seed"] == 0 and "rule" in record:
            rule, noise = record["rule"], record["noise_scale"]
            return FACTORS.get(rule) or round(scale_learning_rate(1.0, BASE, LARGE, rule, noise_scale=noise), 2)
    return math.nan


def fixed_jobs(seeds: int) -> list[Job]:
    """Batch 8 and 64, the latter at the factors of the rules, and at that of the optimizer's own."""
    jobs = []
    for name in OPTIMIZERS:
        rate, own = best_rate(name), factor_by_rule(name)
        factors = sorted(factor for factor in {*FACTORS.values(), own} if math.isfinite(factor))
        runs = [(BASE, 1.0), *((LARGE, factor) for factor in factors)]
        jobs += [
            {"optimizer": name, "batch": batch, "factor": factor, "rate": rate * factor, "seed": seed, "scaler": False}
            for seed in range(seeds)
            for batch, factor in runs
        ]
    return jobs


RUNS: dict[str, tuple[Callable[[int], list[Job]], Callable[[Job], Record]]] = {
    "linear": (linear_jobs, linear_run),
    "sweep": (sweep_jobs, sweep_run),
    "noise": (noise_jobs, noise_run),
    "growth": (growth_jobs, growth_run),
    "decay": (decay_jobs, decay_run),
    "epoch": (epoch_jobs, epoch_run),
    "sharp": (sharp_jobs, sharp_run),
    "optimizer_rates": (tuning_jobs, optimizer_run),
    "optimizer_scaler": (scaler_jobs, optimizer_run),
    "optimizer_fixed": (fixed_jobs, optimizer_run),
}


def finished(name: str) -> list[tuple[Job, Record]]:
    """Read the finished runs of a kind."""
    path = RESULTS / f"{name}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [(line["job"], line["result"]) for line in map(json.loads, lines)]


def make(name: str, seeds: int, workers: int) -> None:
    """Make the runs of a kind that are missing, each in a process of one thread."""
    jobs_of, run = RUNS[name]
    done = {json.dumps(job, sort_keys=True) for job, _ in finished(name)}
    missing = [job for job in jobs_of(seeds) if json.dumps(job, sort_keys=True) not in done]
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (
        (RESULTS / f"{name}.jsonl").open("a", encoding="utf-8") as file,
        ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        futures = {pool.submit(run, job): job for job in missing}
        for number, future in enumerate(as_completed(futures), 1):
            file.write(json.dumps({"job": futures[future], "result": future.result()}) + "\n")
            file.flush()
            print(f"{name} {number}/{len(missing)}: {futures[future]}", flush=True)
    if missing:
        (RESULTS / "machine.json").write_text(json.dumps(describe(threads=1)) + "\n", encoding="utf-8")


# ---------------------------------------------------------------- results


class Page(NamedTuple):
    """What an experiment adds to the documentation.

    Attributes:
        table: Markdown.
        draw: Draws its picture into an empty figure.
    """

    table: str
    draw: Callable[[Any], None]


def rows(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join(lines + [f"| {' | '.join(cells)} |" for cells in body])


def number(value: float) -> str:
    """Write a number with three digits, or what it stands for."""
    if math.isnan(value):
        return "–"
    if value == 0 or math.isinf(value):
        return "no bend"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def with_interval(value: float, ends: tuple[float, float]) -> str:
    low, high = (number(end) if 0 < end < math.inf else "0" if end <= 0 else "∞" for end in ends)
    return number(value) if math.isnan(ends[0]) else f"{number(value)} ({low}–{high})"


def pooled(pairs: Sequence[Sequence[float]]) -> float:
    """Return the noise scale of several measurements: the mean trace over the mean squared norm."""
    trace, square = np.mean(np.array(pairs), axis=0)
    return float(trace / square) if square > 0 else math.inf


def by_seed(runs: Sequence[tuple[Job, Record]]) -> list[list[tuple[Job, Record]]]:
    """Group runs, and drop the seeds that are not complete."""
    groups: dict[int, list[tuple[Job, Record]]] = {}
    for job, record in runs:
        groups.setdefault(job["seed"], []).append((job, record))
    most = max(map(len, groups.values()), default=0)
    return [groups[seed] for seed in sorted(groups) if len(groups[seed]) == most]


def sizes(axes: Any) -> None:
    """Write batch sizes at a logarithmic axis."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("batch, in examples")


def linear_page() -> Page:
    seeds = by_seed(finished("linear"))
    curves: dict[float, dict[int, np.ndarray]] = {}
    noise: dict[float, list[float]] = {}
    for rate in LINEAR:
        one = [{job["multiple"]: record for job, record in seed if job["base_rate"] == rate} for seed in seeds]
        full = [[point[1] for point in run[1]["curve"]] for run in one]
        curves[rate] = {
            multiple: np.array([_filled(run[multiple]["curve"], len(full[0])) for run in one]) for multiple in MULTIPLES
        }
        moments: dict[float, list[list[float]]] = {}
        for run in one:
            for seen, *pair in run[1]["noise"]:
                moments.setdefault(round(4 * seen / LINEAR[rate]), []).append(pair)
        noise[rate] = [pooled(pairs) for pairs in moments.values()]
    body = []
    for rate, found in curves.items():
        for multiple, losses in found.items():
            last, first = losses[:, -1], found[1][:, -1]
            difference, error = mean_and_error(list(last - first))
            apart = np.mean(np.abs(np.log(losses / found[1])))
            reached = [crossing([*enumerate(curve, 1)], MIDDLE) for curve in losses]
            ratio = np.mean(np.array(reached) / [crossing([*enumerate(curve, 1)], MIDDLE) for curve in found[1]])
            body.append(
                [
                    f"{rate:g} × {multiple}",
                    f"{BASE * multiple}",
                    f"{last.mean():.3f}",
                    "–" if multiple == 1 else f"{difference:+.3f} ± {error:.3f}",
                    "–" if multiple == 1 else f"{np.expm1(apart):.1%}",
                    "–" if multiple == 1 else "not reached" if math.isnan(ratio) else f"{ratio:.2f}",
                ]
            )
    reach = f"examples to a loss of {MIDDLE:g}, relative"
    table = rows(["learning rate", "batch", "final loss", "difference to batch 8", "curves apart by", reach], body)
    scales = "; ".join(f"at {rate:g} {', '.join(map(number, values))}" for rate, values in noise.items())
    note = (
        f"{len(seeds)} seeds; ± is one standard error of paired differences. Noise scale at a quarter, a half, three "
        f"quarters and the end of the runs of batch 8: {scales} examples."
    )

    def draw(figure: Any) -> None:
        figure.set_size_inches(9, 6.4)
        for (left, right), (rate, found) in zip(figure.subplots(2, 2), curves.items(), strict=True):
            xs = [LINEAR[rate] * place / 16 for place in range(1, 17)]
            for place, (multiple, losses) in enumerate(found.items()):
                color = COLORS(place / len(found))
                left.plot(xs, np.exp(np.log(losses).mean(0)), color=color, label=f"k = {multiple}")
                ratios = list(losses[:, -1] / found[1][:, -1])
                right.errorbar(BASE * multiple, *mean_and_error(ratios), marker="o", color=color)
            left.set_title(f"batch 8·k at learning rate {rate:g}·k", fontsize="medium")
            left.set_yscale("log")
            left.set_xlabel("examples")
            left.set_ylabel("loss")
            left.legend(fontsize="x-small", ncols=2)
            sizes(right)
            right.set_yscale("log")
            right.set_ylabel("final loss, relative to batch 8")
            right.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            low, high = min(noise[rate]), max(noise[rate])
            right.axvspan(low, min(high, 1024), color="tab:orange", alpha=0.2, label="noise scale during the run")
            if rate == min(LINEAR):
                right.set_ylim(0.5, 2)
                right.set_yticks([0.5, 1, 2])
                right.set_yticks([], minor=True)
            right.legend(fontsize="small", loc="upper left")

    return Page(f"{table}\n\n{note}", draw)


def _filled(curve: Sequence[Sequence[float]], length: int) -> list[float]:
    """Give a run that was ended, as it diverged, the loss of chance to its end."""
    losses = [min(point[1], CHANCE) if math.isfinite(point[1]) else CHANCE for point in curve]
    return losses + [CHANCE] * (length - len(losses))


def tuned(seeds: Sequence[list[tuple[Job, Record]]], optimizer: str, target: float) -> dict[int, tuple[float, float]]:
    """Return the best learning rate of each batch and its steps to a loss, from geometric means over seeds."""
    steps: dict[int, dict[float, list[float]]] = {}
    for seed in seeds:
        for job, record in seed:
            if job["optimizer"] == optimizer:
                by_rate = steps.setdefault(job["batch"], {})
                by_rate.setdefault(job["rate"], []).append(crossing(record["curve"], target))
    return {
        batch: best(list(by_rate), [float(np.exp(np.mean(np.log(found)))) for found in by_rate.values()])
        for batch, by_rate in sorted(steps.items())
    }


def measured_at(target: float, kind: str) -> tuple[float, tuple[float, float]]:
    """Return the noise scale measured where the loss reached a target, with its interval over seeds."""
    found = [record["at"][str(target)][kind] for _, record in finished("noise") if kind in record["at"][str(target)]]
    return pooled(found), interval(pooled, found)


def steps_page() -> Page:
    seeds = by_seed(finished("sweep"))
    body, drawn = [], {}
    for target in TARGETS:

        def fitted(some: Sequence[Any], target: float = target) -> Fit:
            found = tuned(some, "SGD", target)
            return fit(hyperbola, list(found), [steps for _, steps in found.values()])

        whole, points = fitted(seeds), tuned(seeds, "SGD", target)
        drawn[target] = whole, {batch: steps for batch, (_, steps) in points.items() if math.isfinite(steps)}
        body.append(
            [
                f"{target:g}",
                f"{len(drawn[target][1])}",
                number(whole.limit),
                number(whole.limit * whole.batch),
                with_interval(whole.batch, interval(lambda some: fitted(some).batch, seeds)),
                f"{whole.error:.0%}",
                with_interval(*measured_at(target, "simple")),
                with_interval(*measured_at(target, "hessian")),
            ]
        )
    head = ["loss", "batches", "S_min", "E_min", "B_crit, fitted", "error of the fit", "B_simple", "B_noise"]
    note = f"{len(seeds)} seeds; noise scales: {len(finished('noise'))} seeds; in brackets 90 % over seeds (bootstrap)."

    def draw(figure: Any) -> None:
        figure.set_size_inches(9, 4.2)
        left, right = figure.subplots(1, 2)
        for place, (target, (whole, points)) in enumerate(drawn.items()):
            color, span = COLORS(place / len(drawn)), np.geomspace(min(BATCHES) / 2, 2 * max(BATCHES))
            law = whole.limit * hyperbola(span, np.array(whole.batch))
            left.plot(list(points.values()), [batch * steps for batch, steps in points.items()], "o", color=color)
            left.plot(law, law * span, color=color, label=f"to a loss of {target:g}")
            right.plot(target, whole.batch, "o", color="tab:blue", label="B_crit, fitted" if place == 0 else "_")
            for shift, (kind, name) in enumerate((("simple", "B_simple"), ("hessian", "B_noise"))):
                value, (low, high) = measured_at(target, kind)
                x, color = target * (1.05 + 0.05 * shift), ("tab:orange", "tab:green")[shift]
                right.plot(x, value, "s", color=color, label=f"{name}, measured" if place == 0 else "_")
                right.plot([x, x], [max(low, 1), min(high, 1e4)], color=color)
            low, high = interval(lambda some, t=target: _critical(some, t), seeds)
            right.plot([target, target], [max(low, 1), min(high, 1e4)], color="tab:blue")
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.legend(fontsize="small")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(lambda value, _: f"{value:,g}")
                axis.set_minor_formatter(lambda value, _: "")
        left.set_xticks([30, 50, 100, 200, 400])
        left.set_yticks([500, 1000, 2000, 5000, 10_000, 20_000])
        left.set_ylim(300, 1.2 * max(BATCHES) * 100)
        right.set_xticks(TARGETS)
        right.set_yticks([5, 10, 20, 50, 100, 200])
        left.set_xlabel("steps")
        left.set_ylabel("examples")
        right.set_xlabel("loss")
        right.set_ylabel("examples")
        right.invert_xaxis()

    return Page(f"{rows(head, body)}\n\n{note}", draw)


def _critical(seeds: Sequence[Any], target: float) -> float:
    found = tuned(seeds, "SGD", target)
    return fit(hyperbola, list(found), [steps for _, steps in found.values()]).batch


def rates_page() -> Page:
    seeds = by_seed(finished("sweep"))
    body, drawn = [], {}
    for optimizer in ("SGD", "Adam"):
        for target in TARGETS:
            found = {batch: rate for batch, (rate, _) in tuned(seeds, optimizer, target).items()}
            batches, values = list(found), list(found.values())
            slope, error = exponent(batches, values)
            bend, peak = fit(saturating, batches, values), fit(surge, batches, values)
            drawn[optimizer, target] = found, bend, peak
            body.append(
                [
                    optimizer,
                    f"{target:g}",
                    f"{np.isfinite(values).sum()}",
                    f"{slope:.2f}",
                    f"{error:.0%}",
                    f"{number(bend.batch)}",
                    f"{bend.error:.0%}",
                    f"{number(peak.batch)}",
                    f"{peak.error:.0%}",
                    number(measured_at(target, "simple")[0]),
                    number(measured_at(target, "hessian")[0]),
                ]
            )
    head = ["optimizer", "loss", "batches", "power of the batch", "error", "saturating: B_noise", "error"]
    head += ["surge: B_noise", "error", "B_simple", "B_noise"]

    def draw(figure: Any) -> None:
        figure.set_size_inches(9, 4)
        for axes, optimizer in zip(figure.subplots(1, 2), ("SGD", "Adam"), strict=True):
            for place, target in enumerate(TARGETS):
                found, bend, peak = drawn[optimizer, target]
                color, span = COLORS(place / len(TARGETS)), np.geomspace(min(BATCHES), max(BATCHES))
                axes.plot(list(found), list(found.values()), "o", color=color, label=f"best to a loss of {target:g}")
                law, shape = (bend, saturating) if optimizer == "SGD" else (peak, surge)
                axes.plot(span, law.limit * shape(span, np.array(law.batch)), color=color, linewidth=1)
            sizes(axes)
            axes.set_yscale("log")
            axes.set_ylabel("best learning rate")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "2346" else "")
            law = "saturating" if optimizer == "SGD" else "surge"
            axes.set_title(f"{optimizer}; lines: the {law} law, fitted", fontsize="medium")
            axes.legend(fontsize="small")

    return Page(f"{rows(head, body)}\n\n{len(seeds)} seeds.", draw)


def growth_page() -> Page:
    runs = [record["measured"] for _, record in finished("growth")]
    names = {"0": "convolution", "5": "linear 1", "7": "linear 2"}
    body, layers, totals = [], [], []
    for moment in zip(*runs, strict=True):
        total = [point["total"] for point in moment]
        layers.append([pooled([point["layers"][name] for point in moment]) for name in names])
        totals.append((pooled(total), *interval(pooled, total)))
        body.append(
            [
                f"{moment[0]['examples']:,}",
                f"{statistics.fmean(point['loss'] for point in moment):.3f}",
                with_interval(totals[-1][0], totals[-1][1:]),
                *map(number, layers[-1]),
            ]
        )
    examples = [point["examples"] for point in runs[0]]

    def draw(figure: Any) -> None:
        figure.set_size_inches(9, 3.8)
        left, right = figure.subplots(1, 2)
        middle, low, high = np.array(totals).T
        left.fill_between(examples, low, high, color="tab:orange", alpha=0.25, label="90 % over seeds")
        left.plot(examples, middle, "o-", color="tab:orange", label="all parameters")
        for place, name in enumerate(names.values()):
            values = [row[place] for row in layers]
            left.plot(examples, values, "--", color=COLORS(place / 3), linewidth=1, label=name)
        left.set_xscale("log")
        left.set_yscale("log")
        left.set_xlabel("examples seen")
        left.set_ylabel("noise scale, in examples")
        left.legend(fontsize="small")
        image = right.imshow(np.array(layers).T, aspect="auto", norm="log")
        right.set_xticks(range(len(examples)), [f"{seen:,}" for seen in examples], rotation=30, ha="right")
        right.set_yticks(range(len(names)), list(names.values()))
        right.set_xlabel("examples seen")
        figure.colorbar(image, ax=right, label="noise scale, in examples")

    head = ["examples", "loss", "noise scale", *names.values()]
    return Page(f"{rows(head, body)}\n\n{len(runs)} seeds; in brackets 90 % over seeds (bootstrap).", draw)


def decay_page() -> Page:
    runs = by_seed(finished("decay"))
    found = [{job["name"]: record for job, record in seed} for seed in runs]
    body = []
    for name in DECAYS:
        one, first = [run[name] for run in found], [run[f"{name.split(',')[0]}, cosine"] for run in found]
        differences = [a["val_loss"] - b["val_loss"] for a, b in zip(one, first, strict=True)]
        ends = sorted({record["final_batch"] for record in one})
        loss, error = mean_and_error([record["val_loss"] for record in one])
        same = name.endswith("cosine")
        body.append(
            [
                name,
                f"{statistics.fmean(record['optimizer_steps'] for record in one):,.0f}",
                f"{ends[0]}" if len(ends) == 1 else f"{ends[0]}–{ends[-1]}",
                f"{loss:.4f} ± {error:.4f}",
                "–" if same else "{:+.4f} ± {:.4f}".format(*mean_and_error(differences)),
                f"{statistics.fmean(record['val_accuracy'] for record in one):.1%}",
            ]
        )
    table = rows(["run", "steps", "final batch", "held-out loss", "difference to the cosine", "accuracy"], body)
    times = {
        batch: [record["cpu_seconds"] for job, record in finished("epoch") if job["batch"] == batch]
        for batch in BATCHES
    }
    seconds = rows(["batch", *map(str, times)], [["CPU seconds", *(f"{min(some):.2f}" for some in times.values())]])

    def draw(figure: Any) -> None:
        figure.set_size_inches(9, 4)
        left, right = figure.subplots(1, 2)
        for place, name in enumerate(DECAYS):
            steps = statistics.fmean(run[name]["optimizer_steps"] for run in found)
            first = f"{name.split(',')[0]}, cosine"
            differences = [run[name]["val_loss"] - run[first]["val_loss"] for run in found]
            loss, error = mean_and_error(differences)
            shape = "o" if name.startswith("SGD") else "s"
            left.errorbar(steps, loss, error, marker=shape, color=COLORS(place / len(DECAYS)), label=name, linestyle="")
        left.set_xlabel("optimizer steps")
        left.set_ylabel("held-out loss, difference to the cosine")
        left.axhline(0, color="0.6", linewidth=1)
        left.set_xlim(0)
        left.legend(fontsize="small", loc="upper left")
        right.plot(list(times), [min(some) for some in times.values()], "o-", color="tab:blue")
        sizes(right)
        right.set_yscale("log")
        right.set_ylabel("CPU seconds per epoch")
        right.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        right.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "235" else "")

    note = f"{len(found)} seeds, 8 epochs; ± is one standard error over seeds, of paired differences."
    least = f"CPU seconds of one epoch (1,347 examples) in the training loop, the least of {len(times[BASE])}:"
    return Page(f"{table}\n\n{note}\n\n{least}\n\n{seconds}", draw)


def sharp_page() -> Page:
    seeds = by_seed(finished("sharp"))
    groups: dict[tuple[int, bool], list[Record]] = {}
    for seed in seeds:
        for job, record in seed:
            groups.setdefault((job["batch"], job["scaled"]), []).append(record)
    means = {
        key: {
            name: mean_and_error([record[name] for record in some])
            for name in ("eigenvalue", "accuracy", "held_loss", "steps", "loss")
        }
        for key, some in sorted(groups.items())
    }
    body = [
        [
            str(batch),
            f"{groups[batch, scaled][0]['rate']:g}",
            f"{found['steps'][0]:,.0f}",
            f"{found['loss'][0]:.3f}",
            "{:.1f} ± {:.1f}".format(*found["eigenvalue"]),
            "{:.3f} ± {:.3f}".format(*found["held_loss"]),
            "{:.1%} ± {:.1%}".format(*found["accuracy"]),
        ]
        for (batch, scaled), found in means.items()
    ]
    head = ["batch", "learning rate", "steps", "training loss", "largest eigenvalue", "held-out loss", "accuracy"]

    def draw(figure: Any) -> None:
        figure.set_size_inches(9, 3.6)
        axes = figure.subplots(1, 2)
        for scaled, name, color in ((False, "learning rate 0.1", "tab:blue"), (True, "scaled, at most 0.8", "tab:red")):
            shown = [batch for batch in SHARP if (batch, scaled) in means or batch == BASE]
            points = [means[batch, scaled or batch == BASE] for batch in shown]
            for one, key in zip(axes, ("eigenvalue", "accuracy"), strict=True):
                values, errors = zip(*(point[key] for point in points), strict=True)
                one.errorbar(shown, values, errors, marker="o", color=color, label=name, capsize=3)
        for one, name in zip(axes, ("largest eigenvalue of the Hessian", "accuracy on held-out images"), strict=True):
            sizes(one)
            one.set_ylabel(name)
            one.legend(fontsize="small")

    return Page(f"{rows(head, body)}\n\n{len(seeds)} seeds; ± is one standard error.", draw)


Seeds = dict[int, Record]


def runs_of(optimizer: str) -> tuple[Seeds, Seeds, dict[float, Seeds]]:
    """Return an optimizer's runs by seed: at fixed batch 8, with the scaler, and at fixed batch 64 by their factor."""
    scaled = {job["seed"]: record for job, record in finished("optimizer_scaler") if job["optimizer"] == optimizer}
    base: Seeds = {}
    large: dict[float, Seeds] = {}
    for job, record in finished("optimizer_fixed"):
        if job["optimizer"] == optimizer:
            (base if job["batch"] == BASE else large.setdefault(job["factor"], {}))[job["seed"]] = record
    return base, scaled, large


def differences(runs: Seeds, base: Seeds, key: str) -> tuple[float, float]:
    """Return the mean of paired differences and its error; nan if a run failed, or there is none."""
    found = [record.get(key, math.nan) - base[seed][key] for seed, record in runs.items() if seed in base]
    return mean_and_error(found or [math.nan])


def compared(runs: Seeds, base: Seeds, key: str) -> str:
    value, error = differences(runs, base, key)
    form = "+.1%" if key == "val_accuracy" else "+.3f"
    return "failed" if math.isnan(value) else f"{value:{form}} ± {error:{form[1:]}}"


def scaler_cells(runs: Seeds, base: Seeds) -> list[str]:
    """Write an optimizer's runs with the scaler: rule, steps, final batch, factor, differences to fixed batch 8."""
    errors = {record["error"] for record in runs.values() if "error" in record}
    if errors:
        return ["–", "–", "–", "–", "; ".join(sorted(errors)), "–"]
    found = list(runs.values())
    ends = sorted(record["final_batch"] for record in found)
    return [
        "/".join(sorted({record["rule"] for record in found})),
        f"{statistics.fmean(record['optimizer_steps'] for record in found):,.0f}",
        f"{ends[0]}" if ends[0] == ends[-1] else f"{ends[0]}–{ends[-1]}",
        f"{statistics.fmean(record['factor'] for record in found):.2f}",
        compared(runs, base, "val_loss"),
        compared(runs, base, "val_accuracy"),
    ]


def optimizers_page() -> Page:
    growth, fixed, drawn = [], [], {}
    steps: dict[str, set[int]] = {}
    for name in OPTIMIZERS:
        (base, scaled, large), own = runs_of(name), factor_by_rule(name)
        tried = [f"**{rate:g}**" if rate == best_rate(name) else f"{rate:g}" for rate in tried_rates(name)]
        loss, error = mean_and_error([loss_of(record) for record in base.values()])
        accuracy = statistics.fmean(record["val_accuracy"] for record in base.values())
        growth.append([name, f"{loss:.3f} ± {error:.3f}", f"{accuracy:.1%}", *scaler_cells(scaled, base)])
        by_rule = large.get(own, {})
        others = [compared(large.get(factor, {}), base, "val_loss") for factor in FACTORS.values()]
        at_own = [f"{own:.3g}", compared(by_rule, base, "val_loss"), compared(by_rule, base, "val_accuracy")]
        fixed.append([name, ", ".join(tried), *others, *at_own])
        drawn[name] = {
            "scaler": differences(scaled, base, "val_loss"),
            "own": differences(by_rule, base, "val_loss"),
            **{rule: differences(large.get(at, {}), base, "val_loss") for rule, at in FACTORS.items()},
        }
        for key, some in (("base", base), ("large", by_rule)):
            steps.setdefault(key, set()).update(record["optimizer_steps"] for record in some.values())
    difference = "difference in loss"
    head = ["optimizer", f"fixed {BASE}: held-out loss", "accuracy", "scaler: rule", "steps", "final batch", "factor"]
    first = rows([*head, difference, "in accuracy"], growth)
    head = ["optimizer", f"learning rates tried at {BASE}"]
    head += [f"fixed {LARGE}: {difference} at {factor:.3g} times it" for factor in FACTORS.values()]
    second = rows([*head, "factor by the rule", difference, "in accuracy"], fixed)
    at = [f"{'/'.join(f'{count:,}' for count in sorted(steps[key]))}" for key in ("base", "large")]
    note = (
        f"{len(base)} seeds, {EPOCHS} epochs: {at[0]} steps at {BASE}, {at[1]} at {LARGE}; ± is one standard error of "
        f"paired differences to fixed {BASE}."
    )
    return Page(f"{first}\n\n{second}\n\n{note}", lambda figure: draw_optimizers(figure, drawn))


def draw_optimizers(figure: Any, drawn: dict[str, dict[str, tuple[float, float]]]) -> None:
    figure.set_size_inches(9, 4.6)
    left, right = figure.subplots(1, 2, sharey=True)
    panels = (
        (left, {"scaler": "scaler", "own": f"fixed {LARGE}, learning rate by the rule"}),
        (right, {rule: f"fixed {LARGE}, learning rate × {factor:.3g}" for rule, factor in FACTORS.items()}),
    )
    for axes, shown in panels:
        for place, (key, label) in enumerate(shown.items()):
            color, shape = ("tab:blue", "tab:orange", "0.3")[place], "osD"[place]
            at = np.arange(len(drawn)) + 0.2 * (place - (len(shown) - 1) / 2)
            values, errors = np.array([found[key] for found in drawn.values()]).T
            axes.errorbar(values, at, xerr=errors, fmt=shape, color=color, label=label, capsize=2)
        axes.axvline(0, color="0.6", linewidth=1)
        axes.set_xscale("symlog", linthresh=0.1, linscale=1.5)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel(f"held-out loss, difference to fixed {BASE}")
        axes.set_xlim(-0.4, 4)
        axes.legend(fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    left.set_yticks(range(len(drawn)), list(drawn))
    left.invert_yaxis()


# The runs of each experiment with their default number of seeds, and its page.
EXPERIMENTS: dict[str, tuple[dict[str, int], Callable[[], Page]]] = {
    "linear": ({"linear": 3}, linear_page),
    "steps": ({"sweep": 3, "noise": 4}, steps_page),
    "rates": ({"sweep": 3, "noise": 4}, rates_page),
    "growth": ({"growth": 4}, growth_page),
    "decay": ({"decay": 3, "epoch": 3}, decay_page),
    "sharp": ({"sharp": 3}, sharp_page),
    "optimizers": ({"optimizer_rates": 2, "optimizer_scaler": 4, "optimizer_fixed": 4}, optimizers_page),
}


def with_table(page: str, name: str, table: str) -> str:
    """Put a table between its markers on a page."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, rest = page.split(start)
    return f"{before}{start}\n\n{table}\n\n{end}{rest.split(end)[1]}"


def main() -> int:
    """Make the missing runs of the experiments asked for, and write their tables and pictures.

    Returns:
        The exit status: 1 if `--check` finds a table that is not that of the results.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=[*EXPERIMENTS, "all"])
    parser.add_argument("--seeds", type=int, help="seeds of each run (default: as on the page)")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each (default: 1)")
    parser.add_argument("--table", action="store_true", help="make no runs")
    parser.add_argument("--check", action="store_true", help="only compare the page's tables with the results")
    options = parser.parse_args()
    page = DOCS / "experiments.md"
    before = text = page.read_text(encoding="utf-8")
    for name in EXPERIMENTS if options.experiment == "all" else [options.experiment]:
        kinds, results = EXPERIMENTS[name]
        if not (options.table or options.check):
            for kind, seeds in kinds.items():
                make(kind, options.seeds or seeds, options.workers)
        made = results()
        text = with_table(text, name, made.table)
        if not options.check:
            matplotlib.rcParams["svg.hashsalt"] = name
            figure = Figure(layout="constrained")
            made.draw(figure)
            figure.savefig(DOCS / f"experiments_{name}.svg", metadata={"Date": None})
            machine = json.loads((RESULTS / "machine.json").read_text(encoding="utf-8"))
            versions = (
                f"Python {machine['python']}, torch {machine['torch']}, {machine['processor']}, one thread a run."
            )
            (RESULTS / f"{name}.md").write_text(f"{made.table}\n\n{versions}\n", encoding="utf-8")
            print(made.table)
    if options.check:
        return int(text != before)
    page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
