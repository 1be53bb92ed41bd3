"""Return a callback's results from spawned workers to the caller.

Under `ddp_spawn`, `ddp_fork` and `ddp_notebook` each process trains with a copy of the callback, and the user holds the
one that nobody trained with. Of what the first process made, Lightning sends back weights, metrics and `trainer.state`,
through a pipe that the parent reads only after its children have ended. A pipe holds 64 KiB, and whoever writes more
waits for a reader that waits for the writer. So the outcome goes into a file, as Lightning's weights do, and only its
path travels with `trainer.state`.

The file is written when Lightning puts the state into the pipe, which is the last thing that the process does: if
training fails before that, there is nothing to clean up. The parent deletes it as soon as it has read it, or when it
learns that another child has failed.
"""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import active_children
from multiprocessing.reduction import ForkingPickler
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from lightning_bsscale.theory.state import RunState
from lightning_bsscale.theory.stored import as_plain, from_plain

_waiting: WeakValueDictionary[str, WayBack] = WeakValueDictionary()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a callback shows when no training is in progress.

    Attributes:
        run: the run as far as it is known, or None
        journal_path: the file that it recorded to, or None
    """

    run: RunState | None = None
    journal_path: str | None = None


class WayBack:
    """A callback's, from wherever it is trained with to where it is held.

    Attributes:
        outcome: what came back; None before
    """

    def __init__(self, outcome: Outcome | None = None) -> None:
        """Begins to wait.

        Args:
            outcome: what a copy was made with
        """
        self.outcome = outcome
        self._process = os.getpid()
        self._name = uuid.uuid4().hex
        _waiting[self._name] = self

    def send(self, trainer: pl.Trainer, outcome: Outcome) -> None:
        """Sends, where this is a copy in another process; elsewhere there is nothing to do.

        Args:
            trainer: whose state Lightning sends back when training has ended
            outcome: what the callback has to show
        """
        if os.getpid() != self._process:
            vars(trainer.state)[f"bsscale_{self._name}"] = _Letter(self._name, outcome, trainer.default_root_dir)

    def clean_up(self, trainer: pl.Trainer) -> None:
        """Delete what a child wrote before another one failed, so that nobody will read it.

        Args:
            trainer: whose fit has failed
        """
        for path in _possible_paths(self._name, trainer.default_root_dir):
            _delete(path)
            if active_children():
                # After Ctrl-C in this process alone they train on, and this process waits for them when it ends.
                Finalize(None, _delete, (path,), exitpriority=-1)  # below 0: when they have been joined

    def arrived(self) -> WayBack:
        """A copy of the callback was made: what is sent to the first one is not the copy's.

        Returns:
            a way of the copy's own, or in another process, which may train for this one, the same
        """
        if os.getpid() == self._process:
            return WayBack(self.outcome)
        _waiting[self._name] = self
        return self


def without_module(callback: pl.Callback) -> dict[str, Any]:
    """What a callback holds, without what Lightning put there: the module's own `log` and `log_dict`.

    Args:
        callback: one that has trained

    Returns:
        its attributes
    """
    return {name: value for name, value in vars(callback).items() if name not in ("log", "log_dict")}


class _Letter:
    """An outcome in `trainer.state`. Only `multiprocessing` writes it to a file: any other copy or pickle is empty."""

    def __init__(self, name: str, outcome: Outcome, default_root_dir: str) -> None:
        self.name, self.outcome, self.default_root_dir = name, outcome, default_root_dir

    def __deepcopy__(self, memo: dict[int, Any]) -> _Letter:
        return self  # Lightning copies the state before it sends it

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


def _post(letter: _Letter) -> tuple[Any, tuple[Any, ...]]:
    # Nothing is raised here: Lightning would lose the weights of the whole training.
    problem: Exception | None = None
    for path in _possible_paths(letter.name, letter.default_root_dir):
        try:
            _write(path, json.dumps(as_plain(letter.outcome)))
            return _open, (letter.name, str(path))
        except (OSError, TypeError, ValueError) as error:
            problem = error
    rank_zero_warn(
        f"bsscale: what the callback measured and decided could not be written for the process that called fit "
        f"({problem}), so the callback shows nothing there. The checkpoints have it, and with record=True the journal. "
        "Make room in the folder for temporary files (TMPDIR).",
        category=UserWarning,
    )
    return type(None), ()


ForkingPickler.register(_Letter, _post)


def _open(name: str, path: str) -> None:
    """Read what a child has written, in the process whose callback waits for it, and delete the file."""
    way = _waiting.get(name)
    try:
        if way is not None:
            way.outcome = from_plain(Outcome, json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError) as problem:  # the weights, which are read next, must not be lost with it
        rank_zero_warn(
            f"bsscale: what the callback measured and decided could not be read back ({problem}), so the callback "
            "shows nothing. The checkpoints have it, and with record=True the journal.",
            category=UserWarning,
        )
    finally:
        _delete(path)


def _possible_paths(name: str, default_root_dir: str) -> list[Path]:
    folders = [default_root_dir]
    with suppress(OSError):  # where there is none
        folders.insert(0, tempfile.gettempdir())  # here Lightning puts the weights
    return [Path(folder, f"bsscale-{name}.json") for folder in folders]


def _write(path: Path, text: str) -> None:
    _delete(path)  # of a training with this callback that was killed
    try:
        # Only this user may read it, and nobody else can have made it: the name is random.
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        _delete(path)
        raise


def _delete(path: Path | str) -> None:
    with suppress(OSError):
        os.unlink(path)
