"""Pictures of mixtures. Needs Matplotlib: ``pip install 'daskgmm[plot]'``.

Each takes an `ax` to draw on, or makes one, and returns it. None reads all rows of what
is lazy: some blocks of it, chosen at random, are read.
"""

from daskgmm.plotting.answers import plot_outliers, plot_responsibilities
from daskgmm.plotting.mixture import plot_mixture, plot_pairs
from daskgmm.plotting.training import plot_convergence, plot_criterion

__all__ = [
    "plot_convergence",
    "plot_criterion",
    "plot_mixture",
    "plot_outliers",
    "plot_pairs",
    "plot_responsibilities",
]
