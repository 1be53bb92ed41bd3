"""Run a function in several processes at once, as the ranks of one gloo group on this machine."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

PATIENCE = timedelta(minutes=5)  # how long to wait for a rank that does not answer


def run_ranks(function: Callable[..., Any], ranks: int, *args: Any, threads: int = 1) -> list[Any]:
    """Call `function(rank, *args)` in new processes; if one fails, end the others and raise its error.

    Lightning's own launcher finds these processes and starts none.

    Args:
        function: A function at the top level of a module or script; the processes look it up by name.
        ranks: Number of processes. A single one has no group.
        args: Further arguments, which must be picklable.
        threads: Number of torch threads in each process.

    Returns:
        The results in the order of ranks; they are passed as JSON.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (ranks, port, threads, folder, function, args), nprocs=ranks)
        return [json.loads(Path(folder, str(rank)).read_text()) for rank in range(ranks)]


def _rank(
    rank: int, ranks: int, port: int, threads: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(threads)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform.startswith("linux") else "lo0")
    if ranks > 1:
        distributed.init_process_group("gloo", rank=rank, world_size=ranks, timeout=PATIENCE)
    try:
        found = function(rank, *args)
        Path(folder, str(rank)).write_text(json.dumps(found))
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def slowest(seconds: float) -> float:
    """Return the longest time over all ranks, or the given one if there is no group.

    Args:
        seconds: The time of this rank.

    Returns:
        The same number on all ranks.
    """
    if not distributed.is_initialized():
        return seconds
    longest = torch.tensor(seconds, dtype=torch.float64)
    distributed.all_reduce(longest, op=distributed.ReduceOp.MAX)
    return float(longest)
