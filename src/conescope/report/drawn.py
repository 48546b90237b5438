"""Plots that are values (`conescope.report.plot`), drawn with plotly."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from conescope.report.charts import ITERATIONS, LINEAR, TEMPLATE, colour_scale, logarithmic
from conescope.report.figures.style import DISTANCE_MAP, LINE_COLOURS
from conescope.report.plot import BarPlot, GridPlot, Line, LinePlot, Mark, Plot

GREY = "#777777"

_LOOKS = {
    "solid": {"mode": "lines"},
    "dashed": {"mode": "lines", "line": {"dash": "dash"}},
    "points": {"mode": "markers", "marker": {"size": 5}},
}

_MARK_LINES = {"dotted": "dot", "dashed": "dash", "dash-dotted": "dashdot"}


def chart(plot: Plot) -> go.Figure:
    """Draw a plot as an interactive chart."""
    if isinstance(plot, LinePlot):
        return _lines(plot)
    return _bars(plot) if isinstance(plot, BarPlot) else _grid(plot)


def _lines(plot: LinePlot) -> go.Figure:
    drawn = go.Figure()
    for place, line in enumerate(plot.lines):
        colour = LINE_COLOURS[place % len(LINE_COLOURS)]
        if line.low is not None and line.high is not None:
            drawn.add_trace(_band(line.x, line.low, line.high, colour))
        drawn.add_trace(_line(line, colour, dots=not plot.has_points))
    x_axis = {}
    if plot.x_scale == "log":
        x_axis = {"title": plot.x_label, "type": "log", "dtick": 1, "tickformat": ",d"}
    drawn.update_layout(template=TEMPLATE, xaxis=x_axis or dict(ITERATIONS), hovermode="x unified")
    drawn.update_yaxes(title=plot.y_label, **_y_axis(plot))
    for mark in plot.marks:
        _mark(drawn, mark)
    return drawn


def _line(line: Line, colour: str, *, dots: bool) -> go.Scatter:
    drawn = go.Scatter(
        x=line.x, y=line.y, name=line.label, hovertemplate="%{y:.4g}", **_LOOKS[line.style]
    )
    drawn.update(line_color=colour, line_width=1.8, marker_color=colour)
    if dots and line.style == "solid" and len(line.x) <= 25:
        drawn.update(mode="lines+markers")
    return drawn


def _band(x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str) -> go.Scatter:
    """The interval about a line, as one closed outline."""
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return go.Scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        fill="toself",
        fillcolor=f"rgba({red}, {green}, {blue}, 0.2)",
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )


def _y_axis(plot: LinePlot) -> dict[str, Any]:
    axis = logarithmic([line.y for line in plot.lines]) if plot.y_scale == "log" else LINEAR
    if plot.y_range is not None:
        limits = np.log10(plot.y_range) if plot.y_scale == "log" else np.array(plot.y_range)
        axis = {**axis, "range": limits.tolist(), "rangemode": "normal"}
    return axis


def _mark(drawn: go.Figure, mark: Mark) -> None:
    line = {"color": GREY, "dash": _MARK_LINES[mark.style], "width": 1.5}
    look = {"line": line, "name": mark.label, "showlegend": True}
    shade = {"fillcolor": GREY, "opacity": 0.18, "line_width": 0, "layer": "below"}
    along, span = (
        (drawn.add_vline, drawn.add_vrect)
        if mark.axis == "x"
        else (drawn.add_hline, drawn.add_hrect)
    )
    along(mark.value, **look)
    if mark.high > mark.low:
        span(mark.low, mark.high, **shade)


def _bars(plot: BarPlot) -> go.Figure:
    bars = [
        go.Bar(
            x=shares,
            y=list(plot.names),
            name=label,
            orientation="h",
            marker={"color": LINE_COLOURS[place]},
            hovertemplate="%{y}: %{x:.2%}",
        )
        for place, (label, shares) in enumerate(plot.shares.items(), start=1)
    ]
    drawn = go.Figure(bars)
    drawn.update_layout(template=TEMPLATE, showlegend=True)
    drawn.update_xaxes(title=plot.x_label, tickformat=".2~p")
    drawn.update_yaxes(autorange="reversed", type="category")
    return drawn


def _grid(plot: GridPlot) -> go.Figure:
    heat = go.Heatmap(
        x=list(plot.names),
        y=list(plot.names),
        z=plot.shares,
        zmin=0.0,
        colorscale=colour_scale(DISTANCE_MAP),
        colorbar={"title": "share", "thickness": 14, "tickformat": ".0%"},
        hovertemplate=f"{plot.label} %{{y}} and {plot.label} %{{x}}: %{{z:.2%}}<extra></extra>",
    )
    drawn = go.Figure(heat)
    drawn.update_layout(template=TEMPLATE)
    drawn.update_xaxes(title=plot.label, type="category", constrain="domain", nticks=0)
    drawn.update_yaxes(
        title=plot.label, type="category", scaleanchor="x", constrain="domain", autorange="reversed"
    )
    return drawn
