"""Repeat the demo's three runs over several seeds: does the scaler save steps and time without losing accuracy?

scikit-learn's digits (1,347 images to train on, 450 to validate on), a small CNN, SGD with momentum, 25 epochs: fixed
batch 8, fixed batch 64 at the linearly scaled learning rate, and `BatchSizeScaler()` at its defaults from batch 8. A
seed fixes the initial weights and the order of the examples, so differences to fixed 8 are computed per seed. One image
of 450 is 0.0022 of accuracy. No learning rate is tuned here: benchmarks/front.py compares at tuned learning rates.

    python benchmarks/digits.py                  # 8 seeds, about 25 s each
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from paired import Clock, parser, run

from lightning_bsscale import BatchSizeScaler
from lightning_bsscale.demo import LARGE, RATE, SMALL, DigitsModel, train

RUNS = {"fixed 8": (SMALL, RATE), "fixed 64": (LARGE, RATE * LARGE / SMALL), "scaler from 8": (SMALL, RATE)}


def one(
    job: tuple[str, int], epochs: int, runs: dict[str, tuple[int, float]], model: Callable[[float], DigitsModel]
) -> dict[str, Any]:
    """Make one run.

    Args:
        job: The run's name and the seed.
        epochs: Passes over the data.
        runs: The loader's batch and the learning rate of each run.
        model: Makes the module, given the learning rate.

    Returns:
        Its results.
    """
    name, seed = job
    batch_size, rate = runs[name]
    clock, scaler = Clock(), BatchSizeScaler()
    callbacks = [clock, scaler] if name.startswith("scaler") else [clock]
    settings: dict[str, Any] = {"batch_size": batch_size, "rate": rate, "seed": seed, "epochs": epochs}
    result = train(name, model=model, callbacks=callbacks, **settings)
    final = scaler.batch_size if len(callbacks) > 1 else batch_size
    return {**dataclasses.asdict(result), "seed": seed, "final_batch": final, **clock.read()}


def compare(
    name: str,
    runs: dict[str, tuple[int, float]],
    *,
    description: str | None,
    title: str,
    text: str,
    model: Callable[[float], DigitsModel] = DigitsModel,
) -> int:
    """Make all runs on the digits and write the table.

    Args:
        name: The name of the results.
        runs: The loader's batch and the learning rate of each run.
        description: The command's description.
        title: The table's heading.
        text: What was trained.
        model: Makes the module, given the learning rate.

    Returns:
        The exit status.
    """
    options = parser(description, name=name, seeds=8)
    options.add_argument("--epochs", type=int, default=25, help="passes over the data (default: 25)")
    chosen = options.parse_args()
    return run(
        chosen,
        partial(one, epochs=chosen.epochs, runs=runs, model=model),
        list(runs),
        scores={"val_loss": "val loss", "val_accuracy": "val accuracy"},
        title=title,
        text=f"{text}{chosen.epochs} epochs a run.",
        settings={"epochs": chosen.epochs},
    )


def main() -> int:
    """Compare the demo's three runs.

    Returns:
        The exit status.
    """
    return compare("digits", RUNS, description=__doc__, title="Digits: fixed small, fixed large, scaler", text="")


if __name__ == "__main__":
    sys.exit(main())
