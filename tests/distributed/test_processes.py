"""The helper that runs functions in several processes: one that hangs or passes by mistake would be worse than none."""

import os
import time

import pytest
import torch
from torch import distributed

from tests.helpers import ddp_runs, places, processes
from tests.helpers.processes import RankTraceback, run


def sum_of_ranks(rank, add):
    total = torch.tensor(float(rank + add))
    distributed.all_reduce(total)
    return total.item(), torch.get_num_threads(), torch.full((2,), rank)


def placed(rank):
    names = ("RANK", "WORLD_SIZE", "NODE_RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES")
    return [os.environ.get(name) for name in names], places.here()


def fail_on_one(rank):
    if rank == 1:
        raise KeyError("on purpose")
    distributed.barrier()  # would wait for the group's time-out


def never_end(rank, folder):
    open(f"{folder}/{os.getpid()}", "w").close()
    time.sleep(1000)


def die(rank):
    if rank == 0:
        os._exit(7)
    distributed.barrier()


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_rank_returns(world_size):
    found = run(sum_of_ranks, world_size, 10)
    total = sum(range(world_size)) + 10 * world_size
    assert [(value, threads) for value, threads, _ in found] == [(total, 1)] * world_size
    assert [tensor.tolist() for *_, tensor in found] == [[rank, rank] for rank in range(world_size)]


def test_an_exception_is_raised_here_with_its_traceback():
    start = time.monotonic()
    with pytest.raises(KeyError, match="on purpose") as info:
        run(fail_on_one, 2)
    assert isinstance(info.value.__cause__, RankTraceback)
    assert "in fail_on_one" in str(info.value.__cause__)
    assert time.monotonic() - start < 20


def test_a_hang_ends_with_the_time_out_and_says_where(tmp_path):
    with pytest.raises(TimeoutError, match=r"\[0, 1\]") as info:
        run(never_end, 2, str(tmp_path), timeout=2)
    assert str(info.value).count("in never_end") == 2
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name), 0)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_killed_rank_is_named():
    with pytest.raises(RuntimeError, match="rank 0 ended without a word, exit code 7"):
        run(die, 2)


def test_on_cpus_no_gpu_is_seen(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    found = run(placed, 2, init=False)
    assert found == [(["0", "2", None, "0", "2", ""], places.CPU), (["1", "2", None, "1", "2", ""], places.CPU)]


def test_processes_that_share_a_gpu_see_the_first(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    assert [seen["CUDA_VISIBLE_DEVICES"] for seen in places.SHARED_CUDA.processes(2)] == ["5", "5"]
    assert [seen["CUDA_VISIBLE_DEVICES"] for seen in places.CUDA.processes(2)] == ["5", "3"]


@pytest.mark.parametrize(("place", "needed"), [(places.CUDA, 2), (places.SHARED_CUDA, 1)])
def test_without_enough_gpus_the_test_is_skipped_and_says_so(monkeypatch, place, needed):
    monkeypatch.setattr(processes, "num_gpus", lambda: needed - 1)
    with (
        places.at(place),
        pytest.raises(pytest.skip.Exception, match=f"needs {needed} CUDA devices?, found {needed - 1}"),
    ):
        run(placed, 2)


def test_two_nodes_of_one_device_measure_as_one_of_two():
    arguments = (ddp_runs.monitored, 2, 2, 2, (24, [2, 6, 3, 8]))
    one_node = run(*arguments, init=False)
    with places.at(places.CPU_NODES):
        assert run(*arguments, init=False) == one_node
    assert len(one_node[0]) == 6
    assert one_node[0] == one_node[1]
