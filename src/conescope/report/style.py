"""The look of figures: colours, kinds of lines, and matplotlib's parameters as a value."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap

LINE_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours that the colour-blind tell apart (Okabe & Ito, 2008), without the faint yellow."""

ITERATION_MAP = ListedColormap(
    matplotlib.colormaps["viridis_r"](np.linspace(0.08, 1.0, 256)), name="iteration"
)
"""Colours of iterations, from light to dark: later is darker."""

DISTANCE_MAP = matplotlib.colormaps["magma_r"]
"""Colours of distances and shares, from light to dark: farther is darker."""

LINE_COLOURS_AT_NIGHT = (
    "#F2F2F2", "#5877F3", "#D75B19", "#3BD275", "#D679A1", "#F1D332", "#A8CBFF",
)  # fmt: skip
"""The same lines on a dark page: each contrasts with it by 4.5 or more, and the colour-blind tell
them apart."""

ITERATION_MAP_AT_NIGHT = ListedColormap(
    matplotlib.colormaps["viridis"](np.linspace(0.35, 1.0, 256)), name="iteration at night"
)
"""Colours of iterations on a dark page, from dark to light: later is lighter."""

DISTANCE_MAP_AT_NIGHT = matplotlib.colormaps["magma"]
"""Colours of distances and shares on a dark page: farther is lighter."""

Style = Mapping[str, Any]

PAPER: Style = MappingProxyType(
    {
        "figure.figsize": (3.5, 2.7),
        "figure.dpi": 100,
        "figure.constrained_layout.use": True,
        "savefig.dpi": 300,
        "font.family": "DejaVu Sans",
        "font.size": 8,
        "axes.labelsize": 9,
        "legend.frameon": False,
        "legend.handlelength": 1.4,
        "legend.columnspacing": 1.2,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e4e4e4",
        "grid.linewidth": 0.5,
        "lines.linewidth": 1.2,
        "mathtext.fontset": "dejavusans",
        "pdf.fonttype": 42,
    }
)
"""The style of a figure in one column of a paper, in 8-point type, readable on a phone."""


def in_force(style: Style) -> AbstractContextManager[None]:
    """Apply a style for as long as the context lasts."""
    parameters: Any = dict(style)
    return matplotlib.rc_context(parameters)


DASHES = (("-", "solid"), ("--", "dash"), (":", "dot"))
"""Kinds of lines, as matplotlib and plotly name them, for the first seven lines, the next, …"""

MARK_COLOUR = "#777777"
"""Colour of marked values and of their intervals."""

SHORT = 25
"""Number of points up to which a line marks each of them."""


def line_look(place: int) -> tuple[str, int]:
    """Return the colour of a place in the palette, and the place in `DASHES` of its line."""
    turns, place = divmod(place, len(LINE_COLOURS))
    return LINE_COLOURS[place], turns % len(DASHES)
