"""Decisions and measured windows as tables: pandas only where it is."""

import sys
import types

import pytest

from lightning_bsscale import BatchSizeScaler
from lightning_bsscale.record_lists import DecisionList
from tests.helpers.training import Regression, fit, regression_loader, scripted


@pytest.fixture(scope="module")
def scaler():
    scaler = scripted(4, 8, 8, 16, measure_every=1, split=True)
    fit(Regression(), regression_loader(200), [scaler], max_epochs=1)
    return scaler


class Frame:
    """Takes rows as pandas does."""

    def __init__(self, rows):
        self.columns = list(dict.fromkeys(name for row in rows for name in row))
        self.rows = rows


@pytest.fixture
def pandas(monkeypatch):
    """A stand-in where pandas is not installed, and pandas itself where it is."""
    try:
        import pandas as real
    except ModuleNotFoundError:
        monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=Frame))
        return lambda frame: frame.rows
    return lambda frame: frame.astype(object).where(real.notna(frame), None).to_dict("records")


def test_decisions_are_rows(scaler, pandas):
    assert len(scaler.decisions) > 3
    frame = scaler.decisions.to_dataframe()
    rows = pandas(frame)
    assert len(rows) == len(scaler.decisions)
    for row, record in zip(rows, scaler.decisions, strict=True):
        assert (row["old_batch_size"], row["batch_size"]) == (record.situation.batch_size, record.batch_size)
        assert row["is_change"] == record.is_change
        assert row["examples_seen"] == record.situation.examples_seen
        assert row["reason"] == "as scripted"
        assert row["bound"] is None
        noise = record.situation.noise
        assert row["noise_scale"] == (None if noise is None else noise.noise_scale)


def test_measured_windows_are_rows(scaler, pandas):
    rows = pandas(scaler.history.to_dataframe())
    assert [row["trace"] for row in rows] == [made.trace for made in scaler.history]
    assert [row["lr_scale"] for row in rows] == [made.lr_scale for made in scaler.history]
    last = scaler.history[-1].noise
    assert rows[-1]["noise_scale_low"] == last.low
    assert rows[-1]["resolved"] == last.resolved


def test_without_pandas_the_error_says_what_to_install(scaler, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match=r"to_dataframe\(\) needs pandas: pip install pandas"):
        scaler.decisions.to_dataframe()


def test_they_are_lists(scaler):
    assert isinstance(scaler.decisions, list)
    assert scaler.decisions == list(scaler._run.decisions.records)
    assert BatchSizeScaler().decisions == DecisionList() == []
