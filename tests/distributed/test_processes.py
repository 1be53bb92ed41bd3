"""The helper that runs functions in several processes: one that hangs or passes by mistake would be worse than none."""

import os
import time

import pytest
import torch
from torch import distributed

from tests.distributed.processes import RankTraceback, run


def sum_of_ranks(rank, add):
    total = torch.tensor(float(rank + add))
    distributed.all_reduce(total)
    return total.item(), torch.get_num_threads(), torch.full((2,), rank)


def environment(rank):
    return distributed.is_initialized(), os.environ["RANK"], os.environ["WORLD_SIZE"], os.getpid()


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


def test_without_a_group_the_environment_is_set():
    found = run(environment, 2, init=False)
    assert [entry[:3] for entry in found] == [(False, "0", "2"), (False, "1", "2")]
    assert len({os.getpid(), *(entry[3] for entry in found)}) == 3


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
