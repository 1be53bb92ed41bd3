"""The examples of the branches: the training data in an order that depends on the seed alone."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_bsscale.callbacks.trainer.batches import rows_of
from lightning_bsscale.critical_batch.probe import ProbeError

__all__ = ["TrainingData", "fingerprint"]


class TrainingData:
    """The training data in an order that depends on the seed alone, part after part."""

    def __init__(self, loader: Any, seed: int) -> None:
        self._loader, self._seed, self._next, self._rows = loader, seed, 0, 0
        self._batches: Iterator[Any] = iter(())

    def first(self) -> Any:
        """Return the first loader batch, and begin anew."""
        with self._seeded(0):
            batch = next(iter(self._loader), None)
        if batch is None:
            raise ProbeError("the training loader yields nothing: pass one with batches")
        self._rows = rows_of(batch)
        return batch

    def part(self, offset: int, length: int) -> list[Any]:
        """Return the loader batches of an offset; the ones before it are read and dropped."""
        if offset < self._next:
            self._next, self._batches = 0, iter(())
        batches: list[Any] = []
        while self._next <= offset:
            with self._seeded(1 + self._next):
                batches = [self._take() for _ in range(length)]
            self._next += 1
        return batches

    def _take(self) -> Any:
        misses = 0
        while misses < 2:
            for batch in self._batches:
                if rows_of(batch) == self._rows:
                    return batch
            self._batches, misses = iter(self._loader), misses + 1
        raise ProbeError(
            f"the training loader yields no second batch of {self._rows} examples, the size of its first: pass one "
            "that can be read again and has more batches of that size"
        )

    @contextmanager
    def _seeded(self, number: int) -> Iterator[None]:
        with isolate_rng():
            mixed = (1_000_003 * self._seed + number) % 2**31
            torch.manual_seed(mixed)
            random.seed(mixed)
            np.random.seed(mixed)
            generator = getattr(self._loader, "generator", None) if number <= 1 else None
            if isinstance(generator, torch.Generator):
                generator.manual_seed(mixed)
            yield


def fingerprint(batch: Any) -> str:
    """Return a short hash of a loader batch."""
    buffer = io.BytesIO()
    torch.save(batch, buffer)
    return hashlib.sha256(buffer.getvalue()).hexdigest()[:16]
