"""Plots as values: what is drawn, apart from who draws it.

`conescope.report.figures` draws them with matplotlib and `conescope.report` with plotly, so a
figure and its chart cannot disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

ITERATION = "iteration t"
"""Label of an axis of training time."""

Scale = Literal["linear", "log"]


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    Attributes:
        label: its name in the legend.
        x: [P].
        y: [P]; NaN makes a gap.
        low: [P], lower border of a band about it, or None.
        high: [P], upper border.
        style: a "solid" line, a "dashed" one, or "points".
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    style: Literal["solid", "dashed", "points"] = "solid"


@dataclass(frozen=True)
class Mark:
    """A value on an axis, drawn across the plot, with its interval shaded.

    Attributes:
        label: its name in the legend.
        axis: which axis it lies on.
        value: where.
        low: lower end of its interval; `value` if it has none.
        high: upper end.
        style: of the line.
    """

    label: str
    axis: Literal["x", "y"]
    value: float
    low: float
    high: float
    style: Literal["dotted", "dashed", "dash-dotted"] = "dotted"


@dataclass(frozen=True)
class LinePlot:
    """Lines against iterations or lags.

    Attributes:
        title: a heading.
        caption: what is drawn, by which equation, and how to read it.
        x_label: with its unit.
        y_label: with its unit.
        lines: at least one.
        marks: drawn behind the lines.
        x_scale: of the axis of iterations.
        y_scale: of the other.
        y_range: its limits; None for those of the lines.
    """

    title: str
    caption: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    marks: Sequence[Mark] = ()
    x_scale: Scale = "linear"
    y_scale: Scale = "linear"
    y_range: tuple[float, float] | None = None

    @property
    def has_points(self) -> bool:
        """Whether points are drawn, from which lines are then told by having none."""
        return any(line.style == "points" for line in self.lines)


@dataclass(frozen=True)
class BarPlot:
    """Shares side by side.

    Attributes:
        title: a heading.
        caption: what is drawn and how to read it.
        x_label: of the bars' length, a share.
        names: one a bar, top to bottom.
        shares: kind of bar → a share for each name; 1 is the whole.
    """

    title: str
    caption: str
    x_label: str
    names: Sequence[str]
    shares: dict[str, np.ndarray]


@dataclass(frozen=True)
class GridPlot:
    """A square of shares, by class and class.

    Attributes:
        title: a heading.
        caption: what is drawn and how to read it.
        label: of rows and columns.
        names: the classes.
        shares: [c, c], at least 0; 1 is the whole.
    """

    title: str
    caption: str
    label: str
    names: Sequence[str]
    shares: np.ndarray


Plot = LinePlot | BarPlot | GridPlot
