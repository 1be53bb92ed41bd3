"""Which micro-batches a window is computed in: every example once, with the weight that accumulation gives it."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_bsscale.theory.micro_batches import Group, Layout, due_groups, plan_layout

sizes = st.lists(st.integers(1, 12), min_size=1, max_size=12)
limits = st.none() | st.integers(1, 40)


def computed(rows, layout):
    """The window's micro-batches, each as the (loader batch, example) pairs it holds, with its weight."""
    held, found = [], []
    for number, of_this in enumerate(rows):
        groups, is_held = due_groups([rows[k] for k in held], of_this, layout, is_last=number + 1 == len(rows))
        waiting = [*held, number]
        for group in groups:
            members = waiting[: group.loader_batches]
            examples = [(member, row) for member in members for row in range(rows[member])]
            found.append((examples[group.start : group.stop], group.weight))
            if group.stop == len(examples):
                waiting = waiting[group.loader_batches :]
        assert is_held == (waiting == [*held, number] and not groups) or waiting == [number]
        held = waiting
    assert not held
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
    assert [(len(examples), weight) for examples, weight in found] == [(16, 2), (5, 1), (16, 2), (16, 1)]


def test_larger_loader_batches_than_usual_stay_below_the_limit():
    assert [len(examples) for examples, _ in computed([16] * 4, Layout(gathered=4, largest=32))] == [32, 32]
    assert [len(examples) for examples, _ in computed([33], Layout(gathered=4, largest=32))] == [33]
    assert [len(examples) for examples, _ in computed([33], Layout(largest=32, split_above=32))] == [17, 16]
