"""What Lightning says is suppressed, what others say is not, and everything is put back."""

import contextlib
import logging
import warnings

import pytest

from lightning_bsscale.callbacks.output.quiet import quiet


def test_quiet_puts_levels_and_filters_back(monkeypatch):
    logger = logging.getLogger("lightning.pytorch")
    monkeypatch.setattr(logger, "level", logging.WARNING)  # whatever the demos before this one left
    before = logger.level, list(warnings.filters)
    with quiet():
        assert logger.level == logging.ERROR
    assert (logger.level, list(warnings.filters)) == before
    with contextlib.suppress(KeyError), quiet():
        raise KeyError
    assert (logger.level, list(warnings.filters)) == before


@pytest.mark.parametrize(("module", "is_heard"), [("lightning.pytorch.loops", False), ("lightning_bsscale.demo", True)])
def test_only_lightnings_warnings_are_suppressed(module, is_heard):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with quiet():
            warnings.warn_explicit("mind this", UserWarning, "file.py", 1, module=module)
    assert bool(heard) is is_heard
