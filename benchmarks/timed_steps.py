"""Time steps of plain torch DDP on several ranks of this machine, for benchmarks/scaling.py."""

from __future__ import annotations

import math
import statistics
import time
from contextlib import nullcontext
from typing import Any

import torch
from ranks import run_ranks, slowest
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

RANKS = (2, 4)
WINDOWS = (1, 2, 4, 8)
LAYERS, EXAMPLES = 4, 16


class Steps:
    """A DDP model whose gradient is sent in one piece, after the last backward pass of a window.

    Args:
        parameters: The approximate number of parameters.
    """

    def __init__(self, parameters: int) -> None:
        torch.manual_seed(0)
        width = round((parameters / LAYERS) ** 0.5)
        net = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(LAYERS)))
        # With DDP's default buckets the first would be sent during the backward pass, for which the model has no term.
        self.model = DistributedDataParallel(net, bucket_cap_mb=2**12)
        self.optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)
        self.batch = torch.randn(EXAMPLES, width)

    def make(self, steps: int, window: int, sends: bool) -> None:
        """Make steps.

        Args:
            steps: Number of steps.
            window: Micro-batches per step.
            sends: Whether the gradient is summed over ranks.
        """
        for _ in range(steps):
            for index in range(window):
                is_quiet = not sends or index < window - 1
                with self.model.no_sync() if is_quiet else nullcontext():
                    loss: Tensor = self.model(self.batch).square().mean()
                    loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def seconds(self, steps: int, window: int, sends: bool) -> float:
        """Time steps on all ranks at once.

        Args:
            steps: Number of steps.
            window: Micro-batches per step.
            sends: Whether the gradient is summed over ranks.

        Returns:
            Seconds per step on the slowest rank.
        """
        distributed.barrier()
        started = time.perf_counter()
        self.make(steps, window, sends)
        return slowest(time.perf_counter() - started) / steps


def time_all(rank: int, sizes: tuple[int, ...], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Time every size and window, with and without sending, once per round.

    Args:
        rank: The rank of this process.
        sizes: Numbers of parameters of the models.
        rounds: Number of rounds.
        seconds: Minimum duration of each timing.

    Returns:
        One record for each size, window and kind.
    """
    models = {size: Steps(size) for size in sizes}
    cells = [(size, window, sends) for size in sizes for window in WINDOWS for sends in (True, False)]
    steps = {}
    for size, window, sends in cells:
        models[size].make(3, window, sends)  # warm up
        steps[size, window, sends] = math.ceil(seconds / models[size].seconds(3, window, sends))
    times: dict[tuple[int, int, bool], list[float]] = {cell: [] for cell in cells}
    for _ in range(rounds):
        for cell in cells:
            size, window, sends = cell
            times[cell].append(models[size].seconds(steps[cell], window, sends))
    return [
        {
            "parameters": size,
            "window": window,
            "sends": sends,
            "steps": steps[size, window, sends],
            "seconds": statistics.median(times[size, window, sends]),
            "runs": times[size, window, sends],
        }
        for size, window, sends in cells
    ]


def computation_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Fit window * micro_batch + optimizer to steps that send nothing: least squares of the relative errors.

    Args:
        rows: `window` and `seconds` for one size.

    Returns:
        Both times in seconds; the optimizer's is at least 0.
    """
    matrix = torch.tensor([[row["window"], 1.0] for row in rows], dtype=torch.float64)
    times = torch.tensor([row["seconds"] for row in rows], dtype=torch.float64)
    micro_batch, optimizer = torch.linalg.lstsq(matrix / times[:, None], torch.ones_like(times)[:, None])[0].flatten()
    if optimizer < 0:
        weighted = matrix[:, 0] / times
        micro_batch, optimizer = weighted.sum() / (weighted @ weighted), torch.tensor(0.0)
    return {"micro_batch": float(micro_batch), "optimizer": float(optimizer)}


def measure_steps(sizes: tuple[int, ...], rounds: int, seconds: float) -> dict[str, Any]:
    """Time steps on each number of ranks.

    Args:
        sizes: Numbers of parameters of the models.
        rounds: How often each step is timed.
        seconds: Minimum duration of each timing.

    Returns:
        `computation` for each number of ranks and size, and `steps`, each with the spread of its runs (`unrest`):
        half the interquartile range, relative to the median.
    """
    computation, points = [], []
    for ranks in RANKS:
        rows = run_ranks(time_all, ranks, sizes, rounds, seconds)[0]
        for size in sizes:
            alone = [row for row in rows if row["parameters"] == size and not row["sends"]]
            computation.append({"ranks": ranks, "parameters": size, **computation_of(alone), "measured": alone})
        for row in rows:
            if row["sends"]:
                low, _, high = statistics.quantiles(row["runs"], n=4)
                points.append({"ranks": ranks, **row, "unrest": (high - low) / 2 / row["seconds"]})
        print(f"{ranks} ranks: {len(rows)} kinds of step timed, {rounds} times each", flush=True)
    return {"computation": computation, "steps": points}
