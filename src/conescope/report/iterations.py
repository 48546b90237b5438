"""A slider over iterations: the kernel, its place, its eigenvalues, the samples that moved it."""

from __future__ import annotations

import base64
import json

import numpy as np
import plotly.graph_objects as go

from conescope.errors import KernelError
from conescope.report.figures.embedding_2d import embedding_2d
from conescope.report.html import captioned, columns, figure_div
from conescope.report.plotly_drawing import chart
from conescope.report.plotly_looks import TEMPLATE, colour_scale
from conescope.report.probe_pictures import samples_by_iteration
from conescope.report.run_analysis import RunAnalysis
from conescope.report.style import DISTANCE_MAP, LINE_COLOURS

_KERNELS = 60
"""Most kernels that the slider stops at, so that a run of any length makes a small page."""

_CELLS = 100
"""Most rows of a kernel's image; a larger kernel is shown by the means of square blocks."""

_SAMPLES = "The samples that moved it most"
_SHARES = (
    "Each sample's share of the squared chord 2 S between the first kernel and the chosen one; the "
    "first kernel itself has none."
)

_CLIPPED = 1.0
"""Per cent of the entries that may lie beyond each end of the colours."""


def kernels_by_iteration(analysis: RunAnalysis) -> str:
    """Return HTML of a slider with the kernel, its place in the plane, its eigenvalues and samples.

    Empty where there is one kernel only, or all are the same.
    """
    try:
        path = embedding_2d(analysis.run)
        eigenvalues = analysis.spectra.eigenvalues / analysis.spectra.trace[:, None]
    except KernelError:
        return ""
    places = np.unique(
        np.linspace(0, len(path.steps) - 1, min(_KERNELS, len(path.steps))).round().astype(int)
    )
    images = np.stack([_image(analysis, place) for place in places.tolist()])
    low, high = np.percentile(images, [_CLIPPED, 100 - _CLIPPED]).tolist()
    high = max(high, low + 1e-12)
    levels = np.clip((images - low) / (high - low) * 255, 0, 255).round().astype(np.uint8)
    samples, leading = samples_by_iteration(analysis, places.tolist())
    data = {
        "samples": leading,
        "steps": [path.steps[place] for place in places],
        "cells": images.shape[1],
        "low": low,
        "high": high,
        "levels": base64.b64encode(levels.tobytes()).decode(),
        "points": path.points[places].tolist(),
        "eigenvalues": eigenvalues[places].tolist(),
    }
    last = len(places) - 1
    marked = chart(path).add_trace(
        go.Scatter(
            x=path.points[-1:, 0], y=path.points[-1:, 1], mode="markers", showlegend=False,
            hoverinfo="skip",
            marker={"size": 18, "symbol": "circle-open", "color": LINE_COLOURS[2],
                    "line": {"width": 3}},
        )
    )  # fmt: skip
    bodies = (
        captioned("The kernel", figure_div(_heat_map(images[-1], low, high), "slider-kernel"),
                  _kernel_caption(analysis, images.shape[1])),
        captioned("Its place in the plane", figure_div(marked, "slider-place"),
                  "The kernels as in figure 1c; the ring is the chosen one."),
        captioned("Its eigenvalues", figure_div(_spectrum(eigenvalues), "slider-spectrum"),
                  "The largest eigenvalues as shares of the trace, beside those of the first "
                  "kernel."),
    )  # fmt: skip
    return (
        f'<p class="slider"><label for="iteration">Iteration <output id="iteration-shown">'
        f"{path.steps[-1]:,}</output></label>"
        f'<input type="range" id="iteration" min="0" max="{last}" value="{last}" '
        f'aria-valuetext="iteration {path.steps[-1]:,}"></p>'
        f"{columns(bodies)}{samples and captioned(_SAMPLES, samples, _SHARES)}"
        f'<script type="application/json" id="iteration-data">{json.dumps(data)}</script>'
    )


def _image(analysis: RunAnalysis, place: int) -> np.ndarray:
    """Return a kernel over its mean diagonal entry, sorted by class, of at most `_CELLS` rows."""
    matrix = analysis.run.series.kernels[place].matrix.double().cpu().numpy()
    if analysis.labels is not None:
        rows_of = len(matrix) // len(analysis.labels)
        order = np.argsort(np.repeat(analysis.labels.numpy(), rows_of), kind="stable")
        matrix = matrix[np.ix_(order, order)]
    matrix = matrix / np.diag(matrix).mean()
    begins = np.unique(np.linspace(0, len(matrix), _CELLS, endpoint=False).astype(int))
    sizes = np.diff([*begins, len(matrix)])
    blocks = np.add.reduceat(np.add.reduceat(matrix, begins, axis=0), begins, axis=1)
    return blocks / np.outer(sizes, sizes)


def _kernel_caption(analysis: RunAnalysis, cells: int) -> str:
    samples = len(analysis.run.series.kernels[0].matrix)
    order = "" if analysis.labels is None else ", sorted by class"
    blocks = "" if cells == samples else f" in {cells} × {cells} blocks of their means"
    return (
        f"Entries K(x, x′) over the mean of the diagonal, for the {samples} rows of the probe"
        f"{order}{blocks}. All kernels have one scale of colours, which leaves out "
        f"{_CLIPPED:g} % of the entries at each end."
    )


def _heat_map(image: np.ndarray, low: float, high: float) -> go.Figure:
    heat = go.Heatmap(
        z=image.astype(np.float32),
        zmin=low,
        zmax=high,
        colorscale=colour_scale(DISTANCE_MAP),
        colorbar={"thickness": 14},
        hovertemplate="row %{y}, column %{x}: %{z:.3g}<extra></extra>",
    )
    axis = {"constrain": "domain", "showgrid": False, "title": "sample"}
    return go.Figure(
        heat,
        layout={
            "template": TEMPLATE,
            "xaxis": axis,
            "yaxis": {**axis, "autorange": "reversed", "scaleanchor": "x"},
        },
    )


def _spectrum(shares: np.ndarray) -> go.Figure:
    ranks = np.arange(1, shares.shape[1] + 1)
    looks = (
        ("chosen kernel", shares[-1], 2, "circle"),
        ("first kernel", shares[0], 0, "x-thin-open"),
    )
    lines = [
        go.Scatter(
            x=ranks, y=values, name=name, mode="lines+markers",
            line={"color": LINE_COLOURS[colour]}, marker={"symbol": symbol, "size": 8},
            hovertemplate="%{y:.3%}",
        )
        for name, values, colour, symbol in looks
    ]  # fmt: skip
    seen = shares[shares > 0]
    limits = np.log10([float(seen.min()) / 1.5, 1.5 * float(seen.max())]).tolist()
    return go.Figure(
        lines,
        layout={
            "template": TEMPLATE,
            "hovermode": "x unified",
            "xaxis": {"title": "rank <i>k</i>", "dtick": 1 if len(ranks) < 12 else None},
            "yaxis": {"title": "share of the trace", "type": "log", "range": limits,
                      "tickformat": ".2~p", "dtick": "D2" if limits[1] - limits[0] < 3 else 1},
        },
    )  # fmt: skip
