"""The paper's plots of a run, as matplotlib figures fit for one column of a paper."""

from __future__ import annotations

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

from conescope.kernel.series import KernelSeries
from conescope.report.figures.style import DISTANCE_MAP, ITERATION_MAP, PAPER, Style, in_force
from conescope.report.summary import (
    Curves,
    curves_after,
    curves_from,
    evaluations,
    readable_scale,
    require_pair,
)
from conescope.runs.reader import Run


def distance_from(
    series: KernelSeries, taus: Sequence[int] | None = None, style: Style = PAPER
) -> Figure:
    """Distance S(θ(t), θ(τ)) to fixed kernels (arXiv:2503.16316, figure 1a).

    Args:
        series: at least two kernels.
        taus: steps at which there are kernels; by default the first and four more.
        style: matplotlib's rc parameters for this figure.

    Raises:
        KernelError: if there are fewer than two kernels, or none at some τ.
    """
    with in_force(style):
        figure = Figure()
        _draw_distance_from(figure, curves_from(series, taus))
        return figure


def distance_after(
    series: KernelSeries, lags: Sequence[int] | None = None, style: Style = PAPER
) -> Figure:
    """Distance S(θ(t), θ(t + dt)) between neighbours (arXiv:2503.16316, figure 1b).

    Args:
        series: at least two kernels.
        lags: numbers of iterations dt; by default multiples of the usual gap between kernels.
        style: matplotlib's rc parameters for this figure.

    Raises:
        KernelError: if there are fewer than two kernels, or none that are some dt apart.
    """
    with in_force(style):
        figure = Figure()
        _draw_distance_after(figure, curves_after(series, lags))
        return figure


def embedding(series: KernelSeries, dimensions: Literal[2, 3] = 2, style: Style = PAPER) -> Figure:
    """The kernels as points whose distances are chords √(2S) (arXiv:2503.16316, figure 1c).

    Args:
        series: at least two different kernels. The first is black; later ones are darker.
        dimensions: 2 or 3.
        style: matplotlib's rc parameters for this figure.

    Raises:
        KernelError: if there are fewer than two kernels, or they are all the same.
    """
    with in_force(style):
        width = matplotlib.rcParams["figure.figsize"][0]
        figure = Figure(figsize=(width, width))
        _draw_embedding(figure, series, dimensions)
        return figure


def overview(series: KernelSeries, style: Style = PAPER) -> Figure:
    """The three plots side by side, as the paper has them (arXiv:2503.16316, figures 1 and 3).

    Args:
        series: at least two different kernels.
        style: matplotlib's rc parameters for this figure.

    Raises:
        KernelError: if there are fewer than two kernels, none that are a usual gap apart, or
            they are all the same.
    """
    with in_force(style):
        width, height = matplotlib.rcParams["figure.figsize"]
        figure = Figure(figsize=(2.7 * width, 1.2 * height))
        left, middle, right = figure.subfigures(1, 3, squeeze=False)[0]
        _draw_distance_from(left, curves_from(series))
        _draw_distance_after(middle, curves_after(series))
        _draw_embedding(right, series, 2)
        return figure


def distance_matrix(series: KernelSeries, style: Style = PAPER) -> Figure:
    """Distance S between every two kernels, on axes of real iterations.

    Colour is linear in the chord √(2S) between unit-length kernels, so that the small late
    distances show beside the large early ones.

    Args:
        series: at least two kernels.
        style: matplotlib's rc parameters for this figure.

    Raises:
        KernelError: if there are fewer than two kernels.
    """
    require_pair(series)
    edges = _cell_edges(series.steps)
    distances = series.distances()
    norm = PowerNorm(0.5, vmin=0.0, vmax=float(distances.max()) or 1.0)
    with in_force(style):
        figure = Figure()
        axes = figure.add_subplot(aspect="equal")
        axes.grid(False)
        cells = axes.pcolormesh(
            edges, edges, distances, cmap=DISTANCE_MAP, norm=norm, rasterized=True
        )
        axes.set(xlabel="iteration $t$", ylabel="iteration $s$")
        format_iterations(axes.xaxis, axes.yaxis)
        figure.colorbar(cells, label=_distance_label("s"))
        return figure


def training(run: Run, style: Style = PAPER) -> Figure:
    """Loss on training and test data, and test accuracy, against iterations.

    Args:
        run: a run that has been evaluated at least once.
        style: matplotlib's rc parameters for this figure.

    Raises:
        TrainingError: if nothing has been evaluated yet.
    """
    scalars = evaluations(run)
    with in_force(style):
        figure = Figure()
        upper, lower = figure.subplots(2, sharex=True)
        for name in ("train_loss", "test_loss"):
            _line(upper, scalars["step"], scalars[name], name.removesuffix("_loss"))
        upper.set(ylabel="loss")
        if readable_scale([scalars["train_loss"], scalars["test_loss"]]) == "log":
            format_logarithm(upper)
        upper.legend()
        _line(lower, scalars["step"], scalars["test_accuracy"], "test")
        lower.set(xlabel="iteration $t$", ylabel="test accuracy")
        lower.yaxis.set_major_formatter(PercentFormatter(1.0))
        format_iterations(lower.xaxis)
        return figure


def _draw_distance_from(figure: FigureBase, curves: Curves) -> None:
    _draw_distance_lines(figure, curves, r"\tau", r"\tau", "linear")


def _draw_distance_after(figure: FigureBase, curves: Curves) -> None:
    scale = readable_scale(values for _, values in curves.values())
    _draw_distance_lines(figure, curves, "t + dt", "dt", scale)


def _draw_embedding(figure: FigureBase, series: KernelSeries, dimensions: Literal[2, 3]) -> None:
    points = series.embedding(dimensions)
    columns = points.coordinates.T
    axes: Any = _axes_in_space(figure) if dimensions == 3 else figure.add_subplot()
    options = {"depthshade": False} if dimensions == 3 else {}
    axes.plot(*columns, color="#888888", linewidth=0.5, zorder=1)
    dots = axes.scatter(
        *columns[:, 1:],
        c=series.steps[1:],
        cmap=ITERATION_MAP,
        vmin=series.steps[0],
        vmax=series.steps[-1],
        s=12,
        zorder=2,
        **options,
    )
    first = f"$H({series.steps[0]})$"
    axes.scatter(*columns[:, :1], c="black", s=36, zorder=3, label=first, **options)
    unit = " of variance" if dimensions == 2 else ""
    for number, (axis, share) in enumerate(zip("xyz", points.shares, strict=False), start=1):
        axes.set(**{f"{axis}label": f"axis {number} ({share:.0%}{unit})"})
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend()
    bar = figure.colorbar(dots, location="top", aspect=40, pad=0.02, label="iteration $t$")
    format_iterations(bar.ax.xaxis)


def _axes_in_space(figure: FigureBase) -> Any:
    """Axes in three dimensions, with labels close enough to stay within a small figure."""
    axes: Any = figure.add_subplot(projection="3d", computed_zorder=False)
    axes.set_box_aspect((1, 1, 1), zoom=0.78)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_major_locator(MaxNLocator(nbins=4))
        axis.set_tick_params(pad=1)
        axis.labelpad = 3
    return axes


def _draw_distance_lines(
    figure: FigureBase, curves: Curves, other: str, symbol: str, scale: str
) -> None:
    """Lines of S(θ(t), θ(`other`)), one for each value of `symbol`."""
    axes = figure.add_subplot(xlabel="iteration $t$", ylabel=_distance_label(other))
    for value, (steps, distances) in curves.items():
        _line(axes, steps, distances, f"${symbol}$ = {value:,}")
    if scale == "log":
        format_logarithm(axes)
    else:
        axes.set_ylim(bottom=0.0)
    format_iterations(axes.xaxis)
    figure.legend(loc="outside upper center", ncols=3)


def _line(axes: Axes, steps: np.ndarray, values: np.ndarray, label: str) -> None:
    """A line; its points are marked as long as they can be told apart."""
    axes.plot(steps, values, label=label, marker="." if len(steps) <= 25 else "")


def _distance_label(other: str) -> str:
    return rf"$S(\theta(t),\, \theta({other}))$"


def format_logarithm(axes: Axes, which: Literal["x", "y"] = "y") -> None:
    """A logarithmic axis with plain numbers: 1, 2, 5 a decade, or 1 if decades are many."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axis.set_major_formatter(StrMethodFormatter("{x:,g}" if which == "x" else "{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def format_iterations(*axes: Axis) -> None:
    """Few ticks at whole iterations, with separators of thousands."""
    for axis in axes:
        axis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _cell_edges(steps: Sequence[int]) -> np.ndarray:
    """Edges of cells around T steps: halfway between neighbours, and the two ends; [T + 1]."""
    middles = (np.array(steps[:-1]) + np.array(steps[1:])) / 2
    return np.array([steps[0], *middles, steps[-1]])
