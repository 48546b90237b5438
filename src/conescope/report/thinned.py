"""Leave out cells of a matrix that are too small to be seen on a page."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from conescope.report.plot import MatrixPlot, Plot

MOST_CELLS = 250
"""Most rows of a matrix on a page, whose charts are some 400 pixels high."""


def thinned(plot: Plot) -> Plot:
    """Return a plot of which a matrix has at most `MOST_CELLS` rows, and says how many it had."""
    if not isinstance(plot, MatrixPlot) or len(plot.places) <= MOST_CELLS or plot.has_names:
        return plot
    count = len(plot.places)
    kept = np.linspace(0, count - 1, MOST_CELLS).round().astype(int)
    return replace(
        plot,
        caption=f"{plot.caption} Of {count:,} kernels {MOST_CELLS} are drawn here, evenly spread.",
        places=[plot.places[place] for place in kept],
        values=plot.values[np.ix_(kept, kept)],
    )
