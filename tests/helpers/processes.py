"""Runs a function in several processes at once, and gives back what each returned.

The function is pickled by name, so it stands at the top level of a module that the processes can import.

The processes are forked from a server that has imported torch, Lightning and the package and done nothing else: the
first call in a session takes some seconds, and every later one a fraction of one. CUDA is as new in them.
"""

import faulthandler
import functools
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from unittest import mock

from tests.helpers.places import at, here, num_gpus

ROOT = Path(__file__).parents[2]
GRACE = 2.0  # seconds that the others get, after one has failed, to say how they fared
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # for libraries that ask when they are loaded


class RankTraceback(Exception):
    """Where it happened, in the process in which it happened."""

    def __str__(self):
        return f"\n{self.args[0]}"


def run(function, world_size, *args, timeout=60.0, init=True):
    """Calls `function(rank, *args)` in `world_size` processes, in the test's place, `here()`, and without warnings.

    With `init` a group spans them. Without, only the environment that torch's `env://` and Lightning's launcher read is
    set: for a Trainer, which makes its own group. Where the place has too few GPUs, the test is skipped.

    Returns what each rank returned, in the order of ranks. An exception in a rank is raised here, with that rank's
    traceback as its cause; after `timeout` seconds a TimeoutError says where each rank was. No process survives.
    """
    skip_without_gpus(here().num_gpus(world_size))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed.fsdp", "lightning.pytorch", "tests.helpers.ddp_runs"])
    children = []
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, ONE_THREAD):
        try:
            group = dict(WORLD_SIZE=f"{world_size}", MASTER_PORT=f"{free_port()}", MASTER_ADDR="127.0.0.1")
            for rank, environment in enumerate(here().processes(world_size)):
                ours, theirs = context.Pipe(duplex=False)
                environment |= group | {"RANK": f"{rank}", "GLOO_SOCKET_IFNAME": "lo"}
                work = functools.partial(_message, rank, world_size, timeout, init, function, args)
                process = context.Process(
                    target=_child, args=(theirs, Path(folder, f"{rank}"), here(), environment, work), daemon=True
                )
                process.start()
                theirs.close()
                children.append((process, ours))
            return _collect(children, timeout, Path(folder))
        finally:
            for process, ours in children:
                if process.is_alive():
                    process.kill()
                process.join()
                process.close()
                ours.close()


def fit_on(ranks, function, *args, **options):
    """`function(rank, *args, **options)` of each rank, for functions that train with a Trainer."""
    return run(functools.partial(function, **options), ranks, *args, init=False)


def script_environment(**more):
    """Of a script that a test starts as a user does."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **more}


def skip_without_gpus(needed):
    if needed and (found := num_gpus()) < needed:
        import pytest

        pytest.skip(f"needs {needed} CUDA device{'s' * (needed > 1)}, found {found}")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _collect(children, timeout, folder):
    deadline = time.monotonic() + timeout
    results = {}
    failures = []
    waiting = {ours: rank for rank, (_, ours) in enumerate(children)}
    while waiting:
        ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for ours in ready:
            rank = waiting.pop(ours)
            try:
                good, content = pickle.loads(ours.recv_bytes())
            except EOFError:  # killed, or crashed: there is no exception to tell
                process = children[rank][0]
                process.join(GRACE)
                lost = RuntimeError(f"rank {rank} ended without a word, exit code {process.exitcode}")
                good, content = False, (0.0, rank, pickle.dumps(lost), str(lost))
            if good:
                results[rank] = content
            else:
                if not failures:
                    deadline = min(deadline, time.monotonic() + GRACE)
                failures.append(content)
    if failures:
        failures.sort()  # by time: the later ones may have failed for want of the first
        text = "\n".join(f"rank {rank}: {where}" for _, rank, _, where in failures)
        raise pickle.loads(failures[0][2]) from RankTraceback(text)
    if waiting:
        where = "\n".join(_stack(children[rank][0], folder, rank) for rank in waiting.values())
        raise TimeoutError(f"after {timeout:g} s these ranks had not ended: {sorted(waiting.values())}\n{where}")
    return [results[rank] for rank in range(len(children))]


def _stack(process, folder, rank):
    try:
        os.kill(process.pid, signal.SIGUSR1)
        time.sleep(0.2)
        return f"rank {rank}: {(folder / str(rank)).read_text()}"
    except OSError as error:
        return f"rank {rank}: {error}"


def _child(connection, path, place, environment, work):
    with path.open("w") as stack:
        faulthandler.register(signal.SIGUSR1, file=stack, all_threads=False)
        os.environ.update(environment)
        warnings.simplefilter("ignore")
        with at(place):
            connection.send_bytes(work())
        connection.close()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # nothing that a library left running may keep the process


def _message(rank, world_size, timeout, init, function, args):
    """What the parent is told: (True, the result), or (False, when, who, what and where it failed)."""
    import torch
    from torch import distributed

    from tests.helpers.gloo import average_over_gloo

    torch.set_num_threads(1)
    average_over_gloo()
    try:
        if init:
            every = timedelta(seconds=timeout)
            distributed.init_process_group(here().backends, rank=rank, world_size=world_size, timeout=every)
        message = pickle.dumps((True, function(rank, *args)))
        # Ending gloo's group hangs now and then in torch 2.7, and the process ends with it anyhow.
        if init and distributed.is_initialized() and here().backend != "gloo":
            distributed.destroy_process_group()
        return message
    except BaseException as error:  # the group is left as it is: NCCL could wait for another rank to end it
        return pickle.dumps((False, (time.monotonic(), rank, _as_pickle(error), traceback.format_exc())))


def _as_pickle(error):
    """The exception, or, where it cannot travel, its text."""
    try:
        whole = pickle.dumps(error)
        pickle.loads(whole)
    except Exception:
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return whole
