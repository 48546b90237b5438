"""Draw plots that are values (`conescope.report.plot`) with matplotlib, fit for a paper."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
    StrMethodFormatter,
)

from conescope.report.plot import (
    BarPlot,
    Line,
    LinePlot,
    Mark,
    MatrixPlot,
    Panels,
    PathPlot,
    Plot,
    SinglePlot,
)
from conescope.report.shown_figure import ShownFigure
from conescope.report.style import (
    DASHES,
    DISTANCE_MAP,
    ITERATION_MAP,
    LINE_COLOURS,
    MARK_COLOUR,
    PAPER,
    SHORT,
    Style,
    in_force,
    line_look,
)

_LOOKS = {
    "solid": {},
    "dashed": {"linestyle": "--"},
    "points": {"linestyle": "", "marker": "o", "markersize": 2.5},
    "crosses": {"linestyle": "", "marker": "x", "markersize": 4},
}

_MARK_LINES = {"dotted": ":", "dashed": "--", "dash-dotted": "-."}

_LEGEND_WIDTH = 70
"""Letters of a row of the legend, as many as a column of a paper is wide."""


def draw(plot: Plot, style: Style = PAPER, note: str = "") -> ShownFigure:
    """Draw a plot as a figure, which a notebook shows; nothing global changes.

    Args:
        plot: what to draw.
        style: matplotlib's rc parameters for this figure.
        note: text below the figure, in lines; panels may have one of their own.
    """
    with in_force(style):
        figure = ShownFigure(figsize=_size(plot))
        if isinstance(plot, Panels):
            _draw_panels(figure, plot)
            note = "\n".join(filter(None, (plot.note, note)))
        else:
            _draw_single(figure, plot)
        if note:
            figure.supxlabel(_escaped(note), fontsize="small")
        return figure


def _size(plot: Plot) -> tuple[float, float]:
    """Return width and height of a figure in inches."""
    width, height = matplotlib.rcParams["figure.figsize"]
    if isinstance(plot, Panels):
        if plot.layout == "row":
            return 0.9 * width * len(plot.panels), 1.2 * height
        return width, (0.5 + 0.5 * len(plot.panels)) * height
    if isinstance(plot, BarPlot):
        return width, 0.9 + 0.16 * len(plot.names) * len(plot.shares)
    if isinstance(plot, PathPlot) or (isinstance(plot, MatrixPlot) and plot.has_names):
        return width, width
    return width, height


def _draw_panels(figure: Figure, plot: Panels) -> None:
    if plot.line_plots:
        _draw_with_one_legend(figure, plot.line_plots, plot.layout)
        return
    shape = (1, len(plot.panels)) if plot.layout == "row" else (len(plot.panels), 1)
    parts = np.ravel(figure.subfigures(*shape, squeeze=False))
    for part, panel in zip(parts, plot.panels, strict=True):
        _draw_single(part, panel)


def _draw_single(figure: FigureBase, plot: SinglePlot) -> None:
    if isinstance(plot, LinePlot):
        _draw_with_one_legend(figure, [plot], "column")
    elif isinstance(plot, BarPlot):
        _draw_bars(figure, plot)
    elif isinstance(plot, MatrixPlot):
        _draw_matrix(figure, plot)
    else:
        _draw_path(figure, plot)


def _draw_with_one_legend(
    figure: FigureBase, plots: Sequence[LinePlot], layout: Literal["row", "column"]
) -> None:
    """Draw plots of lines, with a legend above them if there is more than one thing to name."""
    in_a_column = layout == "column"
    shape = (len(plots), 1) if in_a_column else (1, len(plots))
    parts = np.ravel(figure.subplots(*shape, squeeze=False, sharex=in_a_column))
    for axes, plot in zip(parts, plots, strict=True):
        _draw_lines(axes, plot)
    if in_a_column:
        for axes in parts[:-1]:
            axes.set_xlabel("")
    named = {}
    for axes in parts:
        handles, labels = axes.get_legend_handles_labels()
        named = dict(zip(labels, handles, strict=True)) | named
    if len(named) > 1:
        width = _LEGEND_WIDTH * (1 if in_a_column else len(plots))
        columns = max(1, min(3, width // (5 + max(map(len, named)))))
        figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=columns)


def _draw_lines(axes: Axes, plot: LinePlot) -> None:
    axes.set(xlabel=_text(plot.x_label), ylabel=_text(plot.y_label))
    for mark in plot.marks:
        _draw_mark(axes, mark)
    for place, line in enumerate(plot.lines):
        _draw_line(axes, line, place, marks_points=plot.marks_points)
    if (limits := plot.vertical_limits) is not None:
        axes.set_ylim(limits)
    if plot.x_scale == "log":
        _format_logarithm(axes, "x")
    elif plot.x_whole:
        _format_iterations(axes.xaxis)
    if plot.x_ticks:
        axes.set_xticks(list(plot.x_ticks), list(plot.x_ticks.values()))
    if plot.vertical_scale == "log":
        _format_logarithm(axes, "y")
    elif limits is None and plot.from_zero:
        axes.set_ylim(bottom=0.0)
    if plot.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _draw_line(axes: Axes, line: Line, place: int, *, marks_points: bool) -> None:
    colour, turn = line_look(place if line.colour is None else line.colour)
    look: dict[str, Any] = {"linestyle": DASHES[turn][0], **_LOOKS[line.style]}
    if marks_points and line.style in ("solid", "dashed") and len(line.x) <= SHORT:
        look["marker"] = "."
    axes.plot(line.x, line.y, label=_text(line.label), color=colour, **look)
    if line.low is not None and line.high is not None:
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.2, linewidth=0)


def _draw_mark(axes: Axes, mark: Mark) -> None:
    along, span = (axes.axvline, axes.axvspan) if mark.axis == "x" else (axes.axhline, axes.axhspan)
    along(mark.value, color=MARK_COLOUR, linestyle=_MARK_LINES[mark.style], label=_text(mark.label))
    if mark.high > mark.low:
        span(mark.low, mark.high, color=MARK_COLOUR, alpha=0.18, linewidth=0)


def _draw_bars(figure: FigureBase, plot: BarPlot) -> None:
    axes = figure.add_subplot(xlabel=_text(plot.x_label))
    places = np.arange(len(plot.names))
    height = 0.8 / len(plot.shares)
    for k, (label, shares) in enumerate(plot.shares.items()):
        offset = (k - (len(plot.shares) - 1) / 2) * height
        axes.barh(places + offset, shares, height, label=_text(label), color=LINE_COLOURS[k + 1])
    axes.set_yticks(places, [_escaped(name) for name in plot.names])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(loc="outside upper center", ncols=min(2, len(plot.shares)))


def _draw_matrix(figure: FigureBase, plot: MatrixPlot) -> None:
    axes = figure.add_subplot(xlabel=_text(plot.x_label), ylabel=_text(plot.y_label))
    axes.set_aspect("equal" if plot.rows is None else "auto")
    axes.grid(False)
    power = 1.0 if plot.colour == "linear" else 0.5
    norm = PowerNorm(power, vmin=0.0, vmax=plot.most or float(np.nanmax(plot.values)) or 1.0)
    look: dict[str, Any] = {"cmap": DISTANCE_MAP, "norm": norm, "rasterized": not plot.has_names}
    if plot.has_names:
        cells = axes.pcolormesh(plot.values, **look)
        for axis, places in ((axes.xaxis, plot.places), (axes.yaxis, plot.row_places)):
            names = [_escaped(str(name)) for name in places]
            axis.set_ticks((np.arange(len(names)) + 0.5).tolist(), names)
        axes.invert_yaxis()
        for row, texts in enumerate(plot.texts):
            for column, text in enumerate(texts):
                _write_in_cell(axes, row, column, text, norm(plot.values[row, column]))
    else:
        edges = _cell_edges(np.array(plot.places))
        cells = axes.pcolormesh(edges, edges, plot.values, **look)
        _format_iterations(axes.xaxis, axes.yaxis)
    form = PercentFormatter(1.0) if plot.percent else None
    shrink = 0.8 if plot.has_names else 1.0
    figure.colorbar(cells, label=_text(plot.value_label), format=form, shrink=shrink)


def _write_in_cell(axes: Axes, row: int, column: int, text: str, shade: float) -> None:
    """Write a text in the middle of a cell, white on a dark one; shades go from 0 to 1."""
    colour = "white" if shade > 0.5 else "black"
    place: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": "x-small"}
    axes.text(column + 0.5, row + 0.5, _escaped(text), color=colour, **place)


def _draw_path(figure: FigureBase, plot: PathPlot) -> None:
    columns = plot.points.T
    in_space = len(columns) == 3
    axes: Any = _axes_in_space(figure) if in_space else figure.add_subplot()
    options = {"depthshade": False} if in_space else {}
    axes.plot(*columns, color="#888888", linewidth=0.5, zorder=1)
    dots = axes.scatter(
        *columns[:, 1:],
        c=plot.steps[1:],
        cmap=ITERATION_MAP,
        vmin=plot.steps[0],
        vmax=plot.steps[-1],
        s=12,
        zorder=2,
        **options,
    )
    first = _text(plot.names[0])
    axes.scatter(*columns[:, :1], c="black", s=36, zorder=3, label=first, **options)
    for axis, label in zip("xyz", plot.labels, strict=False):
        axes.set(**{f"{axis}label": _text(label)})
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend()
    bar = figure.colorbar(dots, location="top", aspect=40, pad=0.02, label="iteration $t$")
    _format_iterations(bar.ax.xaxis)


def _axes_in_space(figure: FigureBase) -> Any:
    """Return axes in three dimensions, with labels close enough to stay within a small figure."""
    axes: Any = figure.add_subplot(projection="3d", computed_zorder=False)
    axes.set_box_aspect((1, 1, 1), zoom=0.78)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_major_locator(MaxNLocator(nbins=4))
        axis.set_tick_params(pad=1)
        axis.labelpad = 3
    return axes


def _format_logarithm(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with plain numbers: 1, 2, 5 a decade, or 1 if decades are many."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axis.set_major_formatter(StrMethodFormatter("{x:,g}" if which == "x" else "{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _format_iterations(*axes: Axis) -> None:
    """Set few ticks, at whole iterations, with separators of thousands."""
    for axis in axes:
        axis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _cell_edges(steps: np.ndarray) -> np.ndarray:
    """Return edges of cells around T steps: halfway between neighbours, and the ends; [T + 1]."""
    return np.array([steps[0], *((steps[:-1] + steps[1:]) / 2), steps[-1]])


def _text(label: str) -> str:
    """Return a label with its symbols in italics."""

    def in_italics(found: re.Match[str]) -> str:
        spaced = found[1].replace(", ", r",\, ")
        return f"${re.sub(r'(?<=[0-9]),(?=[0-9])', '{,}', spaced)}$"  # no gap within 1,000

    return re.sub(r"\*(.+?)\*", in_italics, _escaped(label))


def _escaped(text: str) -> str:
    """Return a text in which matplotlib finds no mathematics, and which its legend shows.

    A legend leaves out labels that begin with an underscore.
    """
    shown = f" {text}" if text.startswith("_") else text
    return shown.replace("$", r"\$")
