"""Repeat the demo's three runs over several seeds: does the scaler make fewer steps without losing accuracy?

scikit-learn's digits (1,347 images to train on, 450 to validate on), a small CNN, SGD with momentum, 25 epochs: fixed
batch 8, fixed batch 64 at the linearly scaled learning rate, and `BatchSizeScaler()` at its defaults from batch 8. A
seed fixes the initial weights and the order of the examples, so differences to fixed 8 are computed per seed. One image
of 450 is 0.0022 of accuracy. No learning rate is tuned here: benchmarks/front.py compares at tuned learning rates.

    python benchmarks/digits.py                  # 8 seeds, about 20 s each
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from machine import describe, mean_and_error

from lightning_bsscale import BatchSizeScaler
from lightning_bsscale.demo import LARGE, RATE, SMALL, train

RESULTS = Path(__file__).parent / "results"
RUNS = {"fixed 8": (SMALL, RATE), "fixed 64": (LARGE, RATE * LARGE / SMALL), "scaler from 8": (SMALL, RATE)}


def one(job: tuple[str, int, int]) -> dict[str, Any]:
    """Make one run.

    Args:
        job: The run's name, the seed and the number of epochs.

    Returns:
        Its results.
    """
    name, seed, epochs = job
    batch_size, rate = RUNS[name]
    scaler = BatchSizeScaler()
    callbacks = [scaler] if name.startswith("scaler") else []
    result = train(name, batch_size=batch_size, rate=rate, seed=seed, epochs=epochs, callbacks=callbacks)
    return {"seed": seed, **dataclasses.asdict(result), "final_batch": scaler.batch_size if callbacks else batch_size}


def summarize(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Average over seeds, and compare with fixed 8 per seed.

    Args:
        records: The runs.

    Returns:
        One row per run.
    """
    by_name = {name: {run["seed"]: run for run in records if run["name"] == name} for name in RUNS}
    rows = []
    for name, group in by_name.items():
        row: dict[str, Any] = {"name": name, "seeds": len(group)}
        for key in ("optimizer_steps", "examples", "seconds", "val_loss", "val_accuracy", "final_batch"):
            row[key], row[f"{key}_error"] = mean_and_error([run[key] for run in group.values()])
        for key in ("val_loss", "val_accuracy"):
            differences = [run[key] - by_name["fixed 8"][seed][key] for seed, run in group.items()]
            row[f"{key}_difference"], row[f"{key}_difference_error"] = mean_and_error(differences)
        rows.append(row)
    return rows


def markdown(rows: list[dict[str, Any]], epochs: int, machine: dict[str, Any]) -> str:
    """Write the table.

    Args:
        rows: What `summarize` returns.
        epochs: Passes over the data.
        machine: The machine it ran on.

    Returns:
        A Markdown table.
    """
    lines = [
        "# Digits: fixed small, fixed large, scaler",
        "",
        f"{rows[0]['seeds']} seeds, {epochs} epochs a run. Python {machine['python']}, torch {machine['torch']},"
        f" lightning {machine['lightning']}, {machine['processor']}, 1 thread a run. ± is one standard error over"
        " seeds; the differences are to fixed 8, paired by seed.",
        "",
        "| run | steps | examples | seconds | val loss | val accuracy | loss difference | accuracy difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        first = row["name"] == "fixed 8"
        loss = "–" if first else f"{row['val_loss_difference']:+.4f} ± {row['val_loss_difference_error']:.4f}"
        accuracy = (
            "–" if first else f"{row['val_accuracy_difference']:+.4f} ± {row['val_accuracy_difference_error']:.4f}"
        )
        lines.append(
            f"| {row['name']} | {row['optimizer_steps']:.0f} | {row['examples']:.0f} | {row['seconds']:.1f}"
            f" | {row['val_loss']:.4f} ± {row['val_loss_error']:.4f} | {row['val_accuracy']:.4f} ±"
            f" {row['val_accuracy_error']:.4f} | {loss} | {accuracy} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Make all runs and write the table.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8, help="number of seeds (default: 8)")
    parser.add_argument("--epochs", type=int, default=25, help="passes over the data (default: 25)")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each (default: 2)")
    parser.add_argument("--out", type=Path, default=RESULTS / "digits.json", help="results; the table is beside it")
    options = parser.parse_args()
    todo = [(name, seed, options.epochs) for seed in range(options.seeds) for name in RUNS]
    records = []
    with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for record in pool.map(one, todo):
            records.append(record)
            print(
                f"{record['name']}, seed {record['seed']}: loss {record['val_loss']:.4f}, accuracy"
                f" {record['val_accuracy']:.4f}, {record['optimizer_steps']} steps, {record['seconds']:.1f} s",
                flush=True,
            )
    rows = summarize(records)
    machine = describe(threads=1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    summary = {"machine": machine, "epochs": options.epochs, "rows": rows, "runs": records}
    options.out.write_text(json.dumps(summary, indent=1) + "\n")
    table = markdown(rows, options.epochs, machine)
    options.out.with_suffix(".md").write_text(table)
    print(f"\n{table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
