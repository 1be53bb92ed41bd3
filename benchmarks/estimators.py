r"""Is the measurement the most accurate one? This package's noise scale and the published ways, against the truth.

All estimators see the same gradients: windows of 64 examples (32 in c, 16 in d) in four micro-batches, under the same
exponential memory of 50 windows, after 200 windows. So they cost the same examples. The truth is the noise scale with
the same weights, S/G2 of the weighted means of the true tr(Sigma) and the true squared gradient norm.

*Ours* are pairs within the window, averaged as the callback does (`RobustAverages`, Fieller's interval); *ours, K = 2*
sees two micro-batches of twice the size, as the callback splits a single loader batch. The others, with g the window's
mean gradient and B its examples:

- *sequential windows*: five consecutive steps as one large batch, the last as the small one (gpt-neox);
- *differenced*: ``g_t . g_(t-1)`` as the squared norm, a step with its predecessor (AdaptDL without replicas);
- *momentum buffer*: ``g_t . m`` as the squared norm, with the average m of the previous gradients (beta 0.9);
- *one small norm*: the norm of one of the four micro-batches instead of all (KungFu);
- *norm test*: ``||g||^2`` as the squared norm, uncorrected (AdAdaGrad, Meta's rule), which has the expectation
  B B_simple / (B + B_simple);
- *clip before average*: pairs, but a window's negative squared norm becomes zero (AdaScale in fairscale);
- *ratio per step*: the mean of each window's own ratio.

Parts: (a) Gaussian gradients at fixed parameters, where nothing trains; (b) noisy quadratics, trained by SGD and Adam,
exact truth at every step; (c) the demo's CNN on digits in five stretches of 200 steps, truth from all 1,347 images at
frozen parameters; (d) the byte-level transformer of benchmarks/front.py, smaller, in five stretches of 200 steps with
200 between them, truth from 256 other micro-batches at frozen parameters. Examples are drawn independently.

The truth of a network has to be measured often: in (c) both true values move by their own size within ten steps, so
that a mean of four of them is itself uncertain.

*Bias* is the pooled estimate over all repeats, over the pooled truth, with its 90 % interval. *Error* is the factor
around the truth within which 68 % of the answers lie; an unusable one (not above zero) lies within none. *Coverage* is
that of the nominal 90 % interval. Finished cells are lines of results/estimators.jsonl and are not repeated.

    python benchmarks/estimators.py              # all missing cells, about 45 minutes in one thread
    python benchmarks/estimators.py --only b     # only the noisy quadratics
    python benchmarks/estimators.py --table      # only write the table
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe
from trained_networks import MICRO_BATCHES, Step, digits, language

from lightning_bsscale.simulation.quadratic import Adam, Momentum, NoisyQuadratic, Optimizer
from lightning_bsscale.theory.moments import WindowMoments
from lightning_bsscale.theory.robust import RobustAverages

RESULTS = Path(__file__).parent / "results"
VERSIONS = {"a": 2, "b": 2, "c": 2, "d": 1}  # raised where a cell's result changes
WINDOWS, MEMORY, SIZE = 200, 50, 16
CONSECUTIVE, BETA = 5, 0.9
DIMENSION = 512
# Steps between two truths of a trained network. Both true values move by their own size within ten steps of the
# digits, and the squared norm of the language model by a fifth of it within eight, so a mean over fewer of them is not
# the truth.
DIGITS_EVERY, LANGUAGE_EVERY, LANGUAGE_SAMPLES = 3, 2, 256
OURS = ("ours", "ours, K = 2")


@dataclass(frozen=True)
class Trajectory:
    """What the estimators need of a path: products of gradients, of the shape (runs, steps).

    Attributes:
        size: Examples of a micro-batch.
        norms: Squared norm of each micro-batch's gradient; a last axis for the micro-batches.
        halves: The same, with the micro-batches joined to two.
        mean: Squared norm of the step's mean gradient.
        previous: Product of this mean with that of the previous step; nan in the first.
        buffer: Product with the average of the previous steps; nan in the first.
        block: Squared norm of the mean over five steps, at the last one of the five; otherwise nan.
        trace: True trace.
        grad_sq: True squared norm.
    """

    size: int
    norms: np.ndarray
    halves: np.ndarray
    mean: np.ndarray
    previous: np.ndarray
    buffer: np.ndarray
    block: np.ndarray
    trace: np.ndarray
    grad_sq: np.ndarray

    @property
    def batch(self) -> int:
        """Examples of a step."""
        return self.size * self.norms.shape[-1]


def squared(vectors: np.ndarray) -> np.ndarray:
    return np.einsum("...d,...d->...", vectors, vectors)


def recorded(steps: Iterable[Step], size: int) -> Trajectory:
    """Reduce the gradients of a path to the products that the estimators need.

    Args:
        steps: The steps, in order.
        size: Examples of a micro-batch.

    Returns:
        The products.
    """
    rows: list[tuple[np.ndarray, ...]] = []
    before = average = block = np.zeros(1)
    weight = 0.0
    for index, (gradients, trace, grad_sq) in enumerate(steps):
        runs, count, dimension = gradients.shape
        mean = gradients.mean(1)
        halves = gradients.reshape(runs, 2, count // 2, dimension).mean(2)
        none = np.full(runs, math.nan)
        previous = np.einsum("rd,rd->r", mean, before) if index else none
        buffer = np.einsum("rd,rd->r", mean, average) / weight if index else none
        block = mean if index % CONSECUTIVE == 0 else block + mean
        is_last = index % CONSECUTIVE == CONSECUTIVE - 1
        of_block = squared(block / CONSECUTIVE) if is_last else none
        rows.append((squared(gradients), squared(halves), squared(mean), previous, buffer, of_block, trace, grad_sq))
        before, average, weight = mean, BETA * average + (1 - BETA) * mean, BETA * weight + 1 - BETA
    return Trajectory(size, *(np.stack(column, 1).astype(np.float64) for column in zip(*rows, strict=True)))


Moments = tuple[np.ndarray, np.ndarray]


def of_pairs(mean_of_squares: np.ndarray, square_of_mean: np.ndarray, count: int, size: int) -> Moments:
    """Compute trace and squared norm from the squared norms of `count` gradients and of their mean."""
    trace = (mean_of_squares - square_of_mean) * size * count / (count - 1)
    return trace, (count * square_of_mean - mean_of_squares) / (count - 1)


def pairs(path: Trajectory) -> Moments:
    count = path.norms.shape[-1]
    return of_pairs(path.norms.mean(-1), path.mean, count, path.size)


def two_halves(path: Trajectory) -> Moments:
    return of_pairs(path.halves.mean(-1), path.mean, 2, path.batch // 2)


def sequential(path: Trajectory) -> Moments:
    return of_pairs(path.mean, path.block, CONSECUTIVE, path.batch)


def differenced(path: Trajectory) -> Moments:
    before = np.roll(path.mean, 1, axis=1)
    return path.batch * ((path.mean + before) / 2 - path.previous), path.previous


def momentum_buffer(path: Trajectory) -> Moments:
    return path.batch * (path.mean - path.buffer), path.buffer


def one_norm(path: Trajectory) -> Moments:
    return of_pairs(path.norms[..., 0], path.mean, path.norms.shape[-1], path.size)


def norm_test(path: Trajectory) -> Moments:
    return pairs(path)[0], path.mean


def clipped(path: Trajectory) -> Moments:
    trace, grad_sq = pairs(path)
    return np.maximum(trace, 1e-6), np.maximum(grad_sq, 0.0)


def ratio_per_step(path: Trajectory) -> Moments:
    trace, grad_sq = pairs(path)
    return trace / grad_sq, np.ones_like(grad_sq)


OTHERS: dict[str, Callable[[Trajectory], Moments]] = {
    "sequential windows": sequential,
    "differenced": differenced,
    "momentum buffer": momentum_buffer,
    "one small norm": one_norm,
    "norm test": norm_test,
    "clip before average": clipped,
    "ratio per step": ratio_per_step,
}


def averaged(series: np.ndarray, memory: float) -> np.ndarray:
    """Average over the steps with the memory's weights, leaving out the unknown ones."""
    steps = series.shape[1]
    weights = np.where(np.isnan(series), 0.0, np.exp((np.arange(steps) - steps + 1) / memory))
    return np.asarray((weights * np.nan_to_num(series)).sum(1) / weights.sum(1))


def ours(moments: Moments, count: int, path: Trajectory, memory: float) -> np.ndarray:
    """Average as the callback does.

    Args:
        moments: Trace and squared norm of each run and step.
        count: Micro-batches of a window.
        path: The path.
        memory: Windows over which a weight falls to 1/e.

    Returns:
        Trace, squared norm, both ends of the 90 % interval, and whether it is resolved, one row for each run.
    """
    rows = []
    for traces, squares in zip(*moments, strict=True):
        averages = RobustAverages()
        for trace, grad_sq in zip(traces.tolist(), squares.tolist(), strict=True):
            window = WindowMoments(
                trace=trace,
                grad_sq=grad_sq,
                num_samples=count,
                examples=path.batch,
                harmonic_size=path.batch / count,
            )
            averages = averages.updated(window, examples_since_last=path.batch, memory=memory * path.batch)
        noise = averages.noise_scale()
        assert noise is not None
        rows.append((noise.trace, noise.grad_sq, noise.low, noise.high, noise.resolved))
    return np.array(rows, dtype=np.float64)


def answers(path: Trajectory, memory: float) -> dict[str, Any]:
    """Compute every estimator's trace and squared norm for each run, and the truth.

    Args:
        path: The path.
        memory: Windows over which a weight falls to 1/e.

    Returns:
        Lists under the estimators' names, "truth" and "now" (the truth of the last step): trace and squared norm; of
        ours also the interval's ends and whether it is resolved.
    """
    found = {
        "truth": np.stack([averaged(path.trace, memory), averaged(path.grad_sq, memory)], 1),
        "now": np.stack([path.trace[:, -1], path.grad_sq[:, -1]], 1),
        "ours": ours(pairs(path), path.norms.shape[-1], path, memory),
        "ours, K = 2": ours(two_halves(path), 2, path, memory),
    }
    for name, moments in OTHERS.items():
        found[name] = np.stack([averaged(series, memory) for series in moments(path)], 1)
    return {name: [[float(f"{value:.6g}") for value in row] for row in rows] for name, rows in found.items()}


# ---------------------------------------------------------------- the parts


def seeded(*settings: Any) -> np.random.Generator:
    """Make a separate generator for each cell, so that an unlucky draw does not show in all of them."""
    return np.random.default_rng(zlib.crc32(repr(settings).encode()))


def gaussian(runs: int, ratio: float, *, final: float = 1.0, tail: float = math.inf) -> Trajectory:
    """Draw gradients at fixed parameters.

    Args:
        runs: Number of runs.
        ratio: B / B_simple.
        final: Factor by which B_simple has grown at the end, exponentially.
        tail: Degrees of freedom of Student's t for whole examples.

    Returns:
        The path.
    """
    rng = seeded("gaussian", ratio, final, tail)
    trace = SIZE * MICRO_BATCHES / ratio

    def steps() -> Iterator[Step]:
        for step in range(WINDOWS):
            grad_sq = final ** (-step / WINDOWS)
            noise = rng.standard_normal((runs, MICRO_BATCHES, DIMENSION), dtype=np.float32)
            if tail < math.inf:
                factors = (tail - 2) / rng.chisquare(tail, (runs, MICRO_BATCHES, SIZE))
                noise *= np.sqrt(factors.mean(2)).astype(np.float32)[..., None]
            noise *= np.float32(math.sqrt(trace / SIZE / DIMENSION))
            noise[..., 0] += np.float32(math.sqrt(grad_sq))
            yield Step(noise, np.full(runs, trace), np.full(runs, grad_sq))

    return recorded(steps(), SIZE)


def quadratic(
    runs: int,
    optimizer: Optimizer,
    rate: float,
    *,
    start: float = 0.0,
    burn_in: int = 0,
    drift: float = 0.0,
    tail: float = math.inf,
) -> Trajectory:
    """Train on a noisy quadratic whose noise is proportional to its curvature, from 0.1 to 1 in 256 modes.

    Args:
        runs: Number of runs.
        optimizer: The optimizer.
        rate: The learning rate.
        start: First distance from the optimum, in each mode.
        burn_in: Steps before the first window.
        drift: Variance by which the optimum moves in each step.
        tail: Degrees of freedom of Student's t for whole examples.

    Returns:
        The path.
    """
    rng = seeded("quadratic", optimizer, rate, start, drift, tail)
    memory = dict[str, np.ndarray]()
    curvature, batch = np.linspace(0.1, 1.0, 256), SIZE * MICRO_BATCHES
    world = NoisyQuadratic(curvature=curvature, noise=batch * curvature / curvature.mean(), tail=tail)
    x = np.full((runs, curvature.size), start)

    def steps() -> Iterator[Step]:
        nonlocal x
        for step in range(burn_in + WINDOWS):
            true = curvature * x
            if step < burn_in:
                mean = true + world.sample_noise(batch, runs, rng)
            else:
                noise = world.sample_noise(SIZE, runs * MICRO_BATCHES, rng).reshape(runs, MICRO_BATCHES, -1)
                gradients = true[:, None] + noise
                mean = gradients.mean(1)
                yield Step(gradients, np.full(runs, world.noise.sum()), squared(true))
            x = x - rate * optimizer.update(mean, step + 1, memory)
            if drift:
                x = x + rng.standard_normal(x.shape) * math.sqrt(drift)

    return recorded(steps(), SIZE)


def digits_paths(seed: int) -> list[Trajectory]:
    """Five stretches of the digits, one after the other."""
    paths = digits(seed, stretches=5, windows=WINDOWS, every=DIGITS_EVERY, size=8)
    return [recorded(steps, 8) for steps in paths]


def language_paths(seed: int) -> list[Trajectory]:
    """Five stretches of the language model, with as many steps between two of them."""
    paths = language(
        seed, stretches=5, windows=WINDOWS, every=LANGUAGE_EVERY, size=4, between=WINDOWS, samples=LANGUAGE_SAMPLES
    )
    return [recorded(steps, 4) for steps in paths]


TRAINED = {"c": digits_paths, "d": language_paths}
CELLS: dict[str, dict[str, Callable[[int], Trajectory]]] = {
    "a": {
        **{f"B/B_simple = {ratio:g}": partial(gaussian, ratio=ratio) for ratio in (4, 1, 0.3, 0.1, 0.03, 0.01)},
        "0.3, Student t (3)": partial(gaussian, ratio=0.3, tail=3.0),
        "1 to 0.1": partial(gaussian, ratio=1.0, final=10.0),
    },
    "b": {
        "SGD 0.02, transient": partial(quadratic, optimizer=Momentum(), rate=0.02, start=4.0),
        "SGD 0.3, stationary": partial(quadratic, optimizer=Momentum(), rate=0.3, burn_in=200),
        "SGD 0.03, momentum 0.9, stationary": partial(quadratic, optimizer=Momentum(0.9), rate=0.03, burn_in=300),
        "Adam 0.02, transient": partial(quadratic, optimizer=Adam(), rate=0.02, start=4.0),
        "Adam 0.1, stationary": partial(quadratic, optimizer=Adam(), rate=0.1, burn_in=300),
        "SGD 0.1, stationary, Student t (3)": partial(quadratic, optimizer=Momentum(), rate=0.1, burn_in=300, tail=3.0),
        "SGD 0.1, moving optimum": partial(quadratic, optimizer=Momentum(), rate=0.1, burn_in=300, drift=0.05),
    },
}
NOTES = {
    "a": "Nothing trains here, so gradients of different steps are at the same parameters, and estimators that multiply"
    " them have more pairs than those within a window. The other parts show what these are worth in training.",
    "b": "Every truth is exact, at each step's own parameters.",
    "c": "SGD, learning rate 0.02, momentum 0.9, batch 32; the truth is exact, from all 1,347 images, at every third"
    ' step; "all five" are the stretches together. Late in training a handful of images make up nearly all of the'
    " gradient, and few windows hold two of them.",
    "d": "AdamW, batch 16 of 32 bytes; the truth is from 256 other micro-batches at frozen parameters, at every second"
    " step. The last step of each stretch is one of the five points where it is also compared with the truth of that"
    " moment.",
}
TITLES = {
    "a": "(a) Gaussian gradients at fixed parameters",
    "b": "(b) Noisy quadratics in training",
    "c": "(c) Digits, a CNN in training",
    "d": "(d) A byte-level language model in training",
}
SECONDS = {"a": 20.0, "b": 15.0, "c": 90.0, "d": 120.0}  # a cell, or a seed
# Why another estimator can be the most accurate in a cell.
ACROSS = "multiplies gradients of different steps: more pairs from the same examples, unbiased only while nothing moves"
WHY = {
    "momentum buffer": ACROSS,
    "differenced": ACROSS,
    "sequential windows": ACROSS,
    "clip before average": "scatters less, because what would be below zero is left out, which biases it",
    "one small norm": "the same pairs with fewer norms; better by chance only",
    "ratio per step": "biased towards what a single window can show",
    "norm test": "biased towards the batch, whatever the noise scale",
}


def missing(done: dict[str, Any], only: str, runs: int, seeds: int) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Name the cells that are not finished.

    Args:
        done: Finished cells by key.
        only: The parts.
        runs: Repeats of a cell.
        seeds: Seeds of the trained networks.

    Yields:
        Key, part, and what computes the cell's results.
    """
    for part in only:
        for name, make in CELLS.get(part, {}).items():
            key = f"{part}/{name}/{runs}/v{VERSIONS[part]}"
            if key not in done:
                yield key, part, lambda make=make: {"summary": summary(arrays([answers(make(runs), MEMORY)]))}
        for seed in range(seeds if part in TRAINED else 0):
            key = f"{part}/{seed}/v{VERSIONS[part]}"
            if key not in done:
                paths = partial(TRAINED[part], seed)
                yield key, part, lambda paths=paths: {"answers": [answers(path, MEMORY) for path in paths()]}


def finished(path: Path) -> dict[str, Any]:
    """Read the finished cells by key; a line cut off by a kill is skipped."""
    cells = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            cell = json.loads(line)
        except json.JSONDecodeError:
            continue
        cells[cell["key"]] = cell
    return cells


# ---------------------------------------------------------------- the scores


def log_errors(rows: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Compute the logarithm of estimate / truth; infinite for an unusable estimate."""
    usable = (rows[:, 0] > 0) & (rows[:, 1] > 0)
    safe = np.where(usable[:, None], rows[:, :2], 1.0)
    return np.where(usable, np.log(safe[:, 0] / safe[:, 1] * truth[:, 1] / truth[:, 0]), math.inf)


def score(rows: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Compare the answers with the truth.

    Args:
        rows: Trace and squared norm of each repeat, and of ours the interval and whether it is resolved.
        truth: True trace and squared norm of each repeat.

    Returns:
        The scores.
    """
    sums, true = rows[:, :2].mean(0), truth.mean(0)
    bias = sums[0] / sums[1] * true[1] / true[0]
    influence = rows[:, 0] / sums[0] - rows[:, 1] / sums[1] - truth[:, 0] / true[0] + truth[:, 1] / true[1]
    logs = log_errors(rows, truth)
    scores = {
        "bias": float(bias),
        "bias_half_width": float(abs(bias) * 1.645 * influence.std(ddof=1) / math.sqrt(len(rows))),
        "error": float(np.exp(np.quantile(np.abs(logs), 0.68, method="higher"))),
        "unusable": float(np.isinf(logs).mean()),
    }
    if rows.shape[1] > 2:
        exact = truth[:, 0] / truth[:, 1]
        scores["coverage"] = float(((rows[:, 2] <= exact) & (exact <= rows[:, 3])).mean())
        scores["resolved"] = float(rows[:, 4].mean())
    return scores


def against_best(found: dict[str, np.ndarray]) -> tuple[str, float, float, float]:
    """Compare the error of ours with the smallest one of the others.

    Args:
        found: The answers of all estimators.

    Returns:
        The most accurate other one, the ratio of the logarithmic errors (ours / its), and its 90 % interval by a paired
        bootstrap over the repeats.
    """
    truth, rng = found["truth"], np.random.default_rng(0)
    errors = {name: np.abs(log_errors(found[name], truth)) for name in ("ours", *OTHERS)}

    def spread(values: np.ndarray) -> np.ndarray:
        return np.asarray(np.quantile(values, 0.68, axis=-1, method="higher"))

    best = min(OTHERS, key=lambda name: float(spread(errors[name])))
    drawn = rng.integers(len(truth), size=(1000, len(truth)))
    with np.errstate(invalid="ignore"):
        ratio = float(spread(errors["ours"]) / spread(errors[best]))
        ratios = spread(errors["ours"][drawn]) / spread(errors[best][drawn])
        ratios = np.nan_to_num(ratios, nan=1.0, posinf=math.inf)
    low, high = np.quantile(ratios, (0.05, 0.95), method="nearest")
    return best, ratio, float(low), float(high)


def arrays(found: Iterable[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Join the answers of several paths."""
    every = [*found]
    return {name: np.array([row for one in every for row in one[name]]) for name in every[0]}


def summary(found: dict[str, np.ndarray]) -> dict[str, Any]:
    """Score all estimators.

    Args:
        found: Their answers, and the truth.

    Returns:
        Number of repeats, the scores of each estimator, and how ours compares with the best of the others.
    """
    scores = {name: score(found[name], found["truth"]) for name in (*OURS, *OTHERS)}
    for name in OURS:
        scores[name]["coverage_now"] = score(found[name], found["now"])["coverage"]
    shown = {name: {key: float(f"{value:.5g}") for key, value in of.items()} for name, of in scores.items()}
    return {"repeats": len(found["truth"]), "scores": shown, "best": against_best(found)}


def collected(done: dict[str, Any], runs: int, seeds: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Arrange the summaries by part and cell; the stretches of the trained networks are cells over their seeds."""
    parts: dict[str, dict[str, dict[str, Any]]] = {}
    for part, cells in CELLS.items():
        for name in cells:
            cell = done.get(f"{part}/{name}/{runs}/v{VERSIONS[part]}")
            if cell:
                parts.setdefault(part, {})[name] = cell["summary"]
    for part, apart in (("c", WINDOWS), ("d", 2 * WINDOWS)):
        keys = [f"{part}/{seed}/v{VERSIONS[part]}" for seed in range(seeds)]
        trained = [done[key]["answers"] for key in keys if key in done]
        if len(trained) > 1:
            stretches = range(len(trained[0]))
            groups = {f"steps {apart * k + 1:,} to {apart * k + WINDOWS:,}": [k] for k in stretches}
            for name, chosen in {**groups, "all five": [*stretches]}.items():
                parts.setdefault(part, {})[name] = summary(arrays(one[k] for one in trained for k in chosen))
    return parts


def number(value: float) -> str:
    """Write a ratio."""
    size = abs(value)
    return "∞" if math.isinf(value) else f"{value:.3f}" if size < 3 else f"{value:.1f}" if size < 30 else f"{value:.0f}"


def biases(parts: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Write what the estimators across steps are worth once something trains: their bias over all cells of a part."""
    names = ("ours", "momentum buffer", "differenced", "sequential windows")
    lines = [
        "What they are worth over the whole of each part: the range of estimate / truth over its cells, and the most"
        " unusable answers of any.",
        "",
        "| part | " + " | ".join(names) + " |",
        "|---" * (1 + len(names)) + "|",
    ]
    for part, cells in parts.items():
        shown = []
        for name in names:
            of = [found["scores"][name] for found in cells.values()]
            low, high = (number(ends(score["bias"] for score in of)) for ends in (min, max))
            shown.append(f"{low} to {high} ({max(score['unusable'] for score in of):.0%})")
        lines.append(f"| {TITLES[part]} | " + " | ".join(shown) + " |")
    return lines


def table(parts: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Write the tables, and say where ours is not the most accurate.

    Args:
        parts: The summaries by part and cell.

    Returns:
        Markdown.
    """
    lines: list[str] = []
    worse, uncovered = [], []
    for part, cells in parts.items():
        scores = {name: found["scores"] for name, found in cells.items()}
        repeats = "/".join(str(count) for count in sorted({found["repeats"] for found in cells.values()}))
        lines += [f"## {TITLES[part]}", "", f"{repeats} repeats. {NOTES[part]}", ""]

        def grid(title: str, names: Iterable[str], cell: Callable[[dict[str, float]], str], shown: Any) -> list[str]:
            rows = [f"| {key} | " + " | ".join(cell(shown[name][key]) for name in shown) + " |" for key in names]
            return [f"| {title} | " + " | ".join(shown) + " |", "|---" * (len(shown) + 1) + "|", *rows, ""]

        lines += grid(
            "bias: estimate / truth, 90 %",
            [*OURS, *OTHERS],
            lambda of: f"{number(of['bias'])} ± {number(of['bias_half_width'])}",
            scores,
        )
        lines += grid(
            "error: 68 % of answers within a factor of (unusable answers)",
            [*OURS, *OTHERS],
            lambda of: f"{number(of['error'])} ({of['unusable']:.0%})",
            scores,
        )
        lines += grid(
            "the 90 % interval covers (resolved)",
            OURS,
            lambda of: f"{of['coverage']:.0%} ({of['resolved']:.0%})",
            scores,
        )
        if part in TRAINED:
            title = "it covers the truth of the last step"
            lines += grid(title, OURS, lambda of: f"{of['coverage_now']:.0%}", scores)
        for name, found in cells.items():
            best, ratio, low, high = found["best"]
            if ratio > 1.05 or math.isnan(ratio):
                of = scores[name][best]
                worse.append(
                    f"| ({part}) {name} | {best} | {number(ratio)} ({number(low)} to {number(high)})"
                    f" | {'yes' if low > 1.05 else 'no, within noise'} | {number(of['bias'])} | {WHY[best]} |"
                )
            for key in OURS:
                share, count = scores[name][key]["coverage"], found["repeats"]
                noise = math.sqrt(share * (1 - share) / count)
                if not 0.85 <= share <= 0.95:
                    uncovered.append(f"| ({part}) {name} | {key} | {share:.1%} ± {noise:.1%} |")
    machine = describe(threads=1)
    lines += [
        "## Where ours is not the best",
        "",
        "Cells where the logarithmic error of ours exceeds 1.05 times the smallest of the others: the ratio with its"
        " 90 % interval, and the other's bias (estimate / truth) in the same cell.",
        "",
        "| cell | the most accurate | its error is smaller by | clear? | its bias there | why |",
        "|---|---|---|---|---|---|",
        *(worse or ["| none | | | | | |"]),
        "",
        *biases(parts),
        "",
        "## Where the 90 % interval covers less than 85 % or more than 95 %",
        "",
        "Where the true values move much within the memory, this widens the interval, which then covers more often.",
        "",
        "| cell | estimator | covers |",
        "|---|---|---|",
        *(uncovered or ["| none | | |"]),
        "",
        f"Python {machine['python']}, torch {machine['torch']}, {machine['processor']}, one thread.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Compute the missing cells, unless only the table is requested, and write the table.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300, help="repeats of a simulated cell (default: 300)")
    parser.add_argument("--seeds", type=int, default=12, help="seeds of the trained networks (default: 12)")
    parser.add_argument("--only", default="abcd", help="the parts to compute (default: abcd)")
    parser.add_argument("--out", type=Path, default=RESULTS / "estimators.jsonl", help="file of finished cells")
    parser.add_argument("--table", action="store_true", help="only write and print the table of the finished cells")
    options = parser.parse_args()
    torch.set_num_threads(1)
    jobs = [] if options.table else [*missing(finished(options.out), options.only, options.runs, options.seeds)]
    forecast = sum(SECONDS[part] * (1 if part in TRAINED else options.runs / 300) for _, part, _ in jobs)
    if jobs:
        print(f"{len(jobs)} cells, about {forecast / 60:.0f} minutes", flush=True)
    for key, _, compute in jobs:
        started = time.perf_counter()
        line = json.dumps({"key": key, **compute()})
        with options.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(f"{key}: {time.perf_counter() - started:.0f} s", flush=True)
    text = table(collected(finished(options.out), options.runs, options.seeds))
    options.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
