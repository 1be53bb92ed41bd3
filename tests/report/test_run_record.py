"""What a report takes from a journal: the same numbers as the run had, in bounded memory."""

import itertools

import pytest

from lightning_bsscale.journal import read_journal
from lightning_bsscale.report.figure import spread
from lightning_bsscale.report.noise_picture import batch_stairs
from lightning_bsscale.report.read_run import read_run
from lightning_bsscale.report.run_record import Thinned
from lightning_bsscale.theory.records import DecisionRecord, Measurement
from tests.helpers.written_runs import SIZE, write_run


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "run.jsonl", 800)


def test_the_numbers_are_those_of_the_run(journal):
    record, (_, records) = read_run(journal), read_journal(journal)
    measured = [one for one in records if isinstance(one, Measurement)]
    decided = [one for one in records if isinstance(one, DecisionRecord)]
    changed = [one for one in decided if one.is_change]
    assert record.now.examples == record.ended.state.examples.total == 800 * SIZE
    assert record.now.steps == record.ended.state.windows == sum(phase.steps for phase in record.phases.values())
    assert sum(phase.examples for phase in record.phases.values()) == 800 * SIZE
    assert [one.place.examples for one in record.windows.items] == [one.examples_seen for one in measured]
    assert [one.record for one in record.changes.items] == changed
    assert [size for _, size in batch_stairs(record)] == [8, *(one.batch_size for one in changed), record.batch]
    assert sum(hold.runs for hold in record.holds.values()) == len(decided) - len(changed)
    assert set(record.phases) <= {8.0, *(float(one.batch_size) for one in changed)}


def test_seconds_add_up(journal):
    record = read_run(journal)
    assert record.has_seconds
    total = sum(phase.seconds for phase in record.phases.values())
    assert record.now.seconds == pytest.approx(total)
    assert total == pytest.approx(sum(phase.computing + phase.stepping for phase in record.phases.values()))
    halfway = record.at_step(record.now.steps / 2)
    assert 0 < halfway.seconds < record.now.seconds
    assert halfway.steps == record.now.steps // 2


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100, 1001])
def test_a_thinned_list_keeps_the_first_and_the_last(count):
    thinned = Thinned(8)
    for item in range(count):
        thinned.add(item)
    kept = thinned.items
    assert thinned.count == count
    assert len(kept) <= 10
    assert kept == sorted(set(kept))
    assert kept[:1] + kept[-1:] == ([0, count - 1] if count else [])
    if count > 8:
        assert len({later - earlier for earlier, later in itertools.pairwise(kept[:-1])}) == 1


@pytest.mark.parametrize("count", [0, 1, 5, 6, 1000])
def test_items_are_spread_evenly(count):
    shown = spread(range(count), 5)
    assert len(shown) == min(count, 5)
    assert list(shown) == sorted(set(shown))
    assert not count or (shown[0], shown[-1]) == (0, count - 1)
