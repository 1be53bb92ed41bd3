"""Make the same runs for several seeds, one after the other, and compare each with the first of its seed."""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from machine import describe, mean_and_error

RESULTS = Path(__file__).parent / "results"
Record = dict[str, Any]


class Clock(pl.Callback):
    """Times the training loop alone: no set-up, no final validation.

    Attributes:
        seconds: Wall time.
        cpu_seconds: Process time.
    """

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds, self.cpu_seconds = -time.perf_counter(), -time.process_time()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds += time.perf_counter()
        self.cpu_seconds += time.process_time()

    def read(self) -> Record:
        """Return both times, rounded.

        Returns:
            The fields of a record.
        """
        return {"seconds": round(self.seconds, 3), "cpu_seconds": round(self.cpu_seconds, 3)}


def parser(description: str | None, *, name: str, seeds: int) -> ArgumentParser:
    """Make the options that all of these benchmarks have.

    Args:
        description: The module's docstring.
        name: The name of the results.
        seeds: The default number of seeds.

    Returns:
        The parser.
    """
    options = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=seeds, help=f"number of seeds (default: {seeds})")
    options.add_argument(
        "--workers", type=int, default=1, help="processes of one thread each; above 1 the times are not comparable"
    )
    options.add_argument(
        "--out", type=Path, default=RESULTS / f"{name}.json", help="results; the table is written beside it"
    )
    return options


def make_runs(one: Callable[[tuple[str, int]], Record], names: Sequence[str], seeds: int, workers: int) -> list[Record]:
    """Make all runs, seed by seed, in fresh processes.

    Args:
        one: Makes a run, given its name and seed.
        names: The runs.
        seeds: Number of seeds.
        workers: Number of processes.

    Returns:
        The records.
    """
    records = []
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for record in pool.map(one, [(name, seed) for seed in range(seeds) for name in names]):
            records.append(record)
            shown = ", ".join(f"{key} {value}" for key, value in record.items() if key not in ("name", "seed"))
            print(f"{record['name']}, seed {record['seed']}: {shown}", flush=True)
    return records


def summarize(records: Sequence[Record], scores: Sequence[str]) -> list[Record]:
    """Average over seeds, and compare with the first run of each seed.

    Args:
        records: The runs.
        scores: Results to compare by differences.

    Returns:
        One row per run, in the order of the records: means, their errors, and medians of the ratios of the times that
        were recorded.
    """
    times = [key for key in ("seconds", "cpu_seconds") if key in records[0]]
    by_name: dict[str, dict[int, Record]] = {}
    for record in records:
        by_name.setdefault(record["name"], {})[record["seed"]] = record
    first = next(iter(by_name.values()))
    rows = []
    for name, runs in by_name.items():
        row: Record = {"name": name, "seeds": len(runs)}
        for key in ("optimizer_steps", "examples", *times, *scores):
            row[key], row[f"{key}_error"] = mean_and_error([run[key] for run in runs.values()])
        for key in scores:
            differences = [run[key] - first[seed][key] for seed, run in runs.items()]
            row[f"{key}_difference"], row[f"{key}_difference_error"] = mean_and_error(differences)
        for key in times:
            row[f"{key}_ratio"] = statistics.median(run[key] / first[seed][key] for seed, run in runs.items())
        rows.append(row)
    return rows


def markdown(title: str, text: str, rows: Sequence[Record], scores: dict[str, str], machine: Record) -> str:
    """Write the table.

    Args:
        title: Its heading.
        text: What was trained.
        rows: What `summarize` returns.
        scores: The scores' names by their keys.
        machine: The machine it ran on.

    Returns:
        A Markdown page.
    """
    names = [*scores.values(), *(f"{name}, difference" for name in scores.values())]
    head = ["run", "steps", "examples", "seconds", "CPU seconds", "time ratio", "CPU time ratio", *names]
    lines = [
        f"# {title}",
        "",
        f"{text} {rows[0]['seeds']} seeds. Python {machine['python']}, torch {machine['torch']}, lightning"
        f" {machine['lightning']}, {machine['processor']}, 1 thread a run. ± is one standard error over seeds;"
        f" differences and time ratios are to {rows[0]['name']}, paired by seed, and the ratios are medians. The times"
        " are those of the training loop.",
        "",
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
    ]
    for row in rows:
        is_first = row is rows[0]
        cells = [row["name"], f"{row['optimizer_steps']:.0f}", f"{row['examples']:.0f}"]
        cells += [f"{row['seconds']:.1f}", f"{row['cpu_seconds']:.1f}"]
        cells += ["–" if is_first else f"{row[f'{key}_ratio']:.2f}" for key in ("seconds", "cpu_seconds")]
        cells += [f"{row[key]:.4f} ± {row[f'{key}_error']:.4f}" for key in scores]
        cells += [
            "–" if is_first else f"{row[f'{key}_difference']:+.4f} ± {row[f'{key}_difference_error']:.4f}"
            for key in scores
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def run(
    options: Namespace,
    one: Callable[[tuple[str, int]], Record],
    names: Sequence[str],
    *,
    scores: dict[str, str],
    title: str,
    text: str,
    settings: Record,
) -> int:
    """Make all runs, write results and table, and print the table.

    Args:
        options: The parsed options.
        one: Makes a run, given its name and seed.
        names: The runs; the others are compared with the first.
        scores: The scores' names by their keys.
        title: The table's heading.
        text: What was trained.
        settings: What else the results depend on.

    Returns:
        The exit status.
    """
    records = make_runs(one, names, options.seeds, options.workers)
    rows, machine = summarize(records, list(scores)), describe(threads=1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    whole = {"machine": machine, **settings, "rows": rows, "runs": records}
    options.out.write_text(json.dumps(whole, indent=1) + "\n")
    table = markdown(title, text, rows, scores, machine)
    options.out.with_suffix(".md").write_text(table)
    print(f"\n{table}")
    return 0
