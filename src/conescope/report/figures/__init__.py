"""The paper's plots of a run, and those of its analysis, with matplotlib.

Every function returns a figure and changes nothing global. A style is a mapping of matplotlib's
rc parameters, passed in and in force only while that figure is drawn.
"""

from conescope.report.figures.drawn import draw
from conescope.report.figures.plots import (
    distance_after,
    distance_from,
    distance_matrix,
    embedding,
    overview,
    training,
)
from conescope.report.figures.save import (
    FIGURES,
    save_analysis,
    save_comparison,
    save_figure,
    save_figures,
)
from conescope.report.figures.style import PAPER, Style, in_force
from conescope.report.figures.switched import switched

__all__ = [
    "FIGURES",
    "PAPER",
    "Style",
    "distance_after",
    "distance_from",
    "distance_matrix",
    "draw",
    "embedding",
    "in_force",
    "overview",
    "save_analysis",
    "save_comparison",
    "save_figure",
    "save_figures",
    "switched",
    "training",
]
