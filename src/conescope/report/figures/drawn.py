"""Plots that are values (`conescope.report.plot`), drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator, PercentFormatter

from conescope.report.figures.plots import format_iterations, format_logarithm
from conescope.report.figures.style import DISTANCE_MAP, LINE_COLOURS, PAPER, Style, in_force
from conescope.report.plot import BarPlot, GridPlot, Line, LinePlot, Mark, Plot

_LOOKS = {
    "solid": {},
    "dashed": {"linestyle": "--"},
    "points": {"linestyle": "", "marker": "o", "markersize": 2.5},
}


def draw(plot: Plot, style: Style = PAPER) -> Figure:
    """Draw a plot.

    Args:
        plot: what to draw.
        style: matplotlib's rc parameters for this figure.
    """
    with in_force(style):
        width, _ = matplotlib.rcParams["figure.figsize"]
        if isinstance(plot, LinePlot):
            figure = Figure()
            _lines(figure, plot)
        elif isinstance(plot, BarPlot):
            figure = Figure(figsize=(width, 0.9 + 0.16 * len(plot.names) * len(plot.shares)))
            _bars(figure, plot)
        else:
            figure = Figure(figsize=(width, width))
            _grid(figure, plot)
        return figure


def draw_side_by_side(plots: Sequence[LinePlot], style: Style = PAPER) -> Figure:
    """Draw line plots beside each other; they share the first one's legend."""
    with in_force(style):
        width, height = matplotlib.rcParams["figure.figsize"]
        figure = Figure(figsize=(0.9 * width * len(plots), 1.1 * height))
        for plot, axes in zip(plots, np.atleast_1d(figure.subplots(1, len(plots))), strict=True):
            _draw_lines(axes, plot)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
        return figure


def _lines(figure: FigureBase, plot: LinePlot) -> None:
    axes = figure.add_subplot()
    _draw_lines(axes, plot)
    if len(plot.lines) + len(plot.marks) > 1:
        figure.legend(loc="outside upper center", ncols=2)


def _draw_lines(axes: Axes, plot: LinePlot) -> None:
    axes.set(xlabel=plot.x_label, ylabel=plot.y_label)
    for mark in plot.marks:
        _mark(axes, mark)
    for place, line in enumerate(plot.lines):
        _line(axes, line, LINE_COLOURS[place % len(LINE_COLOURS)], dots=not plot.has_points)
    if plot.x_scale == "log":
        format_logarithm(axes, "x")
    else:
        format_iterations(axes.xaxis)
    if plot.y_range is not None:
        axes.set_ylim(plot.y_range)
    if plot.y_scale == "log":
        format_logarithm(axes)
    elif plot.y_range is None:
        axes.set_ylim(bottom=0.0)


def _line(axes: Axes, line: Line, colour: str, *, dots: bool) -> None:
    look = {**_LOOKS[line.style]}
    if dots and line.style == "solid" and len(line.x) <= 25:
        look["marker"] = "."
    axes.plot(line.x, line.y, label=line.label, color=colour, **look)
    if line.low is not None and line.high is not None:
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.2, linewidth=0)


def _mark(axes: Axes, mark: Mark) -> None:
    along, span = (axes.axvline, axes.axvspan) if mark.axis == "x" else (axes.axhline, axes.axhspan)
    along(mark.value, color="#777777", linestyle=_MARK_LINES[mark.style], label=mark.label)
    if mark.high > mark.low:
        span(mark.low, mark.high, color="#777777", alpha=0.18, linewidth=0)


_MARK_LINES = {"dotted": ":", "dashed": "--", "dash-dotted": "-."}


def _bars(figure: FigureBase, plot: BarPlot) -> None:
    axes = figure.add_subplot(xlabel=plot.x_label)
    places = np.arange(len(plot.names))
    height = 0.8 / len(plot.shares)
    for k, (label, shares) in enumerate(plot.shares.items()):
        offset = (k - (len(plot.shares) - 1) / 2) * height
        axes.barh(places + offset, shares, height, label=label, color=LINE_COLOURS[k + 1])
    axes.set_yticks(places, plot.names)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(loc="outside upper center", ncols=min(2, len(plot.shares)))


def _grid(figure: FigureBase, plot: GridPlot) -> None:
    axes = figure.add_subplot(xlabel=plot.label, ylabel=plot.label, aspect="equal")
    axes.grid(False)
    cells = axes.pcolormesh(plot.shares, cmap=DISTANCE_MAP, vmin=0.0)
    middles = np.arange(len(plot.names)) + 0.5
    axes.set_xticks(middles, plot.names)
    axes.set_yticks(middles, plot.names)
    axes.invert_yaxis()
    figure.colorbar(cells, label="share of the movement", format=PercentFormatter(1.0), shrink=0.8)
