"""How pictures look: colours that all can tell apart, on light ground and on dark."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from daskgmm.display.curves import COLOURS
from daskgmm.errors import ParameterError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

_LINES: Final = (
    "-",
    "--",
    "-.",
    ":",
    (0, (6, 1)),
    (0, (1, 2)),
    (0, (4, 1, 1, 1, 1, 1)),
    (0, (8, 3)),
)
"""Where colours come again, lines do not."""
_MARKERS: Final = "os^Dvp*X"
OUTLIER: Final = COLOURS[1]
ROWS: Final = "#8A8A8A"
"""Of rows that nothing is said of: seen on both grounds."""


def strokes(n: int) -> list[tuple[str, Any]]:
    """Colour and kind of line of each of n components; the first 56 differ."""
    every = [(colour, line) for line, colour in product(_LINES, COLOURS)]
    return [every[k % len(every)] for k in range(n)]


def strokes_of(centres: NDArray[Any]) -> list[tuple[str, Any]]:
    """Strokes of components, of which those of the same colour are far from each other.

    Parameters
    ----------
    centres : ndarray of shape (K, 1 or 2)
        Where they are drawn.
    """
    n, n_colours = len(centres), len(COLOURS)
    extent = np.ptp(centres, axis=0)
    placed = centres / np.where(extent > 0.0, extent, 1.0)
    colours = np.arange(n) % n_colours
    for first in range(n_colours, n, n_colours):
        # As many at a time as there are colours, so that their lines tell them apart.
        new = slice(first, first + n_colours)
        crowding = np.zeros((len(placed[new]), n_colours))
        for colour in range(n_colours):
            its = placed[:first][colours[:first] == colour]
            apart = ((placed[new, np.newaxis] - its) ** 2).sum(axis=2)
            crowding[:, colour] = (1.0 / (apart + 1e-6)).sum(axis=1)
        colours[new] = linear_sum_assignment(crowding)[1]
    by_number = strokes(n)
    return [(COLOURS[colours[k]], line) for k, (_, line) in enumerate(by_number)]


def markers_of(centres: NDArray[Any]) -> list[tuple[str, str]]:
    """Colour of each component, as `strokes_of` has it, and marker of its points."""
    return [
        (colour, _MARKERS[k // len(COLOURS) % len(_MARKERS)])
        for k, (colour, _) in enumerate(strokes_of(centres))
    ]


def faded(colour: str, alphas: NDArray[Any]) -> NDArray[np.float64]:
    """A colour as transparent as each of some points is to be."""
    from matplotlib.colors import to_rgb

    return np.column_stack([np.tile(to_rgb(colour), (len(alphas), 1)), alphas])


def emphasis(weights: NDArray[Any]) -> NDArray[np.float64]:
    """How much each component is stressed, from 0.3 to 1, by its weight."""
    shares: NDArray[np.float64] = np.sqrt(weights / weights.max())
    return 0.3 + 0.7 * shares


def density_colours() -> Colormap:
    """Grey, the denser the less transparent; the least dense can be seen."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    grey = to_rgb(ROWS)
    return LinearSegmentedColormap.from_list(
        "rows", [(*grey, 0.25), (*grey, 1.0)], N=256
    )


def new_axes(ax: Axes | None) -> Axes:
    """The axes that were given, or new ones."""
    if ax is not None:
        if not hasattr(ax, "scatter"):
            raise ParameterError(f"ax must be Axes of Matplotlib, not {ax!r}.")
        return ax
    from matplotlib import pyplot as plt

    _, made = plt.subplots(layout="constrained")
    return made


def tidy(ax: Axes, **labels: str) -> Axes:
    """Axes with labels, and without a frame around."""
    ax.set(**labels)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def count_along(ax: Axes) -> None:
    """Have whole numbers along the axis from left to right."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def foreground() -> str:
    """The colour of texts and marks, as the style in use has it."""
    from matplotlib import rcParams

    return str(rcParams["text.color"])


def outlined(ax: Axes) -> list[Any]:
    """An effect that makes texts readable over whatever is below them."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2.5, foreground=ax.get_facecolor())]
