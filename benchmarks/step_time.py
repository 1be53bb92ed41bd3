"""A model of the step time under DDP, its fit to measured points, and the machines it is applied to.

    step = window * micro_batch + all_reduce + optimizer
    all_reduce = 2 (R - 1) / R * bytes / bandwidth + 2 (R - 1) * latency          (a ring of R ranks)

The window is the number of micro-batches of one rank in a step; DDP sends the gradient once per step, whatever the
window. As written, nothing is sent while the last backward pass runs. DDP overlaps the two, and at best hides as much
of the all-reduce as one backward pass lasts, two thirds of a micro-batch: `overlap=1`. The truth lies in between.

Limits: on many ranks NCCL uses trees, whose latency grows with log R instead of R. Waiting for the slowest rank, data
loading and checkpoints are left out.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np

RANKS = (8, 64, 512, 4096)
WINDOWS = (1, 2, 4, 8, 16, 32)
BACKWARD_SHARE = 2 / 3


@dataclass(frozen=True, slots=True, kw_only=True)
class AllReduce:
    """Bandwidth of a link of the ring (bytes per second), and seconds for each of its 2 (R - 1) hops."""

    bandwidth: float
    latency: float

    def latency_seconds(self, ranks: int) -> float:
        return 2 * (ranks - 1) * self.latency

    def seconds(self, size: float, ranks: int) -> float:
        return 2 * (ranks - 1) / ranks * size / self.bandwidth + self.latency_seconds(ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Computation:
    """Seconds per micro-batch (forward and backward) and per optimizer step."""

    micro_batch: float
    optimizer: float


def step_seconds(computation: Computation, window: int, all_reduce: float, overlap: float = 0.0) -> float:
    """Compute the time of a step.

    Args:
        computation: The computation of one rank.
        window: The number of micro-batches per rank.
        all_reduce: Seconds of the all-reduce.
        overlap: Share of the last backward pass that can hide the all-reduce, from 0 to 1.

    Returns:
        The time in seconds.
    """
    hidden = min(all_reduce, overlap * BACKWARD_SHARE * computation.micro_batch)
    return window * computation.micro_batch + all_reduce - hidden + computation.optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """An assumed machine and model; nothing here was measured.

    Attributes:
        name: A short name.
        stated: The assumptions, in words.
        parameters: Number of parameters of the model.
        flops: Operations per micro-batch, forward and backward.
        flops_a_second: Operations per second that the device reaches.
        optimizer_bytes: Bytes read and written per parameter.
        memory_bandwidth: Bytes per second.
        network: The ring.
    """

    name: str
    stated: str
    parameters: float
    flops: float
    flops_a_second: float
    optimizer_bytes: float
    memory_bandwidth: float
    network: AllReduce

    @property
    def computation(self) -> Computation:
        return Computation(
            micro_batch=self.flops / self.flops_a_second,
            optimizer=self.parameters * self.optimizer_bytes / self.memory_bandwidth,
        )

    @property
    def gradient_bytes(self) -> float:
        return 4 * self.parameters


ASSUMED = (
    Hardware(
        name="400 Gb/s fabric",
        stated="1.3 billion parameters, AdamW, 4,096 tokens per micro-batch; devices that reach 400 TFLOP/s with memory"
        " of 2 TB/s; a ring of 40 GB/s and 5 µs per hop",
        parameters=1.3e9,
        flops=6 * 1.3e9 * 4096,
        flops_a_second=400e12,
        optimizer_bytes=28,
        memory_bandwidth=2e12,
        network=AllReduce(bandwidth=40e9, latency=5e-6),
    ),
    Hardware(
        name="100 Gb/s Ethernet",
        stated="125 million parameters, AdamW, 8,192 tokens per micro-batch; devices that reach 125 TFLOP/s with memory"
        " of 1.5 TB/s; a ring of 10 GB/s and 20 µs per hop",
        parameters=125e6,
        flops=6 * 125e6 * 8192,
        flops_a_second=125e12,
        optimizer_bytes=28,
        memory_bandwidth=1.5e12,
        network=AllReduce(bandwidth=10e9, latency=20e-6),
    ),
    Hardware(
        name="10 Gb/s Ethernet",
        stated="25.6 million parameters (ResNet-50), SGD with momentum, 32 images of 24.6 GFLOP per micro-batch;"
        " devices that reach 20 TFLOP/s with memory of 0.8 TB/s; a ring of 1.1 GB/s and 50 µs per hop",
        parameters=25.6e6,
        flops=32 * 24.6e9,
        flops_a_second=20e12,
        optimizer_bytes=20,
        memory_bandwidth=0.8e12,
        network=AllReduce(bandwidth=1.1e9, latency=50e-6),
    ),
)


def predict(hardware: Hardware, ranks: int, window: int, overlap: float = 0.0) -> float:
    """Compute the time per example with this window, relative to the time with a window of 1.

    Args:
        hardware: The assumed machine.
        ranks: The number of devices.
        window: The number of micro-batches per rank.
        overlap: How much of the last backward pass hides the all-reduce, from 0 to 1.

    Returns:
        The ratio; below 1, the larger window saves time.
    """
    all_reduce = hardware.network.seconds(hardware.gradient_bytes, ranks)
    one, many = (step_seconds(hardware.computation, count, all_reduce, overlap) for count in (1, window))
    return many / window / one


def fit_all_reduce(points: list[dict[str, Any]], computations: dict[tuple[int, int], Computation]) -> AllReduce:
    """Fit bandwidth and latency by least squares of the relative errors of the steps; neither may be negative.

    Args:
        points: Measured steps (`ranks`, `parameters`, `window`, `seconds`), of at least two sizes.
        computations: The computation for each number of ranks and parameters.

    Returns:
        The fit. A bandwidth of inf or a latency of 0 means that the best fit lies at the boundary.
    """
    rows, rest, weights = [], [], []
    for point in points:
        ranks = point["ranks"]
        alone = step_seconds(computations[ranks, point["parameters"]], point["window"], 0.0)
        rows.append([2 * (ranks - 1) / ranks * 4 * point["parameters"], 2 * (ranks - 1)])
        rest.append(point["seconds"] - alone)
        weights.append(1 / point["seconds"])
    weight = np.array(weights)
    matrix, wanted = np.array(rows) * weight[:, None], np.array(rest) * weight
    candidates = []
    for kept in ([0, 1], [0], [1]):
        found = np.zeros(2)
        found[kept] = np.linalg.lstsq(matrix[:, kept], wanted, rcond=None)[0]
        if (found >= 0).all():
            candidates.append(found)
    candidates.append(np.zeros(2))
    per_byte, latency = min(candidates, key=lambda found: float(((matrix @ found - wanted) ** 2).sum()))
    return AllReduce(bandwidth=1 / per_byte if per_byte > 0 else float("inf"), latency=float(latency))


def check(measured: dict[str, Any], fitted_parameters: tuple[int, ...]) -> dict[str, Any]:
    """Fit to 2 ranks at window 1, and compare with every other point.

    Args:
        measured: `computation` and `steps`, as benchmarks/scaling.py measures them.
        fitted_parameters: The model sizes used for the fit.

    Returns:
        The fit, each point with its error (model / measured - 1), and a summary by group.
    """
    computations = {
        (row["ranks"], row["parameters"]): Computation(micro_batch=row["micro_batch"], optimizer=row["optimizer"])
        for row in measured["computation"]
    }

    def group(point: dict[str, Any]) -> str:
        if point["ranks"] != 2:
            return f"{point['ranks']} ranks, " + ("window 1" if point["window"] == 1 else "larger windows")
        if point["parameters"] not in fitted_parameters:
            return "2 ranks, a size not fitted"
        return "fitted: 2 ranks, window 1" if point["window"] == 1 else "2 ranks, larger windows"

    points = [{**point, "group": group(point)} for point in measured["steps"]]
    fit = fit_all_reduce([point for point in points if point["group"].startswith("fitted")], computations)
    for point in points:
        all_reduce = fit.seconds(4 * point["parameters"], point["ranks"])
        computation = computations[point["ranks"], point["parameters"]]
        point["model"] = step_seconds(computation, point["window"], all_reduce)
        point["error"] = point["model"] / point["seconds"] - 1
    groups = []
    for name in dict.fromkeys(point["group"] for point in points):
        errors = [point["error"] for point in points if point["group"] == name]
        groups.append(
            {
                "group": name,
                "points": len(errors),
                "median_error": statistics.median(abs(error) for error in errors),
                "worst_error": max(errors, key=abs),
                "unrest": statistics.median(point["unrest"] for point in points if point["group"] == name),
            }
        )
    groups.sort(key=lambda row: not row["group"].startswith("fitted"))
    return {"bandwidth": fit.bandwidth, "latency": fit.latency, "groups": groups, "points": points}


def draw(path: Any) -> None:
    """Draw the time per example against the window, for each assumed machine.

    Args:
        path: The SVG file to write.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    colours = dict(zip(RANKS, ("#0072B2", "#009E73", "#E69F00", "#D55E00"), strict=True))
    # Keep text as text, and make the file depend on the numbers only.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "scaling"}):
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        panels = figure.subplots(1, len(ASSUMED), sharey=True)
        for axes, hardware in zip(panels, ASSUMED, strict=True):
            for ranks, colour in colours.items():
                for overlap, style in ((0.0, "-"), (1.0, "--")):
                    values = [predict(hardware, ranks, window, overlap) for window in WINDOWS]
                    axes.plot(WINDOWS, values, style, color=colour, linewidth=1.6)
            axes.set_xscale("log", base=2)
            axes.set_xticks(WINDOWS, [str(window) for window in WINDOWS])
            axes.set_ylim(0, 1.05)
            axes.set_title(hardware.name, fontsize="medium")
            axes.set_xlabel("window (micro-batches of one rank)")
            axes.grid(alpha=0.25)
        panels[0].set_ylabel("time per example, against window 1")
        handles = [Line2D([], [], color=colour, label=f"{ranks:,} ranks") for ranks, colour in colours.items()]
        handles += [
            Line2D([], [], color="black", label="nothing overlaps"),
            Line2D([], [], color="black", linestyle="--", label="a whole backward overlaps"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize="small", frameon=False)
        figure.suptitle("A model of stated assumptions, not a measurement")
        figure.savefig(path, format="svg", metadata={"Date": None})
