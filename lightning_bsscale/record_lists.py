"""Decisions and measured windows to be read as lists of records, and as tables for pandas."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.history import History
from lightning_bsscale.theory.records import DecisionRecord, Measurement

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DecisionList", "MeasurementList", "decision_row"]


class DecisionList(list[DecisionRecord]):
    """The decisions of a run, in order."""

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row for each decision; needs pandas.

        Returns:
            Position, old and new batch, noise scale with its two-sided interval, the bound that decided with its
            one-sided confidence, target, needed number, code, reason, and the learning-rate factor from then on.
        """
        return _dataframe(map(decision_row, self))


class MeasurementList(History):
    """The measured windows of a run, in order: read as a list is, and not to be changed."""

    __slots__ = ()

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row for each measured window; needs pandas.

        Returns:
            Position, batch, the window's own estimates of tr Σ and ‖G‖², the averaged noise scale after it with its
            two-sided interval, and the learning rate.
        """
        return _dataframe(map(_measurement_row, self))


def decision_row(record: DecisionRecord) -> dict[str, Any]:
    """Return the fields of a decision that a table shows, by name."""
    decision = record.decision
    return {
        "examples_seen": record.situation.examples_seen,
        "optimizer_steps": record.situation.optimizer_steps,
        "old_batch_size": record.situation.batch_size,
        "batch_size": record.batch_size,
        "is_change": record.is_change,
        **_noise(record.situation.noise),
        "bound": decision.bound,
        "confidence": decision.confidence,
        "target": decision.target,
        "needed": decision.needed,
        "code": decision.code,
        "reason": decision.reason,
        "lr_scale": record.lr_scale,
        "lr_rule": record.lr_rule,
    }


def _measurement_row(made: Measurement) -> dict[str, Any]:
    return {
        "examples_seen": made.examples_seen,
        "optimizer_steps": made.optimizer_steps,
        "batch_size": made.batch_size,
        "accumulate_grad_batches": made.accumulate_grad_batches,
        "window_examples": made.window_examples,
        "trace": made.trace,
        "grad_sq": made.grad_sq,
        **_noise(made.noise),
        "lr": made.lr,
        "lr_scale": made.lr_scale,
    }


def _noise(noise: NoiseScale | None) -> dict[str, Any]:
    return {
        "noise_scale": None if noise is None else noise.noise_scale,
        "noise_scale_low": None if noise is None else noise.low,
        "noise_scale_high": None if noise is None else noise.high,
        "resolved": noise is not None and noise.resolved,
        "effective_windows": None if noise is None else noise.effective_windows,
    }


def _dataframe(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "to_dataframe() needs pandas: pip install pandas. Without it, the records are read as a list."
        ) from error
    return pd.DataFrame(list(rows))
