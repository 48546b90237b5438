"""The figures of `report.figures` as interactive plotly charts: same curves, same colours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.colors import Colormap, to_hex
from plotly.subplots import make_subplots

from conescope.kernel.series import KernelSeries
from conescope.report.figures.style import DISTANCE_MAP, ITERATION_MAP, LINE_COLOURS
from conescope.report.summary import (
    Curves,
    curves_after,
    curves_from,
    evaluations,
    readable_scale,
    require_pair,
)
from conescope.runs.reader import Run

DASHES = ("solid", "dash", "dot")

LINEAR = {"type": "linear", "rangemode": "tozero"}

ITERATIONS: Mapping[str, Any] = MappingProxyType({"title": "iteration t", "tickformat": ",d"})

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
            "camera": {"eye": {"x": 1.25, "y": -2.15, "z": 1.25}, "center": {"z": -0.2}},
            "aspectmode": "data",
            "xaxis": _SPACE_AXIS,
            "yaxis": _SPACE_AXIS,
            "zaxis": _SPACE_AXIS,
        },
    }
)
"""Looks of all charts; the camera stands where matplotlib's does."""


@dataclass(frozen=True)
class Chart:
    """An interactive figure, and what it shows.

    Attributes:
        title: a heading.
        caption: what is drawn, by which equation, and how to read it.
        draw: gives the chart of a run; raises `KernelError` or `TrainingError` if the run is
            too short for it.
    """

    title: str
    caption: str
    draw: Callable[[Run], go.Figure]


def distance_from(series: KernelSeries) -> go.Figure:
    """S(θ(t), θ(τ)) against t, one line for each τ."""
    return _distance_lines(curves_from(series), "τ", "τ", LINEAR)


def distance_after(series: KernelSeries) -> go.Figure:
    """S(θ(t), θ(t + dt)) against t, one line for each dt."""
    curves = curves_after(series)
    axis = scale([values for _, values in curves.values()])
    return _distance_lines(curves, "t + dt", "dt", axis)


def embedding_2d(series: KernelSeries) -> go.Figure:
    """The kernels as points in a plane, with one scale for both axes."""
    points = series.embedding(2)
    x, y = points.coordinates.T
    chart = go.Figure(
        [
            go.Scatter(x=x, y=y, **_path(series, size=7)),
            go.Scatter(x=x[:1], y=y[:1], **_start(series, size=13)),
        ]
    )
    titles = _axis_titles(points.shares)
    chart.update_layout(template=TEMPLATE, xaxis_title=titles[0], yaxis_title=titles[1])
    chart.update_yaxes(scaleanchor="x", scaleratio=1)
    return chart


def embedding_3d(series: KernelSeries) -> go.Figure:
    """The kernels as points in space, with one scale for all axes."""
    points = series.embedding(3)
    x, y, z = points.coordinates.T
    chart = go.Figure(
        [
            go.Scatter3d(x=x, y=y, z=z, **_path(series, size=4)),
            go.Scatter3d(x=x[:1], y=y[:1], z=z[:1], **_start(series, size=8)),
        ]
    )
    titles = zip("xyz", _axis_titles(points.shares), strict=True)
    scene = {f"{axis}axis": {"title": {"text": title}} for axis, title in titles}
    chart.update_layout(template=TEMPLATE, scene=scene)
    chart.update_layout(margin={"l": 0, "r": 0, "b": 0}, legend={"y": 0, "yanchor": "bottom"})
    return chart


def distance_matrix(series: KernelSeries) -> go.Figure:
    """S between every two kernels; colour is linear in the chord √(2S)."""
    require_pair(series)
    heat = go.Heatmap(
        x=series.steps,
        y=series.steps,
        z=series.distances().astype(np.float32),
        zmin=0.0,
        colorscale=colour_scale(DISTANCE_MAP, power=2.0),
        colorbar={"title": "S", "thickness": 14},
        hovertemplate="S(θ(%{x:,}), θ(%{y:,})) = %{z:.4g}<extra></extra>",
    )
    chart = go.Figure(heat)
    chart.update_layout(template=TEMPLATE, xaxis=dict(ITERATIONS), yaxis=dict(ITERATIONS))
    chart.update_xaxes(constrain="domain", nticks=4)
    chart.update_yaxes(title="iteration s", scaleanchor="x", constrain="domain")
    return chart


def training(run: Run) -> go.Figure:
    """Loss and accuracy against iterations, one above the other."""
    scalars = evaluations(run)
    chart = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.08)
    rows = {"train_loss": 1, "test_loss": 1, "test_accuracy": 2}
    for place, (name, row) in enumerate(rows.items()):
        line = _line(place, scalars["step"], scalars[name], name.replace("_", " "))
        chart.add_trace(line, row=row, col=1)
    losses = [scalars["train_loss"], scalars["test_loss"]]
    chart.update_layout(template=TEMPLATE, hovermode="x unified")
    chart.update_yaxes(title="loss", row=1, **scale(losses))
    chart.update_yaxes(title="test accuracy", tickformat=".0%", row=2)
    chart.update_xaxes(**ITERATIONS, row=2)
    return chart


CHARTS: Mapping[str, Chart] = MappingProxyType(
    {
        "distance-from": Chart(
            "Distance to fixed kernels",
            "Kernel distance S(θ(t), θ(τ)) (eq. 4) between the kernel at iteration t and the one "
            "at a fixed τ, as figure 1a of the paper. Inside the cone a line with a late τ rises "
            "at first and then stays nearly constant; where it goes on rising, the kernel drifts "
            "away.",
            lambda run: distance_from(run.series),
        ),
        "distance-after": Chart(
            "Distance between neighbours",
            "Kernel distance S(θ(t), θ(t + dt)) (eq. 4) between kernels dt iterations apart, as "
            "figure 1b; divided by dt it is the kernel velocity v(t) (eq. 5). Lazy training would "
            "bring it to zero; in the cone it drops early to a low floor above zero that hardly "
            "depends on dt. Exactly 0 says that two kernels are the same numbers.",
            lambda run: distance_after(run.series),
        ),
        "embedding-2d": Chart(
            "The kernels in a plane",
            "Each kernel H(t), scaled to unit length, as a point: classical multidimensional "
            "scaling, where distances between points stand for the chords √(2S) (S by eq. 4), as "
            "figure 1c. The first kernel is black, later is darker; each axis says its share of "
            "the variance.",
            lambda run: embedding_2d(run.series),
        ),
        "embedding-3d": Chart(
            "The kernels in space",
            "The same points with a third axis (figure 1c). Drag to turn.",
            lambda run: embedding_3d(run.series),
        ),
        "distance-matrix": Chart(
            "Distances between all kernels",
            "S(θ(t), θ(s)) (eq. 4) for every two kernels; every other figure of kernels is read "
            "off this matrix. A pale square on the diagonal is a stretch of training in which the "
            "kernel stays within a small region. Colour is linear in the chord √(2S).",
            lambda run: distance_matrix(run.series),
        ),
        "training": Chart(
            "Loss and accuracy",
            "Loss on training and test data, and the share of test data classified correctly.",
            training,
        ),
    }
)
"""Name → chart, named as the files of `conescope.report.figures.save_figures`."""


def _distance_lines(curves: Curves, other: str, symbol: str, axis: dict[str, Any]) -> go.Figure:
    lines = [
        _line(place, steps, distances, f"{symbol} = {value:,}")
        for place, (value, (steps, distances)) in enumerate(curves.items())
    ]
    chart = go.Figure(lines)
    chart.update_layout(template=TEMPLATE, xaxis=dict(ITERATIONS), hovermode="x unified")
    chart.update_yaxes(title=f"S(θ(t), θ({other}))", **axis)
    return chart


def _line(place: int, steps: np.ndarray, values: np.ndarray, name: str) -> go.Scatter:
    return go.Scatter(
        x=steps,
        y=values,
        name=name,
        mode="lines+markers" if len(steps) <= 25 else "lines",
        hovertemplate="%{y:.4g}",
        line={
            "color": LINE_COLOURS[place % len(LINE_COLOURS)],
            "dash": DASHES[place // len(LINE_COLOURS) % len(DASHES)],
            "width": 1.8,
        },
    )


def _path(series: KernelSeries, size: int) -> dict[str, Any]:
    """Style of the points of an embedding, coloured by iteration and joined by a thin line."""
    return {
        "mode": "lines+markers",
        "showlegend": False,
        "line": {"color": "#999999", "width": 1},
        "marker": {
            "size": size,
            "color": series.steps,
            "colorscale": colour_scale(ITERATION_MAP),
            "showscale": True,
            "colorbar": {
                "orientation": "h",
                "y": 1.0,
                "yanchor": "bottom",
                "thickness": 10,
                "nticks": 6,
                "tickformat": ",d",
                "title": {"text": "iteration t", "side": "top"},
            },
        },
        "text": [f"H({step:,})" for step in series.steps],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _start(series: KernelSeries, size: int) -> dict[str, Any]:
    """Style of the first point of an embedding."""
    return {
        "mode": "markers",
        "name": f"H({series.steps[0]:,})",
        "showlegend": True,
        "marker": {"size": size, "color": "black"},
        "hovertemplate": "%{fullData.name}<extra></extra>",
    }


def _axis_titles(shares: np.ndarray) -> list[str]:
    return [f"axis {n} ({share:.0%})" for n, share in enumerate(shares, start=1)]


def scale(lines: Sequence[np.ndarray]) -> dict[str, Any]:
    """The y-axis on which these lines are readable."""
    return LINEAR if readable_scale(lines) == "linear" else logarithmic(lines)


def logarithmic(lines: Sequence[np.ndarray]) -> dict[str, Any]:
    """A logarithmic y-axis: with 1, 2, 5 a decade, or 1 if the decades of these lines are many."""
    low, high = (extreme(np.concatenate(lines)) for extreme in (np.nanmin, np.nanmax))
    dtick = "D2" if high < 100 * low else None
    return {"type": "log", "tickformat": ",~g" if low > 1e-4 else "~e", "dtick": dtick}


def colour_scale(colours: Colormap, power: float = 1.0) -> list[tuple[float, str]]:
    """A colour map as plotly's list, its positions raised to a power."""
    return [(u**power, to_hex(colours(u))) for u in np.linspace(0.0, 1.0, 33).tolist()]
