"""Give the picture of a run to Lightning's loggers, whatever they are, without importing any of them."""

from __future__ import annotations

import importlib.util
import inspect
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_bsscale.callbacks.checks.options import is_remote
from lightning_bsscale.journal_file import open_new

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["log_figure", "warn_without_matplotlib"]

KEY = "run"
FILE = "bsscale.png"
DPI = 150


def _has_matplotlib() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def warn_without_matplotlib() -> None:
    """Warn before training that there will be no picture at its end."""
    if not _has_matplotlib():
        rank_zero_warn(
            "bsscale: log_figure=True needs matplotlib, which is not installed: pip install 'lightning-bsscale[plot]'. "
            "Training is not affected; installing it before training ends is early enough.",
            category=UserWarning,
        )


def log_figure(trainer: pl.Trainer, prefix: str, step: int, draw: Callable[[], Figure]) -> None:
    """Draw the picture and give it to every logger; a logger that takes none has it in its folder, as a file.

    Whatever goes wrong is one warning, since a picture is no reason to lose a training.

    Args:
        trainer: whose loggers take it
        prefix: goes before the key
        step: the loggers' step
        draw: draws the picture
    """
    if not trainer.is_global_zero or not _has_matplotlib():  # which the warning before training has said
        return
    try:
        figure = draw()
    except Exception as error:
        _warn([f"it could not be drawn: {_words(error)}"])
        return
    problems = []
    takers: list[Any] = list(trainer.loggers) or [None]
    for logger in takers:
        try:
            _give(logger, figure, prefix + KEY, step, trainer.default_root_dir)
        except Exception as error:
            to = "a file" if logger is None else type(logger).__name__
            problems.append(f"{to}: {_words(error)}")
    if problems:
        _warn(problems)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _warn(problems: list[str]) -> None:
    try:
        rank_zero_warn(
            f"bsscale: the picture of the run was not logged ({'; '.join(problems)}). Nothing else is affected, and "
            "plot() draws it again.",
            category=UserWarning,
        )
    except UserWarning as warning:  # where warnings are errors
        rank_zero_info(str(warning))


def _give(logger: Any, figure: Figure, key: str, step: int, folder: str) -> None:
    experiment: Any = getattr(logger, "experiment", None)
    if callable(getattr(logger, "log_image", None)):  # Weights & Biases
        logger.log_image(key, [figure], step=step)
    elif callable(getattr(experiment, "add_figure", None)):  # TensorBoard
        experiment.add_figure(key, figure, global_step=step)
    elif not callable(getattr(experiment, "log_figure", None)):
        _save(figure, Path(getattr(logger, "log_dir", None) or folder))
    elif "run_id" in inspect.signature(experiment.log_figure).parameters:  # MLflow
        experiment.log_figure(logger.run_id, figure, f"{key}.png")
    else:  # Comet
        experiment.log_figure(figure_name=key, figure=figure, step=step)


def _save(figure: Figure, folder: Path) -> None:
    if is_remote(str(folder)):
        raise ValueError(f"{folder} is not on this machine")
    file, path = open_new(folder / FILE)
    try:
        with io.BufferedWriter(file) as whole:  # the file itself may take a part of what it is given
            figure.savefig(whole, format="png", dpi=DPI)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    rank_zero_info(f"bsscale: the picture of the run is {path}.")
