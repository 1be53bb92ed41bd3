"""Return a callback's results from spawned workers to the caller.

Under `ddp_spawn`, `ddp_fork` and `ddp_notebook` each process trains with a copy of the callback, and the user holds the
original. From the first process Lightning returns weights, metrics and `trainer.state`, through a pipe that the parent
reads only after its children have ended. A pipe holds 64 KiB, and a process that writes more would wait forever. The
outcome is therefore written to a file, like Lightning's weights, and only its path travels with `trainer.state`.

The file is written when Lightning puts the state into the pipe, which is the last action of the process: if training
fails before, there is nothing to clean up. The parent deletes the file as soon as it has read it, or when it learns
that another child has failed. An outcome that does not arrive is noted, so that the callback says so, and shows nothing
of an earlier training in its place.
"""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import active_children
from multiprocessing.reduction import ForkingPickler
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from lightning_bsscale.theory.losses import Losses
from lightning_bsscale.theory.profile import RunContext
from lightning_bsscale.theory.state import RunState
from lightning_bsscale.theory.stored import as_plain, from_plain

_channels: WeakValueDictionary[str, ResultChannel] = WeakValueDictionary()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A callback's results while no training is in progress.

    Attributes:
        run: the run as far as it is known, or None
        journal_path: the journal's file, or None
        context: what else is known of the run; None if this process has only its state
        losses: what the run logged
    """

    run: RunState | None = None
    journal_path: str | None = None
    context: RunContext | None = None
    losses: Losses = field(default_factory=Losses)


class ResultChannel:
    """Carries a callback's outcome from the process that trains to the one that called `fit`.

    Args:
        outcome: the received outcome of the original, for a copy

    Attributes:
        outcome: the received outcome, or None
        is_lost: whether the last training ran in other processes and its outcome did not arrive
    """

    def __init__(self, outcome: Outcome | None = None) -> None:
        self.outcome, self.is_lost = outcome, False
        self._process = os.getpid()
        self._name = uuid.uuid4().hex
        _channels[self._name] = self

    def send(self, trainer: pl.Trainer, outcome: Outcome) -> None:
        """Attach the outcome to the state that Lightning returns, if this is a copy in another process."""
        if os.getpid() != self._process:
            vars(trainer.state)[f"bsscale_{self._name}"] = _SentOutcome(self._name, outcome, trainer.default_root_dir)

    def receive(self, outcome: Outcome | None) -> None:
        """Take the outcome of the last training; None if it was lost. It replaces that of any training before."""
        self.outcome, self.is_lost = outcome, outcome is None

    def is_lost_with(self, trainer: pl.Trainer, exception: BaseException) -> bool:
        """Return whether this process only started those that trained, and an exception ended them, or this one."""
        if os.getpid() != self._process or trainer.strategy.launcher is None:
            return False
        ended_here = isinstance(exception, KeyboardInterrupt) and bool(active_children())
        return ended_here or isinstance(exception, (ProcessRaisedException, ProcessExitedException))

    def clean_up(self, trainer: pl.Trainer) -> None:
        """Delete the file of a child if another child failed, so that nobody will read it."""
        for path in _possible_paths(self._name, trainer.default_root_dir):
            _delete(path)
            if active_children():
                # After Ctrl-C in this process alone, the children keep training until this process ends and joins them.
                Finalize(None, _delete, (path,), exitpriority=-1)  # below 0: after they have been joined

    def for_copy(self) -> ResultChannel:
        """Return a copy's channel: a new one, or in a worker, which may train for the original, this one."""
        if os.getpid() == self._process:
            channel = ResultChannel(self.outcome)
            channel.is_lost = self.is_lost
            return channel
        _channels[self._name] = self
        return self


def without_module(callback: pl.Callback) -> dict[str, Any]:
    """Return a callback's attributes without the module's `log` and `log_dict`, which Lightning puts there."""
    return {name: value for name, value in vars(callback).items() if name not in ("log", "log_dict")}


class _SentOutcome:
    """An outcome in `trainer.state`, which only `multiprocessing` writes to a file; other pickles are empty."""

    def __init__(self, name: str, outcome: Outcome, default_root_dir: str) -> None:
        self.name, self.outcome, self.default_root_dir = name, outcome, default_root_dir

    def __deepcopy__(self, memo: dict[int, Any]) -> _SentOutcome:
        return self  # Lightning copies the state before sending it

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


def _write_outcome(sent: _SentOutcome) -> tuple[Any, tuple[Any, ...]]:
    # An exception here would lose the weights of the whole training.
    problem: Exception | None = None
    for path in _possible_paths(sent.name, sent.default_root_dir):
        try:
            _write(path, json.dumps(as_plain(sent.outcome)))
            return _read_outcome, (sent.name, str(path))
        except (OSError, TypeError, ValueError) as error:
            problem = error
    rank_zero_warn(
        f"bsscale: the callback's results could not be written for the process that called fit ({problem}), so the "
        "callback has no results there. The checkpoints contain them, and with record=True the journal. Free some "
        "space in the folder for temporary files (TMPDIR).",
        category=UserWarning,
    )
    return _lose_outcome, (sent.name,)


ForkingPickler.register(_SentOutcome, _write_outcome)


def _read_outcome(name: str, path: str) -> None:
    """Read a child's outcome into the channel that expects it, and delete the file."""
    channel = _channels.get(name)
    try:
        if channel is not None:
            channel.receive(from_plain(Outcome, json.loads(Path(path).read_text(encoding="utf-8"))))
    except (OSError, ValueError) as problem:  # must not lose the weights, which are read next
        _lose_outcome(name)
        rank_zero_warn(
            f"bsscale: the callback's results could not be read back ({problem}), so the callback has no results. The "
            "checkpoints contain them, and with record=True the journal.",
            category=UserWarning,
        )
    finally:
        _delete(path)


def _lose_outcome(name: str) -> None:
    """Note that the outcome did not arrive in the channel that expects it."""
    channel = _channels.get(name)
    if channel is not None:
        channel.receive(None)


def _possible_paths(name: str, default_root_dir: str) -> list[Path]:
    folders = [default_root_dir]
    with suppress(OSError):  # no folder for temporary files
        folders.insert(0, tempfile.gettempdir())  # where Lightning puts the weights
    return [Path(folder, f"bsscale-{name}.json") for folder in folders]


def _write(path: Path, text: str) -> None:
    _delete(path)  # left by a killed training with this callback
    try:
        # Readable by this user only; O_EXCL and the random name exclude a file of someone else.
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        _delete(path)
        raise


def _delete(path: Path | str) -> None:
    with suppress(OSError):
        os.unlink(path)
