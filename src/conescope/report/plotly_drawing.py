"""Draw plots that are values (`conescope.report.plot`) with plotly, for the report's page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from types import MappingProxyType
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from conescope.report import plotly_looks as looks
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
from conescope.report.style import (
    DASHES,
    DISTANCE_MAP,
    LINE_COLOURS,
    MARK_COLOUR,
    SHORT,
    line_look,
)

_LOOKS = MappingProxyType(
    {
        "solid": {"mode": "lines"},
        "dashed": {"mode": "lines"},
        "points": {"mode": "markers", "marker": {"size": 5}},
        "crosses": {"mode": "markers", "marker": {"size": 8, "symbol": "x-thin-open"}},
    }
)

_MARK_LINES = {"dotted": "dot", "dashed": "dash", "dash-dotted": "dashdot"}


@dataclass(frozen=True)
class _Panel:
    """What a plot puts into its panel of a chart.

    Attributes:
        traces: what is drawn.
        x: settings of the horizontal axis.
        y: settings of the vertical axis.
        scene: settings of the three axes of a panel in space, instead of `x` and `y`.
        layout: settings of the whole chart.
        marks: lines and bands across the panel.
    """

    traces: list[Any]
    x: Mapping[str, Any] = field(default_factory=dict)
    y: Mapping[str, Any] = field(default_factory=dict)
    scene: Mapping[str, Any] | None = None
    layout: Mapping[str, Any] = field(default_factory=dict)
    marks: tuple[Mark, ...] = ()


def chart(plot: Plot) -> go.Figure:
    """Draw a plot as an interactive chart; panels come one below the other, fit for a phone."""
    plots = plot.panels if isinstance(plot, Panels) else [plot]
    shares = isinstance(plot, Panels) and bool(plot.line_plots) and plot.layout == "column"
    panels = [_panel(one) for one in plots]
    kinds = [[{"type": "xy" if panel.scene is None else "scene"}] for panel in panels]
    space = 0.08 if shares else 0.3 / len(panels)
    drawn = make_subplots(
        rows=len(panels), cols=1, specs=kinds, shared_xaxes=shares, vertical_spacing=space
    )
    drawn.update_layout(template=looks.TEMPLATE)
    named: set[str] = set()
    for row, panel in enumerate(panels, start=1):
        is_inner = shares and row < len(panels)
        _fill(drawn, panel, row, {"title": None} if is_inner else {}, named)
    return drawn


def _fill(
    drawn: go.Figure, panel: _Panel, row: int, x_changes: Mapping[str, Any], named: set[str]
) -> None:
    """Put a panel into its row; a label that is `named` already has its entry in the legend."""
    place: dict[str, Any] = {"row": row, "col": 1}
    for trace in panel.traces:
        if trace.name in named:
            trace.showlegend = False
        named |= {trace.name} if trace.name and trace.showlegend is not False else set()
        drawn.add_trace(trace, **place)
    drawn.update_layout(panel.layout)
    if panel.scene is not None:
        drawn.update_scenes(panel.scene, **place)
        bottom, top = next(iter(drawn.select_scenes(**place))).domain.y
    else:
        anchor = f"x{row}" if row > 1 else "x"
        y = {**panel.y, "scaleanchor": anchor} if "scaleanchor" in panel.y else panel.y
        drawn.update_xaxes({**panel.x, **x_changes}, **place)
        drawn.update_yaxes(y, **place)
        bottom, top = next(iter(drawn.select_yaxes(**place))).domain
    above, beside = {"y": top}, {"y": (bottom + top) / 2, "len": top - bottom}
    drawn.update_traces({"marker.colorbar": above}, {"marker.showscale": True}, **place)
    drawn.update_traces({"colorbar": beside}, {"type": "heatmap"}, **place)
    for mark in panel.marks:
        _add_mark(drawn, mark, row)


def _panel(plot: SinglePlot) -> _Panel:
    if isinstance(plot, LinePlot):
        return _lines(plot)
    if isinstance(plot, BarPlot):
        return _bars(plot)
    return _matrix(plot) if isinstance(plot, MatrixPlot) else _path(plot)


def _lines(plot: LinePlot) -> _Panel:
    traces = []
    for place, line in enumerate(plot.lines):
        place = place if line.colour is None else line.colour
        if line.low is not None and line.high is not None:
            traces.append(_band(line.x, line.low, line.high, line_look(place)[0]))
        traces.append(_line(line, place, plot))
    x_axis = {"title": _text(plot.x_label), "tickformat": ",d" if plot.x_whole else "~g"}
    if plot.x_scale == "log":
        x_axis |= {"type": "log", "dtick": 1}
    if plot.x_ticks:
        texts = list(plot.x_ticks.values())
        x_axis |= {"tickmode": "array", "tickvals": list(plot.x_ticks), "ticktext": texts}
    return _Panel(
        traces,
        x_axis,
        {"title": _text(plot.y_label), **_y_axis(plot)},
        layout={"hovermode": "x unified"},
        marks=tuple(plot.marks),
    )


def _line(line: Line, place: int, plot: LinePlot) -> go.Scatter:
    colour, turn = line_look(place)
    drawn = go.Scatter(
        x=line.x,
        y=line.y,
        name=_text(line.label),
        hovertemplate="%{y:.2%}" if plot.percent else "%{y:.4g}",
        **_LOOKS[line.style],
    )
    dash = "dash" if line.style == "dashed" else DASHES[turn][1]
    drawn.update(line={"color": colour, "width": 1.8, "dash": dash}, marker_color=colour)
    if plot.marks_points and drawn.mode == "lines" and len(line.x) <= SHORT:
        drawn.mode = "lines+markers"
    return drawn


def _band(x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str) -> go.Scatter:
    """Return the interval about a line, as one closed outline."""
    return go.Scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        mode="lines",  # of few points, plotly would mark each
        fill="toself",
        fillcolor=colour,
        opacity=0.2,
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )


def _y_axis(plot: LinePlot) -> dict[str, Any]:
    axis: dict[str, Any] = {"type": "linear", "rangemode": "tozero" if plot.from_zero else "normal"}
    if plot.vertical_scale == "log":
        values = np.concatenate([line.y for line in plot.lines])
        low, high = np.nanmin(values), np.nanmax(values)
        axis = {"type": "log", "tickformat": ",~g" if low > 1e-4 else "~e"}
        axis["dtick"] = "D2" if high < 1000 * low else 1  # 1, 2, 5 a decade, or 1 if many
    if plot.percent:
        axis["tickformat"] = ".0%"
    if (ends := plot.vertical_limits) is not None:
        limits = np.log10(ends) if plot.vertical_scale == "log" else np.array(ends)
        axis |= {"range": limits.tolist(), "rangemode": "normal"}
    return axis


def _add_mark(drawn: go.Figure, mark: Mark, row: int) -> None:
    label, place = _text(mark.label), {"row": row, "col": 1}
    look: dict[str, Any] = {
        "line": {"color": MARK_COLOUR, "dash": _MARK_LINES[mark.style], "width": 1.5},
        "name": label,
        "showlegend": all(shape.name != label for shape in drawn.layout.shapes),
    }
    shade: dict[str, Any] = {"fillcolor": MARK_COLOUR, "opacity": 0.18, "line_width": 0}
    across = {"x": ("vline", "vrect"), "y": ("hline", "hrect")}[mark.axis]
    along, span = (getattr(drawn, f"add_{shape}") for shape in across)
    along(mark.value, **place, **look)
    if mark.high > mark.low:
        span(mark.low, mark.high, layer="below", **place, **shade)


def _bars(plot: BarPlot) -> _Panel:
    bars = [
        go.Bar(
            x=shares,
            y=list(map(_text, plot.names)),
            name=_text(label),
            orientation="h",
            marker={"color": LINE_COLOURS[place]},
            hovertemplate="%{y}: %{x:.2%}",
        )
        for place, (label, shares) in enumerate(plot.shares.items(), start=1)
    ]
    return _Panel(
        bars,
        {"title": _text(plot.x_label), "tickformat": ".2~p"},
        {"autorange": "reversed", "type": "category"},
        layout={"showlegend": True},
    )


def _matrix(plot: MatrixPlot) -> _Panel:
    form = ".2%" if plot.percent else ".4g"
    column, row = ("%{x}", "%{y}") if plot.has_names else ("%{x:,}", "%{y:,}")
    where = f"{plot.y_label} {row}, {plot.x_label} {column}"
    is_empty = not np.isfinite(plot.values).any()  # plotly leaves out a heat map without numbers
    scale = looks.colour_scale(DISTANCE_MAP, power=1.0 if plot.colour == "linear" else 2.0)
    heat = go.Heatmap(
        x=list(plot.places),
        y=list(plot.row_places),
        z=np.where(is_empty, 0.0, plot.values).astype(np.float32),
        opacity=0.0 if is_empty else 1.0,
        showscale=not is_empty,
        hoverinfo="skip" if is_empty else None,
        zmin=0.0,
        zmax=plot.most,
        text=looks.cell_texts(plot) or None,
        texttemplate="%{text}" if plot.texts else None,
        colorscale=scale,
        colorbar={
            "title": {"text": _text(plot.value_label), "side": "right"},
            "thickness": 14,
            "tickformat": ".0%" if plot.percent else None,
        },
        hovertemplate=f"{_text(where)}: %{{z:{form}}}<extra></extra>",
    )
    named = {"type": "category", "nticks": 0} if plot.has_names else {"tickformat": ",d"}
    y_axis = {"autorange": "reversed"} if plot.has_names else {}
    return _Panel(
        [heat],
        {"title": _text(plot.x_label), "constrain": "domain", "nticks": 4, **named},
        {
            "title": _text(plot.y_label),
            "constrain": "domain",
            **({"scaleanchor": "x"} if plot.rows is None else {}),
            **named,
            **y_axis,
        },
    )


def _path(plot: PathPlot) -> _Panel:
    in_space = plot.points.shape[1] == 3
    names = [_text(name) for name in plot.names]
    draw = go.Scatter3d if in_space else go.Scatter
    columns = dict(zip("xyz", plot.points.T, strict=False))
    points = draw(
        **columns,
        mode="lines+markers",
        showlegend=False,
        line={"color": "#999999", "width": 1},
        marker=looks.coloured_by(plot.steps, size=4 if in_space else 7),
        text=names,
        hovertemplate="%{text}<extra></extra>",
    )
    start = draw(
        **{axis: column[:1] for axis, column in columns.items()},
        mode="markers",
        name=names[0],
        showlegend=True,
        marker={"size": 8 if in_space else 13, "color": LINE_COLOURS[0]},
        hovertemplate="%{fullData.name}<extra></extra>",
    )
    titles = {axis: _text(label) for axis, label in zip("xyz", plot.labels, strict=False)}
    if in_space:
        scene = {f"{axis}axis": {"title": {"text": title}} for axis, title in titles.items()}
        layout = {"margin": {"l": 0, "r": 0, "b": 0}, "legend": {"y": 0, "yanchor": "bottom"}}
        return _Panel([points, start], scene=scene, layout=layout)
    y_axis = {"title": titles["y"], "scaleanchor": "x", "scaleratio": 1}
    return _Panel([points, start], {"title": titles["x"]}, y_axis)


def _text(label: str) -> str:
    """Return a label with its symbols in italics, and letters that plotly would read as HTML."""
    return re.sub(r"\*(.+?)\*", r"<i>\1</i>", escape(label, quote=False))
