"""Compare steps, seconds and loss at equal examples: fixed batches, the scaler, and what others do, on four tasks.

- `lm`: a byte-level transformer reads 32,000 sequences (2 million bytes) of the Python standard library's own source,
  once. AdamW (.9, .95), weight decay .1, clipping at 1.0. `lm_short`: the same on 12,000 sequences.
- `digits`: the demo's small CNN on scikit-learn's digits, 25 epochs, SGD with momentum.
- `pieces`: which of 20 packages of the standard library does a piece of 64 bytes come from? Embedded trigrams and two
  layers, 40,000 pieces, once, Adam.

All have warmup and cosine on steps in the user's own scheduler, and run through the Lightning Trainer. Every run of a
task sees the same number of examples. A seed fixes the initial weights and the order of the examples, whatever the
batch, so differences are computed per seed. Losses are those of held-out examples.

A fixed batch runs at several learning rates, and its best one counts, by the mean over seeds. Every other method starts
from the task's first batch (or twice that) at the rate that was best for that fixed batch: nothing is tuned for it,
except where the table says so. `scaler` is `BatchSizeScaler()` at its defaults, from the first batch. All of these
growing methods run through the same callback; `milestones` replays the scaler's mean batch in hindsight, without
measuring anything.

Finished runs are lines of results/front_TASK.jsonl and are not repeated, so the command may be stopped and started
again at any time. With `--times` a few runs of each row are made again, for their seconds, on an idle machine.

    python benchmarks/front.py --workers 2                  # make all missing runs, then tables and picture
    python benchmarks/front.py --task lm --only scaler --seeds 2
    python benchmarks/front.py --times --workers 1          # on an idle machine
    python benchmarks/front.py --table                      # only write tables and pictures
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import statistics
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import matplotlib
import torch
from front_methods import METHODS
from front_page import DOCS, draw, table
from front_summary import best_rates, summarize
from front_tasks import TASKS, Counted, Task
from language_model import corpus
from machine import describe
from paired import Clock

RESULTS = Path(__file__).parent / "results"


def key_of(task: Task, job: dict[str, Any]) -> str:
    """Return a run's key: its name, learning rate and seed, and a hash of everything that its result depends on.

    Args:
        task: The task.
        job: The run's settings.

    Returns:
        The key of its line in the results.
    """
    everything = {"task": dict(task.settings), "job": job} | ({"text": corpus()[2]} if task.reads_source else {})
    digest = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
    return f"{job['name']}@{job['rate']:g}/{job['seed']}/{digest[:10]}"


def finished(path: Path) -> dict[str, dict[str, Any]]:
    """Read the finished runs.

    Args:
        path: The results file.

    Returns:
        Records by key. A line cut off by a kill is skipped, and its run is repeated.
    """
    records = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        records[record["key"]] = record
    return records


def package_hash() -> str:
    """Hash the package's source, so that a table never mixes two versions of the scaler unnoticed.

    Returns:
        The first ten digits.
    """
    import lightning_bsscale

    root = Path(lightning_bsscale.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for part in ("theory", "gradients", "callbacks") for path in (root / part).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:10]


def train(task: Task, job: dict[str, Any]) -> dict[str, Any]:
    """Make one run, and compute its held-out loss.

    Args:
        task: The task.
        job: The name, batch, factor on the base learning rate, and seed; `plan` for milestones.

    Returns:
        The record of the run.
    """
    loader = task.make_loader(job["batch"], job["seed"], task.examples)
    torch.manual_seed(job["seed"])
    model = task.make_model(task.learning_rate(job["batch"], job["rate"]))
    clock, counted = Clock(), Counted()
    method = METHODS.get(job["name"])
    scaler = None if method is None else method.make(task.is_sgd, job.get("plan", ()))
    trainer = task.fit(model, loader, [clock, counted, *([] if scaler is None else [scaler])])
    record = {
        **job,
        "learning_rate": task.learning_rate(job["batch"], job["rate"]),
        "val_loss": task.score(model),
        "optimizer_steps": trainer.global_step,
        "examples": counted.examples,
        **clock.read(),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "machine": describe(),
    }
    if scaler is not None:
        record["package"] = package_hash()
        record["final_batch"] = scaler.batch_size
        record["growths"] = [
            {
                "examples": made.situation.examples_seen,
                "batch": made.batch_size,
                "lr_scale": made.lr_scale,
                "noise_scale": made.situation.noise and made.situation.noise.noise_scale,
                "low": made.situation.noise and made.situation.noise.low,
            }
            for made in scaler.decisions
            if made.is_change
        ]
    return record


def fixed_jobs(task: Task, seeds: int) -> list[dict[str, Any]]:
    """List the runs with a fixed batch, seed by seed, so that an unfinished file is balanced.

    Args:
        task: The task.
        seeds: Number of seeds.

    Returns:
        The settings of each run.
    """
    return [
        {"name": f"fixed{batch}", "batch": batch, "rate": rate, "seed": seed}
        for seed in range(seeds)
        for batch, rates in task.rates.items()
        for rate in sorted(rates, reverse=True)
    ]


def growing_jobs(task: Task, seeds: int, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """List the runs whose batch grows, from the fixed batch that each starts from at its best learning rate.

    Args:
        task: The task.
        seeds: Number of seeds.
        records: Finished runs of the task. Without the fixed ones there is no best rate, and without the scaler's no
            plan in hindsight: what needs them is left out.

    Returns:
        The settings of each run.
    """
    best = best_rates(records)
    plan = hindsight(task, records)
    found = []
    for seed in range(seeds):
        for name, method in METHODS.items():
            if task.methods is not None and name not in task.methods:
                continue
            batch = task.start * method.start
            if f"fixed{batch}" not in best or (method.needs_plan and not plan):
                continue
            for factor in method.rates:
                rate = round(best[f"fixed{batch}"] * factor, 4)
                job: dict[str, Any] = {"name": name, "batch": batch, "rate": rate, "seed": seed}
                found.append({**job, "plan": plan} if method.needs_plan else job)
    return found


def hindsight(task: Task, records: list[dict[str, Any]]) -> list[list[float]]:
    """Return the scaler's mean batch as milestones: at each sixteenth of the examples, in multiples of the start.

    Args:
        task: The task.
        records: Finished runs of the task.

    Returns:
        Pairs of a share of the examples and a multiple, rising; empty without runs.
    """
    main = best_rates(records).get(f"fixed{task.start}")
    runs = [run for run in records if run["name"] == "scaler" and run["rate"] == main]
    pairs: list[list[float]] = []
    for part in range(1, 16 if runs else 0):
        share = part / 16
        batches = [
            max(
                [task.start, *(made["batch"] for made in run["growths"] if made["examples"] <= share * run["examples"])]
            )
            for run in runs
        ]
        multiple = float(max(1, round(statistics.geometric_mean(batches) / task.start)))
        if multiple > (pairs[-1][1] if pairs else 1):
            pairs.append([share, multiple])
    return pairs


def worker(name: str, job: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """Make one run in a worker process, unless another command has finished it meanwhile.

    Args:
        name: The task's name.
        job: The run's settings.
        path: The results file.

    Returns:
        The record, or None if the run was already finished.
    """
    task = TASKS[name]
    key = key_of(task, job)
    if key in finished(path):
        return None
    record = {"key": key, **train(task, job)}
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
    return record


def end_with_parent() -> None:
    """End a worker process if the command is killed, instead of working through the queue."""

    def watch(parent: Any) -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, args=(multiprocessing.parent_process(),), daemon=True).start()


def run_all(task: Task, todo: list[dict[str, Any]], path: Path, workers: int) -> int:
    """Make the missing runs in worker processes of one thread each.

    Args:
        task: The task.
        todo: All requested runs.
        path: The results file.
        workers: Number of processes.

    Returns:
        The number of runs that failed.
    """
    done = finished(path)
    missing = [job for job in todo if key_of(task, job) not in done]
    print(f"{len(todo) - len(missing)} of {len(todo)} runs are in {path}; {len(missing)} to make", flush=True)
    if not missing:
        return 0
    failed = 0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent) as pool:
        futures = {pool.submit(worker, task.name, job, path): job for job in missing}
        for count, future in enumerate(as_completed(futures), 1):
            job = futures[future]
            label = f"[{count}/{len(missing)}] {task.name} {job['name']}@{job['rate']:g} seed {job['seed']}"
            try:
                record = future.result()
            except Exception as error:  # one failed run must not end the others
                failed += 1
                print(f"{label}: FAILED: {error!r}", flush=True)
                continue
            if record is not None:
                print(
                    f"{label}: loss {record['val_loss']:.4f}, {record['optimizer_steps']} steps, {record['seconds']} s",
                    flush=True,
                )
    return failed


def path_of(task: Task) -> Path:
    """Return the file of a task's finished runs.

    Args:
        task: The task.

    Returns:
        The path.
    """
    return RESULTS / f"front_{task.name}.jsonl"


def current_runs(task: Task) -> list[dict[str, Any]]:
    """Return the finished runs of a task as it is now: same settings, same text.

    Args:
        task: The task.

    Returns:
        Their records.
    """
    names = ("name", "batch", "rate", "seed", "plan")
    return [
        record
        for key, record in finished(path_of(task)).items()
        if key == key_of(task, {name: record[name] for name in names if name in record})
    ]


def counted_runs(task: Task) -> list[dict[str, Any]]:
    """Return the finished runs that the page shows.

    With more seeds another learning rate may be the best of a fixed batch; what started from the former one is left
    out.

    Args:
        task: The task.

    Returns:
        Their records.
    """
    records = current_runs(task)
    wanted = {(job["name"], job["rate"]) for job in [*fixed_jobs(task, 1), *growing_jobs(task, 1, records)]}
    return [run for run in records if (run["name"], run["rate"]) in wanted]


def selected(jobs: list[dict[str, Any]], only: set[str]) -> list[dict[str, Any]]:
    """Return the runs with one of some names.

    Args:
        jobs: The runs.
        only: Names; empty for all.

    Returns:
        The runs.
    """
    return [job for job in jobs if not only or job["name"] in only]


def main() -> int:
    """Make the missing runs, then write tables and pictures.

    Returns:
        The exit status: 1 if a run failed.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), help="one task (default: all)")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each (default: 2)")
    parser.add_argument("--seeds", type=int, default=8, help="number of seeds (default: 8; of --times: 3)")
    parser.add_argument("--only", default="", help="comma-separated names, such as fixed8,scaler")
    parser.add_argument("--times", action="store_true", help="make runs of each row again, for their seconds")
    parser.add_argument("--redo", action="store_true", help="first delete the runs selected by --task, --only, --seeds")
    parser.add_argument("--table", action="store_true", help="only write tables and pictures of the finished runs")
    parser.add_argument("--check", action="store_true", help="exit with 1 if the page is not that of the results")
    options = parser.parse_args()
    if options.check:
        text = (DOCS / "front.md").read_text(encoding="utf-8")
        return int(results(text)[1] != text)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    only = {name.strip() for name in options.only.split(",") if name.strip()}
    tasks = [TASKS[options.task]] if options.task else list(TASKS.values())
    names = {*METHODS, *(f"fixed{batch}" for task in tasks for batch in task.rates)}
    if unknown := only - names:
        parser.error(f"--only has {', '.join(sorted(unknown))}, but the names are {', '.join(sorted(names))}")
    failed = 0
    for task in [] if options.table else tasks:
        if options.times:
            failed += time_rows(task, only, min(options.seeds, 3), options.workers)
            continue
        if options.redo:
            every = [*fixed_jobs(task, options.seeds), *growing_jobs(task, options.seeds, current_runs(task))]
            todo = selected(every, only)
            keys = {key_of(task, job) for job in todo}
            kept = [json.dumps(record) for key, record in finished(path_of(task)).items() if key not in keys]
            path_of(task).write_text("".join(f"{line}\n" for line in kept))
        failed += run_all(task, selected(fixed_jobs(task, options.seeds), only), path_of(task), options.workers)
        # Twice: the second time the scaler's runs are there, and with them its mean batch.
        for _ in range(2):
            todo = selected(growing_jobs(task, options.seeds, current_runs(task)), only)
            failed += run_all(task, todo, path_of(task), options.workers)
    write_results()
    return 1 if failed else 0


def time_rows(task: Task, only: set[str], seeds: int, workers: int) -> int:
    """Make the best run of each name again, for its seconds.

    Args:
        task: The task.
        only: Names; empty for all.
        seeds: Number of seeds.
        workers: Number of processes.

    Returns:
        The number of runs that failed.
    """
    records = counted_runs(task)
    best = best_rates(records)
    todo = [
        job
        for job in [*fixed_jobs(task, seeds), *growing_jobs(task, seeds, records)]
        if best.get(job["name"]) == job["rate"]
    ]
    return run_all(task, selected(todo, only), RESULTS / f"front_times_{task.name}.jsonl", workers)


def results(text: str) -> tuple[dict[str, Any], str]:
    """Summarise the finished runs.

    Args:
        text: The page docs/front.md.

    Returns:
        The summary of each task, and the page with their tables.
    """
    summaries: dict[str, Any] = {}
    for task in TASKS.values():
        records = counted_runs(task)
        if not records:
            continue
        timed = list(finished(RESULTS / f"front_times_{task.name}.jsonl").values())
        ours = [name for name, method in METHODS.items() if method.is_ours]
        machine = (timed or records)[0]["machine"]
        summaries[task.name] = {
            "settings": dict(task.settings),
            "parameters": records[0]["parameters"],
            "machine": machine,
            **summarize(records, timed, start=task.start, ours=ours),
        }
        text = between(text, f"<!-- {task.name} -->", f"<!-- end of {task.name} -->", table(task, summaries[task.name]))
    return summaries, text


def write_results() -> None:
    """Write results/front.json, the tables of docs/front.md and its picture, from the finished runs."""
    page = DOCS / "front.md"
    summaries, text = results(page.read_text(encoding="utf-8"))
    (RESULTS / "front.json").write_text(json.dumps(summaries, indent=1) + "\n", encoding="utf-8")
    page.write_text(text, encoding="utf-8")
    matplotlib.rcParams["svg.hashsalt"] = "bsscale"
    draw(summaries).savefig(DOCS / "front.svg", metadata={"Date": None})


def between(text: str, begin: str, end: str, part: str) -> str:
    """Put a part between its markers in a text.

    Args:
        text: The text.
        begin: The first marker.
        end: The second one.
        part: The part.

    Returns:
        The new text.
    """
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{part.strip()}\n\n{end}{rest.split(end)[1]}"


if __name__ == "__main__":
    sys.exit(main())
