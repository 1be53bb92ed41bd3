"""Pictures for notebooks, scripts and loggers: a module each (matplotlib is imported inside functions).

Other folders import from here; the modules of this folder import each other.
"""

from lightning_bsscale.figures.branches_picture import plot_branches
from lightning_bsscale.figures.comparison import plot_comparison
from lightning_bsscale.figures.drawn_run import DrawnRun
from lightning_bsscale.figures.layers_picture import plot_layers
from lightning_bsscale.figures.plan_picture import plot_plan
from lightning_bsscale.figures.run_picture import plot_noise_scale, plot_run

__all__ = [
    "DrawnRun",
    "plot_branches",
    "plot_comparison",
    "plot_layers",
    "plot_noise_scale",
    "plot_plan",
    "plot_run",
]
