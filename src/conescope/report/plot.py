"""Plots as values: descriptions of what is drawn, which two renderers draw.

A figure is one function that gives such a value. `conescope.report.matplotlib_drawing` draws it
for a paper and `conescope.report.plotly_drawing` for the report's page, so the two cannot disagree.

Labels of axes and lines hold mathematical symbols between asterisks, such as "iteration *t*";
both draw these in italics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

ITERATION = "iteration *t*"
"""Label of an axis of training time."""

Scale = Literal["linear", "log"]


def readable_scale(lines: Iterable[np.ndarray]) -> Scale:
    """Return the scale on which early high values and a late floor of some lines both show.

    Logarithmic if the values span more than a decade; linear if they do not, or if one is zero,
    which a logarithm would hide. Values that are not finite do not count.
    """
    values = np.concatenate([np.asarray(line, dtype=float) for line in lines])
    values = values[np.isfinite(values)]
    spans_decade = len(values) > 0 and values.min() > 0 and values.max() > 10 * values.min()
    return "log" if spans_decade else "linear"


@dataclass(frozen=True)
class Described:
    """The texts that every plot has.

    Attributes:
        title: a heading.
        caption: what is drawn, by which equation, and how to read it.
    """

    title: str
    caption: str


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    Attributes:
        label: its name in the legend; lines of one label share an entry.
        x: [P], places on the horizontal axis.
        y: [P], values; NaN makes a gap.
        low: [P], lower border of a band about it, or None.
        high: [P], upper border.
        style: a "solid" line, a "dashed" one, or only "points" or "crosses".
        colour: its place in the palette; None for its place among the plot's lines.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    style: Literal["solid", "dashed", "points", "crosses"] = "solid"
    colour: int | None = None


def with_errors(
    label: str, x: np.ndarray, y: np.ndarray, errors: np.ndarray | None, **look: Any
) -> Line:
    """Return a line of values at least 0, with a band of ± one standard error if there are any.

    The band ends at a tenth of the value, which a logarithmic axis still shows.
    """
    if errors is None:
        return Line(label, x, y, **look)
    return Line(label, x, y, np.clip(y - errors, y / 10, None), y + errors, **look)


@dataclass(frozen=True)
class Mark:
    """A value on an axis, drawn across the plot, with its interval shaded.

    Attributes:
        label: its name in the legend.
        axis: the axis on which it lies.
        value: its place on that axis.
        low: lower end of its interval; `value` if it has none.
        high: upper end.
        style: the style of the line.
    """

    label: str
    axis: Literal["x", "y"]
    value: float
    low: float
    high: float
    style: Literal["dotted", "dashed", "dash-dotted"] = "dotted"


@dataclass(frozen=True)
class LinePlot(Described):
    """Lines against iterations, lags or ranks.

    Attributes:
        y_label: label of the vertical axis, with its unit.
        lines: at least one.
        x_label: label of the horizontal axis, with its unit.
        marks: values that are drawn behind the lines.
        x_scale: scale of the horizontal axis.
        y_scale: scale of the vertical axis; "readable" for that of `readable_scale`.
        y_range: limits of the vertical axis; None for those of the lines.
        from_zero: whether a linear vertical axis without such limits begins at 0.
        percent: whether the vertical axis shows shares as per cent.
        x_whole: whether the horizontal axis shows whole numbers only.
        x_ticks: places on the horizontal axis → their texts; empty for those of its scale.
    """

    y_label: str
    lines: Sequence[Line]
    x_label: str = ITERATION
    marks: Sequence[Mark] = ()
    x_scale: Scale = "linear"
    y_scale: Scale | Literal["readable"] = "linear"
    y_range: tuple[float, float] | None = None
    from_zero: bool = True
    percent: bool = False
    x_whole: bool = True
    x_ticks: Mapping[float, str] = field(default_factory=dict)

    @property
    def vertical_scale(self) -> Scale:
        """The scale on which the vertical axis is drawn."""
        if self.y_scale == "readable":
            return readable_scale(line.y for line in self.lines)
        return self.y_scale

    @property
    def vertical_limits(self) -> tuple[float, float] | None:
        """The limits of the vertical axis, or None if they are left to who draws.

        They are `y_range`, or for shares what holds them, from 0 to 1 and a line's width more.
        """
        if self.y_range is not None or not self.percent or self.vertical_scale == "log":
            return self.y_range
        drawn = [(line.y, line.low, line.high) for line in self.lines]
        drawn += [(m.value, m.low, m.high) for m in self.marks if m.axis == "y"]
        values = np.concatenate([np.ravel(v) for three in drawn for v in three if v is not None])
        values = values[np.isfinite(values)]
        if len(values) == 0 or values.min() < 0 or values.max() > 1:
            return None
        low, high = 0.0 if self.from_zero else float(values.min()), float(values.max())
        if low == high:
            low, high = low - 0.05, min(1.0, high + 0.05)
        room = 0.04 * (high - low)  # for the width of a line
        return max(0.0, low - room), high + room

    @property
    def marks_points(self) -> bool:
        """Whether short solid lines mark their points, as no line consists of points only."""
        return not any(line.style == "points" for line in self.lines)


@dataclass(frozen=True)
class BarPlot(Described):
    """Shares side by side, as horizontal bars.

    Attributes:
        x_label: label of the bars' length, a share.
        names: the name of each group of bars, top to bottom.
        shares: label of a bar in each group → a share for each name; 1 is the whole.
    """

    x_label: str
    names: Sequence[str]
    shares: dict[str, np.ndarray]


@dataclass(frozen=True)
class MatrixPlot(Described):
    """A matrix as coloured cells; NaN leaves a cell empty.

    Attributes:
        x_label: label of the columns.
        y_label: label of the rows.
        value_label: label of the colour bar.
        places: [c], iterations, to whose scale the cells are drawn, rising upwards; or names, whose
            cells are of one size, top to bottom.
        values: [c, c], at least 0; [r, c] if rows have names of their own.
        colour: proportional to the values ("linear") or to their "square root".
        percent: whether the values are shares, shown as per cent.
        rows: [r], names of the rows, where they are not those of the columns.
        texts: [r, c], a text in each cell, of one line or several; none if empty.
        most: the value of the darkest colour; None for the largest value.
    """

    x_label: str
    y_label: str
    value_label: str
    places: Sequence[int] | Sequence[str]
    values: np.ndarray
    colour: Literal["linear", "square root"] = "linear"
    percent: bool = False
    rows: Sequence[str] | None = None
    texts: Sequence[Sequence[str]] = ()
    most: float | None = None

    @property
    def row_places(self) -> Sequence[int] | Sequence[str]:
        """The places or names of the rows."""
        return self.places if self.rows is None else self.rows

    @property
    def has_names(self) -> bool:
        """Whether rows and columns have names; else they are iterations."""
        return isinstance(self.places[0], str)


@dataclass(frozen=True)
class PathPlot(Described):
    """A path through a plane or through space, with one scale for all axes.

    Attributes:
        labels: the labels of the two or three axes.
        points: [T, 2] or [T, 3].
        steps: [T], iterations, which give the points their colours.
        names: [T], what each point is; that of the first, which is larger, is in the legend.
    """

    labels: Sequence[str]
    points: np.ndarray
    steps: Sequence[int]
    names: Sequence[str]


SinglePlot = LinePlot | BarPlot | MatrixPlot | PathPlot


@dataclass(frozen=True)
class Panels(Described):
    """Several plots in one figure.

    Plots of lines share one legend; in a column they also share the horizontal axis of the last.

    Attributes:
        panels: at least one.
        layout: side by side in a "row", or in a "column"; on a page always in a column.
        note: text below a figure of a paper, in lines; a page has the caption instead.
    """

    panels: Sequence[SinglePlot]
    layout: Literal["row", "column"] = "column"
    note: str = ""

    @property
    def line_plots(self) -> list[LinePlot]:
        """The panels, if all are plots of lines, which then share a legend; else empty."""
        found = [panel for panel in self.panels if isinstance(panel, LinePlot)]
        return found if len(found) == len(self.panels) else []


Plot = SinglePlot | Panels
