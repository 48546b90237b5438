"""The template of all plotly charts: axes, margins, legend, and the paper figures' colour maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.colors import Colormap, to_hex

from conescope.report.plot import MatrixPlot
from conescope.report.style import ITERATION_MAP

_AXIS = {
    "showgrid": True,
    "gridcolor": "#e8e8e8",
    "zeroline": False,
    "linecolor": "#1a1a1a",
    "ticks": "outside",
    "title": {"standoff": 8},
    "automargin": True,
}

_SPACE_AXIS = {"gridcolor": "#dddddd", "zeroline": False, "backgroundcolor": "white", "nticks": 5}

TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#1a1a1a"},
        "margin": {"l": 56, "r": 28, "t": 36, "b": 44},
        "legend": {"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"},
        "hoverlabel": {"bgcolor": "white"},
        "plot_bgcolor": "white",
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
