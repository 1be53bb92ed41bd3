"""The sums over ranks: right whatever becomes of the tensor, and without a wait at either end."""

import time

import pytest
import torch
from torch import distributed

from lightning_bsscale.gradients.reduce import PendingSums, extremes
from tests.helpers.places import CUDA, at, here
from tests.helpers.processes import run

pytestmark = pytest.mark.timeout(120)

LATE = 0.5  # seconds


def vector_of(values):
    return torch.tensor(values, dtype=torch.float64, device=here().device)


def sent(tensor):
    return PendingSums(tensor, world_size=distributed.get_world_size())


def sums_of_what_changes(rank, count):
    tensor, vectors = vector_of([0.0, 0.0]), []
    for index in range(count):
        tensor.copy_(vector_of([index, rank]))
        vectors.append(sent(tensor))
        tensor.fill_(-1.0)
    sums = [vector.read() for vector in vectors]
    return sums, [vector.read() for vector in vectors] == sums, all(vector.has_arrived for vector in vectors)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_later_changes_of_the_tensor_do_not_show(world_size):
    count = 40  # torch has 32 streams
    ranks = sum(range(world_size))
    for sums, same_again, have_arrived in run(sums_of_what_changes, world_size, count):
        assert sums == [[world_size * index, ranks] for index in range(count)]
        assert same_again
        assert have_arrived


def sent_when_rank_1_is_late(rank):
    sent(vector_of([0.0])).read()  # the first connects
    if rank == 1:
        time.sleep(LATE)
    started = time.monotonic()
    vector = sent(vector_of([1.0 + rank]))
    if here().accelerator == "gpu":
        torch.cuda.current_stream().synchronize()
    seconds, early = time.monotonic() - started, vector.has_arrived
    deadline = started + 20 * LATE
    while not vector.has_arrived and time.monotonic() < deadline:
        time.sleep(0.001)
    return seconds, early, vector.has_arrived, vector.read()


@pytest.mark.usefixtures("place")
def test_the_first_rank_does_not_wait_for_the_last():
    (seconds, early, _, _), _ = results = run(sent_when_rank_1_is_late, 2)
    assert seconds < LATE / 2
    assert not early
    assert [arrived for _, _, arrived, _ in results] == [True, True]
    assert [sums for *_, sums in results] == [[3.0], [3.0]]


def read_beside_a_busy_device(rank):
    sent(vector_of([0.0] * 4)).read()
    tensor = vector_of([0.0, 1.0, 2.0, 3.0])
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)  # about a tenth of a second of queue before the message
    vector = sent(tensor)
    early = vector.has_arrived
    tensor.zero_()
    torch.cuda._sleep(2_000_000_000)
    behind = torch.cuda.Event()
    behind.record()
    return early, vector.read(), behind.query(), vector.has_arrived


@pytest.mark.gpu
@pytest.mark.parametrize("world_size", [1, 2])
def test_read_does_not_wait_for_what_was_queued_after(world_size):
    with at(CUDA):
        results = run(read_beside_a_busy_device, world_size)
    for early, sums, rest_is_done, has_arrived in results:
        assert not early
        assert sums == [world_size * value for value in (0.0, 1.0, 2.0, 3.0)]
        assert not rest_is_done, "read waited for what was queued after the message"
        assert has_arrived


def extremes_of_ranks(rank):
    return extremes([rank, -2.5 * rank, 7.0], here().device, distributed.get_world_size())


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("world_size", [1, 2])
def test_extremes_over_ranks(world_size):
    last = world_size - 1
    for smallest, largest in run(extremes_of_ranks, world_size):
        assert smallest == [0.0, -2.5 * last, 7.0]
        assert largest == [last, 0.0, 7.0]
