"""Turn the runs of the front into rows and paired comparisons."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from machine import mean_and_error

Record = dict[str, Any]
Runs = dict[int, Record]  # by seed
Key = tuple[str, float]  # a name, and the factor on the base learning rate


def best_rates(records: Sequence[Record]) -> dict[str, float]:
    """Return each name's learning rate of the lowest mean loss.

    Args:
        records: Finished runs of one task.

    Returns:
        The factor on the base learning rate by name.
    """
    best = {}
    groups = grouped(records)
    for name in sorted({name for name, _ in groups}):
        by_rate = {rate: losses(runs) for (other, rate), runs in groups.items() if other == name}
        # Over common seeds, so that no learning rate wins by lucky seeds; those with few seeds do not count.
        most = max(map(len, by_rate.values()))
        by_rate = {rate: runs for rate, runs in by_rate.items() if 2 * len(runs) >= most}
        common = set.intersection(*(set(runs) for runs in by_rate.values())) or set().union(*by_rate.values())
        best[name] = min(by_rate, key=lambda rate: statistics.fmean(by_rate[rate].get(s, math.inf) for s in common))
    return best


def grouped(records: Sequence[Record]) -> dict[Key, Runs]:
    """Return the runs by name and learning rate, and then by seed.

    Args:
        records: Finished runs of one task.

    Returns:
        The runs.
    """
    groups: dict[Key, Runs] = {}
    for record in records:
        groups.setdefault((record["name"], record["rate"]), {})[record["seed"]] = record
    return groups


def losses(runs: Runs) -> dict[int, float]:
    """Return the losses by seed. A run that diverged has an infinite one.

    Args:
        runs: The runs by seed.

    Returns:
        The losses.
    """
    return {seed: run["val_loss"] if math.isfinite(run["val_loss"]) else math.inf for seed, run in runs.items()}


def mean_steps(runs: Runs) -> float:
    """Return the mean number of optimizer steps.

    Args:
        runs: The runs by seed.

    Returns:
        The mean.
    """
    return statistics.fmean(run["optimizer_steps"] for run in runs.values())


def on_front(steps: float, front: Sequence[tuple[float, Mapping[int, float]]], seed: int) -> float:
    """Return the loss of a front at a number of steps, between its two nearest points along log steps.

    Args:
        steps: The number of steps.
        front: Mean steps and losses by seed of each point, by rising steps.
        seed: The seed.

    Returns:
        The loss; beyond an end, that of the last point.
    """
    points = [(math.log(at), values[seed]) for at, values in front if seed in values]
    at = math.log(steps)
    if at <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if at <= x1:
            return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
    return points[-1][1]


def steps_at_loss(loss: float, front: Sequence[tuple[float, float]]) -> float | None:
    """Return the steps at which a front reaches a loss: the fewest, between its points along log steps.

    Args:
        loss: The loss.
        front: Mean steps and mean loss of each point, by rising steps.

    Returns:
        The steps; None if no point reaches the loss.
    """
    for index, (steps, reached) in enumerate(front):
        if reached <= loss:
            if index == 0:
                return steps
            before, above = front[index - 1]
            share = (above - loss) / (above - reached)
            return math.exp(math.log(before) + share * (math.log(steps) - math.log(before)))
    return None


def summarize(records: Sequence[Record], timed: Sequence[Record], *, start: int, ours: Sequence[str]) -> dict[str, Any]:
    """Turn runs into rows and comparisons.

    Args:
        records: Finished runs of one task.
        timed: Runs that were made for their seconds.
        start: The batch that the scaler starts from.
        ours: Names of the scaler and its other targets; the first is the scaler at its defaults.

    Returns:
        The rows (one per name and learning rate), each name's best learning rate, the scaler compared with each fixed
        batch, and every other method compared with the scaler at equal steps.
    """
    groups, best = grouped(records), best_rates(records)
    main = {name: (name, best[name]) for name in best}
    if ours[0] in main:  # nothing is tuned for it
        main[ours[0]] = (ours[0], best[f"fixed{start}"])
    first = main.get(f"fixed{start}")
    seconds: dict[str, list[float]] = {}
    for run in timed:
        if main.get(run["name"]) == (run["name"], run["rate"]):
            seconds.setdefault(run["name"], []).append(run["seconds"])
    rows = []
    for key, runs in sorted(groups.items(), key=lambda item: (not item[0][0].startswith("fixed"), item[0])):
        mean, error = mean_and_error(list(losses(runs).values()))
        row: Record = {
            "name": key[0],
            "rate": key[1],
            "is_main": main[key[0]] == key,
            "learning_rate": next(iter(runs.values()))["learning_rate"],
            "seeds": len(runs),
            "loss": mean,
            "error": error,
            "steps": mean_steps(runs),
            "examples": statistics.fmean(run["examples"] for run in runs.values()),
            "seconds": statistics.median(seconds[key[0]]) if main[key[0]] == key and key[0] in seconds else None,
        }
        if first is not None:
            row["against_start"] = paired(groups[first], runs)
        if "final_batch" in next(iter(runs.values())):
            row["final_batches"] = sorted(run["final_batch"] for run in runs.values())
            row["packages"] = sorted({run["package"] for run in runs.values()})
        rows.append(row)
    fixed = sorted((mean_steps(groups[key]), key) for name, key in main.items() if name.startswith("fixed"))
    against_fixed, against_others = [], []
    if ours[0] in main:
        scaler = groups[main[ours[0]]]
        for steps, key in fixed:
            against_fixed.append(
                {
                    "against": key[0],
                    "rate": key[1],
                    **paired(groups[key], scaler),
                    "steps_against": steps,
                    "steps_ratio": mean_steps(scaler) / steps,
                }
            )
        front = sorted((mean_steps(groups[main[name]]), losses(groups[main[name]])) for name in ours if name in main)
        for name, key in main.items():
            if name in ours or name.startswith("fixed"):
                continue
            steps, other = mean_steps(groups[key]), losses(groups[key])
            seeds = [seed for seed in other if all(seed in values for _, values in front)]
            mean, error = mean_and_error([other[seed] - on_front(steps, front, seed) for seed in seeds])
            against_others.append(
                {
                    "name": name,
                    "rate": key[1],
                    "steps": steps,
                    "difference": mean,
                    "error": error,
                    "seeds": len(seeds),
                    "is_beyond": not front[0][0] <= steps <= front[-1][0],
                }
            )
    means = [(steps, statistics.fmean(losses(groups[key]).values())) for steps, key in fixed]
    equal = None
    if ours[0] in main:
        equal = steps_at_loss(statistics.fmean(losses(groups[main[ours[0]]]).values()), means)
    return {
        "rows": rows,
        "best": best,
        "against_fixed": against_fixed,
        "against_others": against_others,
        "fixed_steps_at_equal_loss": equal,
    }


def paired(first: Runs, runs: Runs) -> Record:
    """Compare the losses of the same seeds.

    Args:
        first: The runs to compare with.
        runs: The runs.

    Returns:
        The mean difference, its standard error and the number of seeds.
    """
    mine, theirs = losses(runs), losses(first)
    seeds = sorted(mine.keys() & theirs.keys())
    mean, error = mean_and_error([mine[seed] - theirs[seed] for seed in seeds]) if seeds else (math.nan, math.nan)
    return {"difference": mean, "error": error, "seeds": len(seeds)}
