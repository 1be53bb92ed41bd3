"""The run as a checkpoint holds it."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_bsscale.callbacks.state.checkpoint import (
    STATE_SCHEMA,
    SavedRun,
    read_checkpoint,
    restore_policy,
    state_of_policy,
    to_checkpoint,
)
from lightning_bsscale.theory.losses import Losses
from lightning_bsscale.theory.pace import Pace
from tests.helpers.simulated_run import Host, Program

PROGRAM = Program(batches=(2, 3), accumulate=2)


class Keeps:
    """A policy that has a state."""

    def __init__(self, kept=None):
        self.kept = kept

    def state_dict(self):
        return {"kept": self.kept}

    def load_state_dict(self, state):
        self.kept = state["kept"]


class Other(Keeps):
    pass


def saved_run(state, policy=None, journal=None):
    pace = Pace(windows=3, seconds=1.5)
    return SavedRun(run=state, policy=state_of_policy(policy), journal=journal, pace=pace, losses=Losses())


@pytest.mark.parametrize("loader_batches", range(len(PROGRAM.places()) + 1))
def test_a_file_gives_the_same_run_again(loader_batches, tmp_path):
    state = Host.begin(PROGRAM).train(PROGRAM.places()[:loader_batches]).snapshot()
    saved = saved_run(state, journal={"id": "a"})
    torch.save(to_checkpoint(saved), tmp_path / "state.ckpt")
    checkpoint = torch.load(tmp_path / "state.ckpt", weights_only=True)
    assert read_checkpoint(checkpoint, "BatchSizeScaler") == saved


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 1}, "state of schema 1; this version reads 2"),
        ({"schema": None}, "state of schema None"),
        ({"run": None}, "damaged Test state: must be an object"),
        ({"run": {}}, "damaged Test state: lacks batch"),
        ({"run": {"windows": 0.5}}, "damaged Test state: windows must be a whole number"),
        ({"run": {"position": {"origin": [0]}}}, "damaged Test state: position.origin must be a list of 2"),
    ],
)
def test_what_cannot_be_read_is_refused(change, words):
    checkpoint = to_checkpoint(saved_run(Host.begin(PROGRAM).state))
    assert checkpoint["schema"] == STATE_SCHEMA
    ((name, value),) = change.items()
    if isinstance(value, dict) and value:
        ((field, inner),) = value.items()
        old = checkpoint["run"][field]
        value = {**checkpoint["run"], field: {**old, **inner} if isinstance(inner, dict) else inner}
    with pytest.raises(MisconfigurationException) as caught:
        read_checkpoint({**checkpoint, name: value}, "Test")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("stored", "loaded", "kept"),
    [
        *((Keeps(7), Keeps(), 7), (Other(7), Keeps(), None), (None, Keeps(), None), (Keeps(7), None, None)),
        (Keeps(None), Keeps(3), None),
    ],
)
def test_a_policys_own_state_goes_to_one_of_its_class(stored, loaded, kept):
    restore_policy(loaded, to_checkpoint(saved_run(Host.begin(PROGRAM).state, stored))["policy"])
    assert getattr(loaded, "kept", None) == kept
