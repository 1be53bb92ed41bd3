"""Which micro-batches a window is computed in: every example once, with the weight that accumulation gives it."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_bsscale.theory.micro_batches import Group, Layout, due_groups, is_due, plan_layout, regroup, smaller_size

sizes = st.lists(st.integers(1, 12), min_size=1, max_size=12)
limits = st.none() | st.integers(1, 40)


def computed(rows, layout):
    """The window's micro-batches, each as the (loader batch, example) pairs it holds, with its weight."""
    waiting, found = [], []
    for number in range(len(rows)):
        waiting.append(number)
        is_last = number + 1 == len(rows)
        assert is_due(len(waiting), layout, is_last=is_last) == (len(waiting) == layout.gathered or is_last)
        if not is_due(len(waiting), layout, is_last=is_last):
            continue
        for group in due_groups([rows[k] for k in waiting], layout):
            members = waiting[: group.loader_batches]
            examples = [(member, row) for member in members for row in range(rows[member])]
            found.append((examples[group.start : group.stop], group.weight))
            if group.stop == len(examples):
                waiting = waiting[group.loader_batches :]
        assert not waiting
    assert not waiting
    return found


def check(rows, layout):
    found = computed(rows, layout)
    everything = [example for examples, _ in found for example in examples]
    assert everything == [(number, row) for number, count in enumerate(rows) for row in range(count)]
    for examples, weight in found:
        # Each loader batch counts the same in the window, and each of its examples the same in it.
        each = {Fraction(1, rows[number]) for number, _ in examples}
        assert each == {Fraction(weight).limit_denominator(10**6) / len(examples)}
        is_gathered = len({number for number, _ in examples}) > 1
        assert len(examples) <= ((layout.largest if is_gathered else layout.split_above) or 10**9)


@given(rows=sizes, usual=st.integers(1, 12), largest=limits, at_least=st.integers(1, 2))
def test_every_example_is_computed_once_with_the_weight_of_accumulation(rows, usual, largest, at_least):
    for split_above in (None, largest):
        check(rows, plan_layout(len(rows), usual, largest=largest, split_above=split_above, at_least=at_least))


@pytest.mark.parametrize(
    ("name", "wrong", "layout"),
    [
        ("_whole", lambda number, rows: Group(number, 0, number * rows, 1.0), Layout(gathered=2)),
        ("_whole", lambda number, rows: Group(number, 0, rows, float(number)), Layout(gathered=2)),
        ("_parts", lambda rows, parts: [Group(1, 0, 2, 0.5), Group(1, 2, rows, 0.5)], Layout(parts=2)),
    ],
    ids=["the weight of one loader batch", "only the first one's examples", "equal weights of unequal parts"],
)
def test_a_wrong_micro_batch_is_found(name, wrong, layout, monkeypatch):
    monkeypatch.setattr(f"lightning_bsscale.theory.micro_batches.{name}", wrong)
    with pytest.raises(AssertionError):
        check([5, 5, 3], layout)


@pytest.mark.parametrize(
    ("loader_batches", "rows", "largest", "at_least", "made"),
    [
        (1, 8, None, 1, [8]),
        (1, 8, None, 2, [4, 4]),
        (1, 7, None, 2, [4, 3]),
        (1, 1, None, 2, [1]),
        (3, 8, None, 2, [8, 8, 8]),  # without a limit nothing is gathered
        (4, 8, 64, 1, [32]),
        (4, 8, 64, 2, [16, 16]),
        (5, 8, 64, 2, [24, 16]),
        (5, 8, 16, 1, [16, 16, 8]),
        (7, 8, 24, 1, [24, 24, 8]),
        (8, 8, 24, 1, [24, 24, 16]),
        (2, 8, 64, 2, [8, 8]),
        (2, 8, 3, 1, [3, 3, 2, 3, 3, 2]),  # split where the limit is below the loader batch
        (1, 8, 8, 2, [4, 4]),
    ],
)
def test_as_few_micro_batches_as_the_limits_allow(loader_batches, rows, largest, at_least, made):
    layout = plan_layout(loader_batches, rows, largest=largest, split_above=largest, at_least=at_least)
    assert [len(examples) for examples, _ in computed([rows] * loader_batches, layout)] == made


def test_a_loader_batch_of_another_size_is_not_gathered():
    found = computed([8, 8, 5, 8, 8, 16], Layout(gathered=4, largest=32))
    assert [(len(examples), weight) for examples, weight in found] == [(16, 2), (5, 1), (8, 1), (8, 1), (16, 1)]


def test_larger_loader_batches_than_usual_stay_below_the_limit():
    assert [len(examples) for examples, _ in computed([16] * 4, Layout(gathered=4, largest=32))] == [32, 32]
    assert [len(examples) for examples, _ in computed([33], Layout(gathered=4, largest=32))] == [33]
    assert [len(examples) for examples, _ in computed([33], Layout(largest=32, split_above=32))] == [17, 16]


@given(
    loader_batches=st.integers(1, 9),
    rows=st.integers(1, 40),
    limit=st.integers(1, 400),
    bounds=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    divides=st.booleans(),
)
def test_smaller_groups_have_the_same_rows_and_the_weight_of_each(loader_batches, rows, limit, bounds, divides):
    if loader_batches > 1:
        group = Group(loader_batches, 0, loader_batches * rows, float(loader_batches))
    else:
        start = int(min(bounds) * rows)
        stop = max(start + 1, int(max(bounds) * rows))
        group = Group(1, start, stop, (stop - start) / rows)
    parts = regroup(group, rows, limit, divides=divides)
    sizes = [part.stop - part.start for part in parts]
    assert sum(sizes) == group.stop - group.start
    assert all(part.weight == pytest.approx(size / rows) for part, size in zip(parts, sizes, strict=True))
    if loader_batches == 1:
        assert [part.start for part in parts] == [group.start + sum(sizes[:n]) for n in range(len(parts))]
        assert divides <= (max(sizes) <= limit)
        assert divides or parts == [group]
    else:
        assert sum(part.loader_batches for part in parts) == loader_batches
        assert max(sizes) <= max(limit, rows)
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= (rows if loader_batches > 1 else 1)


def test_the_next_size_is_at_least_half_and_at_last_one():
    for rows in range(2, 300):
        assert rows / 2 <= smaller_size(rows) < rows
    assert smaller_size(2) == 1
