"""Joining and splitting batches of any structure."""

from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from lightning_bsscale.callbacks.trainer.batches import CannotRegroup, join, part_of, rows_of


class Pair(NamedTuple):
    x: Any
    y: Any


@dataclass(frozen=True)
class Record:
    x: torch.Tensor
    name: str = "fixed"
    extra: dict = field(default_factory=dict, init=False)


class Encoding(UserDict):
    """Like a tokenizer's output: a mapping that is no dict, with something besides."""

    def __init__(self, data=None, encodings=None):
        super().__init__(data)
        self.encodings = encodings


class ReadOnly(Mapping):
    def __init__(self, data):
        self._data = dict(data)

    def __getitem__(self, key):
        return self._data[key]

    def __iter__(self):
        return iter(self._data)

    def __len__(self):
        return len(self._data)


class Graphs:
    """A batch of graphs, by the calls that PyTorch Geometric's has."""

    def __init__(self, graphs):
        self.graphs = list(graphs)

    @classmethod
    def from_data_list(cls, graphs):
        return cls(graphs)

    def to_data_list(self):
        return self.graphs

    @property
    def num_graphs(self):
        return len(self.graphs)


def record(x):
    made = Record(x)
    made.extra["y"] = x + 1
    return made


MAKERS = {
    "tensor": lambda x: x,
    "list": lambda x: [x, x[:, 0]],
    "tuple": lambda x: (x, (x[:, 0], x.long())),
    "named tuple": lambda x: Pair(x, {"z": x}),
    "dict": lambda x: {"x": x, "mode": "train", "k": 3, "none": None},
    "ordered dict": lambda x: OrderedDict(b=x, a=[x]),
    "default dict": lambda x: defaultdict(list, x=x),
    "mapping": lambda x: Encoding({"ids": x, "mask": x > 0}, encodings=["kept"]),
    "read-only mapping": lambda x: ReadOnly({"x": x}),
    "data class": record,
    "texts": lambda x: (x, [f"text {float(v):.3f}" for v in x[:, 0]]),
    "texts in a tuple": lambda x: {"x": x, "t": tuple(str(float(v)) for v in x[:, 0])},
    "dicts by example": lambda x: [x, [{"id": float(v)} for v in x[:, 0]]],
    "array": lambda x: {"x": x, "a": x.numpy()},
    "sparse": lambda x: x.to_sparse(),
}


def same(left, right):
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        torch.testing.assert_close(left.to_dense(), right.to_dense(), rtol=0, atol=0)
    elif isinstance(left, np.ndarray):
        assert np.array_equal(left, right)
    elif isinstance(left, Mapping):
        assert list(left) == list(right)
        for key in left:
            same(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            same(one, other)
    elif isinstance(left, Record):
        same(left.x, right.x)
        same(left.extra, right.extra)
    else:
        assert left == right


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("sizes", [(1,), (3, 3), (2, 1, 4)], ids=str)
def test_joined_batches_are_the_batch_of_all_examples(kind, sizes):
    x = torch.randn(sum(sizes), 3)
    whole = MAKERS[kind](x)
    assert rows_of(whole) == sum(sizes)
    batches = [MAKERS[kind](piece) for piece in x.split(sizes)]
    same(join(batches), whole)
    same(join(batches[:1]), batches[0])


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind != "sparse"])
@pytest.mark.parametrize(("start", "stop"), [(0, 2), (2, 5), (4, 5)])
def test_a_part_is_the_batch_of_its_examples(kind, start, stop):
    x = torch.randn(5, 3)
    batch = MAKERS[kind](x)
    same(part_of(batch, start, stop), MAKERS[kind](x[start:stop]))
    same(batch, MAKERS[kind](x))  # and the batch is as it was


def test_graphs_are_joined_and_split_by_their_own_calls():
    batch = Graphs("abcde")
    assert rows_of(batch) == rows_of([batch, 3][0]) == 5
    assert part_of(batch, 1, 3).graphs == ["b", "c"]
    assert join([Graphs("ab"), Graphs("c")]).graphs == ["a", "b", "c"]


def test_what_has_no_examples_is_in_every_part():
    batch = {"x": torch.ones(4, 2), "temperature": torch.tensor(0.5), "step": 3}
    part = part_of(batch, 2, 4)
    assert (float(part["temperature"]), part["step"], len(part["x"])) == (0.5, 3, 2)


def test_a_mapping_keeps_what_it_holds_besides():
    batch = MAKERS["mapping"](torch.ones(4, 2))
    assert part_of(batch, 0, 1).encodings == join([batch, batch]).encodings == ["kept"]


ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([{"x": ONES}, {"x": torch.ones(2, 4)}], ["batch['x']", "shape", "(3,), (4,)"]),
        ([{"x": ONES, "t": torch.tensor(1.0)}] * 2, ["batch['t']", "single number"]),
        ([(ONES, 1), (ONES, 2)], ["batch[1]", "int", "not the same"]),
        ([(ONES, torch.ones(7, 2))] * 2, ["batch[1]", "7 rows", "2 examples"]),
        ([{"x": ONES}, {"y": ONES}], ["other keys"]),
        ([[ONES], [ONES, ONES]], ["length"]),
        ([(ONES,), [ONES]], ["type", "list, tuple"]),
        ([(ONES, object()), (ONES, object())], ["object"]),
        ([ONES, torch.ones(2, 3, device="meta")], ["concatenated"]),
    ],
    ids=["padding", "scalar", "value", "rows", "keys", "length", "type", "object", "device"],
)
def test_what_cannot_be_joined_is_named(batches, words):
    with pytest.raises(CannotRegroup) as found:
        join(batches)
    assert all(word in str(found.value) for word in words), str(found.value)


@pytest.mark.parametrize("batch", [(ONES, torch.ones(7, 2)), torch.eye(3).to_sparse()], ids=["rows", "sparse"])
def test_what_cannot_be_split_is_named(batch):
    with pytest.raises(CannotRegroup, match=r"rows|cannot be split"):
        part_of(batch, 0, 1)


@pytest.mark.parametrize("batch", [None, "text", 3, {}, [], torch.tensor(1.0), np.float64(2.0)])
def test_a_batch_without_a_dimension_of_examples_is_one_row(batch):
    assert rows_of(batch) == 1
