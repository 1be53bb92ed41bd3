"""Asking for the end of training, and taking that back."""

import lightning.pytorch as pl
import pytest

from lightning_bsscale.callbacks.trainer.stop import StopRequest
from tests.helpers.training import QUIET


@pytest.mark.parametrize("asks", [0, 1, 2])
@pytest.mark.parametrize("was_asked", [False, True])
def test_what_another_asked_for_before_stays(was_asked, asks):
    trainer, request = pl.Trainer(**QUIET), StopRequest()
    trainer.should_stop = was_asked
    for _ in range(asks):
        request.ask(trainer)
    assert trainer.should_stop is (was_asked or asks > 0)
    request.withdraw(trainer)
    assert trainer.should_stop is was_asked
    trainer.should_stop = True
    request.withdraw(trainer)
    assert trainer.should_stop  # a second call takes nothing back
