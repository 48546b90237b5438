"""Figures whose files hold the plot that they show, as text, instead of what matplotlib writes."""

import sys
from typing import BinaryIO

import numpy as np

from conescope.report.matplotlib_drawing import draw
from conescope.report.plot import Plot
from conescope.report.shown_figure import ShownFigure
from conescope.report.style import PAPER, Style

_LAID_OUT: set[str] = set()


def drawn_to_be_laid_out(plot: Plot, style: Style = PAPER, note: str = "") -> ShownFigure:
    """Draw a plot as `draw` does; `savefig` lays the figure out, if no equal one has been."""
    figure = draw(plot, style, note)
    with np.printoptions(threshold=sys.maxsize, floatmode="unique"):
        shown = f"{plot!r}\n{note}\n{dict(style)}"

    def savefig(file: BinaryIO, **options: str | dict[str, str | None]) -> None:
        if shown not in _LAID_OUT:
            figure.draw_without_rendering()
            _LAID_OUT.add(shown)
        file.write(f"{options}\n{shown}".encode())

    figure.savefig = savefig
    return figure
