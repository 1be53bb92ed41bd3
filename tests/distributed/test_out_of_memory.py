"""One rank of two runs out of memory: it recovers by itself, and the others only wait for its gradient."""

import sys

import pytest

from tests.helpers import ddp_runs
from tests.helpers.processes import fit_on

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:.*memory ran out in a micro-batch of"),
]
OPTIONS = dict(max_batch_size=999, split="auto", measure_every=1)


@pytest.fixture(scope="module")
def without_error():
    return fit_on(2, ddp_runs.short_of_memory, 2, [1, 2, 3], (None, "", 0), **OPTIONS)


@pytest.mark.parametrize(
    ("fails", "largest", "again"),
    [
        ((1, "forward", 0), None, 0),  # the run's first pass, which synchronises and has waited for the buffers
        ((0, "forward", 2), None, 0),
        ((1, "backward", 1), None, 0),  # the first of two
        ((1, "backward", 4), None, 0),  # the second of three
        ((1, "forward", 1), 8, 1),  # 8 and then 4 do not fit
        ((1, "backward", 2), 8, 1),
        ((0, "forward", 2), 100, 2),
    ],
)
def test_a_rank_recovers_by_itself(without_error, fails, largest, again):
    results = fit_on(2, ddp_runs.short_of_memory, 2, [1, 2, 3], fails, max_micro_batch_size=largest, **OPTIONS)
    for rank, (found, wanted) in enumerate(zip(results, without_error, strict=True)):
        steps, reductions, global_step, sizes, limit, _, logged = found
        assert steps == [pytest.approx(step, abs=2e-6) for step in wanted[0]]
        assert reductions == global_step == wanted[2]
        assert limit == 2
        assert logged == pytest.approx(wanted[6])
        if rank == fails[0]:
            assert sum(size > 2 for size in sizes[fails[2] + 1 :]) == again
        assert max(sizes[-6:]) == 2  # all ranks have learnt it
    assert results[0][5] == results[1][5]


@pytest.mark.parametrize(
    ("place", "note"), [("backward", "Set max_micro_batch_size to less than 4"), ("synced log", "")]
)
def test_where_the_other_rank_waits_the_error_passes(place, note):
    """The other one is within an all-reduce, and never comes back from it alone."""
    with pytest.raises(RuntimeError, match="CUDA out of memory") as caught:
        fit_on(2, ddp_runs.short_of_memory, 2, [1], (1, place, 0), **OPTIONS)
    if sys.version_info >= (3, 11):
        assert note in "".join(getattr(caught.value, "__notes__", []))
