"""Runs a function in several processes at once, as the ranks of one gloo group on this machine."""

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

PATIENCE = timedelta(minutes=5)  # with a rank that does not answer


def run_ranks(function: Callable[..., Any], ranks: int, *args: Any, threads: int = 1) -> list[Any]:
    """Call `function(rank, *args)` in new processes; when one fails the others are ended and its error is raised.

    Lightning's own launcher finds the processes there and starts none.

    Args:
        function: At the top level of a module or script, because the processes find it by name.
        ranks: Number of processes. One has no group.
        args: What can be pickled.
        threads: Of torch, in each process.

    Returns:
        What each rank returned, in the order of ranks; it travels as JSON.
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
    """Find the longest time of all ranks; where there is no group, this one's.

    Args:
        seconds: This rank's.

    Returns:
        The same number on all ranks.
    """
    if not distributed.is_initialized():
        return seconds
    longest = torch.tensor(seconds, dtype=torch.float64)
    distributed.all_reduce(longest, op=distributed.ReduceOp.MAX)
    return float(longest)
