"""The template of all plotly charts: axes, margins, legend, and the paper figures' colour maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.colors import Colormap, to_hex

from conescope.report.plot import MatrixPlot
from conescope.report.style import (
    DISTANCE_MAP,
    DISTANCE_MAP_AT_NIGHT,
    ITERATION_MAP,
    ITERATION_MAP_AT_NIGHT,
    LINE_COLOURS,
    LINE_COLOURS_AT_NIGHT,
)

_PAGE, _INK, _GRID = "#ffffff", "#1a1a1a", "#e4e4e4"

_AXIS = {
    "color": _INK,
    "showgrid": True,
    "gridcolor": _GRID,
    "zeroline": False,
    "ticks": "outside",
    "title": {"standoff": 8},
    "automargin": True,
}

_SPACE_AXIS = {
    "color": _INK,
    "gridcolor": _GRID,
    "zeroline": False,
    "backgroundcolor": _PAGE,
    "nticks": 5,
}

TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": _INK},
        "margin": {"l": 56, "r": 28, "t": 36, "b": 44},
        "legend": {"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"},
        "hoverlabel": {"bgcolor": _PAGE},
        "paper_bgcolor": _PAGE,
        "plot_bgcolor": _PAGE,
        "xaxis": {**_AXIS, "nticks": 6, "tickangle": 0},
        "yaxis": _AXIS,
        "scene": {
            "camera": {"eye": {"x": 1.5, "y": -2.6, "z": 1.5}, "center": {"z": -0.2}},
            "aspectmode": "data",
            "xaxis": _SPACE_AXIS,
            "yaxis": _SPACE_AXIS,
            "zaxis": _SPACE_AXIS,
        },
    }
)
"""Looks of all charts; the camera stands where matplotlib's does."""


def colour_scale(colours: Colormap, power: float = 1.0) -> list[tuple[float, str]]:
    """Return a colour map as plotly's list, its positions raised to a power."""
    return [(u**power, to_hex(colours(u))) for u in np.linspace(0.0, 1.0, 33).tolist()]


def _at_night() -> dict[str, str]:
    """Return each colour of the charts → the one that a dark page has for it."""
    pairs = [(_PAGE, "#16181c"), (_INK, "#e8e8e8"), (_GRID, "#3a3f47")]
    pairs += zip(LINE_COLOURS, LINE_COLOURS_AT_NIGHT, strict=True)
    scales = (
        (ITERATION_MAP, ITERATION_MAP_AT_NIGHT),
        (DISTANCE_MAP, DISTANCE_MAP_AT_NIGHT),
    )
    for day, night in scales:
        coloured = zip(colour_scale(day), colour_scale(night), strict=True)
        pairs += [(light, dark) for (_, light), (_, dark) in coloured]
    return dict(pairs)


AT_NIGHT = _at_night()
"""Each colour of the charts → the one that a dark page has in its place."""


def coloured_by(steps: Sequence[int], size: int) -> dict[str, Any]:
    """Return the look of points that are coloured by iteration, with a colour bar."""
    return {
        "size": size,
        "color": steps,
        "colorscale": colour_scale(ITERATION_MAP),
        "showscale": True,
        "colorbar": {
            "orientation": "h",
            "yanchor": "bottom",
            "thickness": 10,
            "nticks": 6,
            "tickformat": ",d",
            "title": {"text": "iteration <i>t</i>", "side": "top"},
        },
    }


def cell_texts(plot: MatrixPlot) -> list[list[str]]:
    """Return the texts of a matrix's cells as plotly breaks lines."""
    return [[text.replace("\n", "<br>") for text in row] for row in plot.texts]
