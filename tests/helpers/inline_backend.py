"""A backend for matplotlib that does what IPython's inline one does: a cell's figures are shown at its end, and closed.

Select it by ``plt.switch_backend("module://tests.helpers.inline_backend")``; `end_of_cell` is what IPython calls.
"""

from matplotlib import interactive
from matplotlib._pylab_helpers import Gcf
from matplotlib.backend_bases import FigureManagerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg

shown: list[int] = []


class FigureManager(FigureManagerBase):
    @classmethod
    def pyplot_show(cls, *, block=None):
        shown.extend(len(manager.canvas.figure.axes) for manager in Gcf.get_all_fig_managers())


class FigureCanvas(FigureCanvasAgg):
    manager_class = FigureManager

    def __init__(self, figure=None):
        super().__init__(figure)
        interactive(True)  # inline says so when its module is loaded, with the first figure


def end_of_cell():
    """The axes of each figure that this cell shows."""
    shown.clear()
    FigureManager.pyplot_show()
    Gcf.destroy_all()
    return list(shown)
