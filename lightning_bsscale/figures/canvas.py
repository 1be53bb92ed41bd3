"""Where figures are shown, and how many are kept (matplotlib is imported inside the function)."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, cast
from weakref import ref

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["new_figure", "one_panel"]

MOST_OPEN = 10  # pyplot warns about more than 20, and the user may have some too
_open_figures: deque[ref[Figure]] = deque()


def new_figure(width: float, height: float, *, is_shown: bool = True) -> Figure:
    """Create an empty figure.

    Args:
        width: in inches
        height: in inches
        is_shown: whether a notebook and ``plt.show()`` show it

    Returns:
        The figure.

    Raises:
        ModuleNotFoundError: If matplotlib is missing.
    """
    # Notebooks and plt.show() show pyplot's figures, but pyplot keeps each of them until it is closed. A notebook
    # closes them at the end of the cell, and in an interactive session the user does. A script that plots after each
    # epoch closes none, so the oldest of ours are closed there; a closed figure can still be saved.
    try:
        from matplotlib import is_interactive
        from matplotlib import pyplot as plt
        from matplotlib.figure import Figure as NewFigure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Plots need matplotlib: pip install 'lightning-bsscale[plot]'.") from error
    size: dict[str, Any] = {"figsize": (width, height), "layout": "constrained"}
    figure: Figure | None = None
    if is_shown and threading.current_thread() is threading.main_thread():  # other threads cannot open a window
        # Without a display, MPLBACKEND=TkAgg is an ImportError: such a figure can still be saved.
        with contextlib.suppress(ImportError):
            figure = plt.figure(**size)
    if figure is None:
        return NewFigure(**size)
    if not is_interactive():  # checked here, because a notebook's backend is set when it creates its first figure
        _open_figures.append(ref(figure))
        while len(_open_figures) > MOST_OPEN:
            oldest = _open_figures.popleft()()
            if oldest is not None:
                plt.close(oldest)
    return figure


def one_panel(ax: Axes | None, width: float = 8, height: float = 3.6) -> tuple[Figure, Axes]:
    """Return given axes with their figure, or those of a new figure."""
    if ax is not None:
        return cast("Figure", ax.figure), ax
    figure = new_figure(width, height)
    return figure, figure.subplots()
