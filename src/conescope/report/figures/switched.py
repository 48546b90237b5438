"""The plot of a switch experiment, figure 2 of the paper."""

from __future__ import annotations

from textwrap import wrap

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from conescope.experiments.switch import SwitchResult
from conescope.kernel.distance import Float64Array
from conescope.report.figures.plots import format_iterations, format_logarithm
from conescope.report.figures.style import LINE_COLOURS, PAPER, Style, in_force

_CAPTION_WIDTH = 60
"""Letters of a line of the caption, as many as the figure is wide."""

_WIDE = 20
"""From this ratio on, losses are shown by their logarithm: one that diverged hides all others."""

_LINES = {
    "linearised": (LINE_COLOURS[1], "o", "-", "linearised from $t$"),
    "standard": (LINE_COLOURS[2], "s", "--", "not linearised, restarted at $t$"),
}


def switched(result: SwitchResult, caption: str = "", style: Style = PAPER) -> Figure:
    """Test accuracy and test loss at T against the switch point t (arXiv:2503.16316, figure 2).

    Lines are means over runs, bands go from the lowest run to the highest; children that
    diverged are crosses, and do not enter the line.

    Args:
        result: what the experiment gave.
        caption: a line below the figure.
        style: matplotlib's rc parameters for this figure.
    """
    with in_force(style):
        width, height = matplotlib.rcParams["figure.figsize"]
        figure = Figure(figsize=(width, 1.5 * height))
        upper, lower = figure.subplots(2, sharex=True)
        _draw(upper, result, "test_accuracy")
        _draw(lower, result, "test_loss")
        upper.set(ylabel="test accuracy at $T$")
        upper.yaxis.set_major_formatter(PercentFormatter(1.0))
        lower.set(ylabel="test loss at $T$", xlabel="switch point $t$ (iterations)")
        least, most = lower.dataLim.intervaly
        if least > 0 and most > _WIDE * least:
            format_logarithm(lower)
        format_iterations(lower.xaxis)
        figure.legend(*_one_of_each(upper, lower), loc="outside upper left", ncols=1)
        runs = len(result.parents["test_loss"])
        spread = f"mean and range of {runs} runs" if runs > 1 else "one run"
        notes = f"$T$ = {result.until:,} iterations, {spread}", *wrap(caption, _CAPTION_WIDTH)
        figure.supxlabel("\n".join(notes), fontsize="small")
        return figure


def _draw(axes: Axes, result: SwitchResult, quantity: str) -> None:
    points = np.array(result.points)
    for dynamics, (colour, marker, line, label) in _LINES.items():
        values, diverged = result.children[dynamics][quantity], result.diverged[dynamics]
        kept = np.where(diverged, np.nan, values)
        holds = ~np.isnan(kept).all(axis=0)
        low, middle, high = _range(kept[:, holds])
        axes.fill_between(points[holds], low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(
            points[holds], middle, color=colour, marker=marker, markersize=3.5, linestyle=line,
            label=label,
        )  # fmt: skip
        rows, columns = np.nonzero(diverged & ~np.isnan(values))
        if len(rows):
            axes.scatter(
                points[columns], values[rows, columns], color=colour, marker="x", s=16,
                label="diverged",
            )  # fmt: skip
    low, middle, high = _range(result.parents[quantity][:, None])
    axes.axhspan(low[0], high[0], color="black", alpha=0.12, linewidth=0)
    axes.axhline(middle[0], color="black", linestyle=":", label="never linearised")


def _range(values: Float64Array) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Lowest, mean and highest of the runs that have a value; from [R, P] to [P] each."""
    return np.nanmin(values, axis=0), np.nanmean(values, axis=0), np.nanmax(values, axis=0)


def _one_of_each(*axes: Axes) -> tuple[list, list[str]]:
    found = {}
    for handles, labels in (part.get_legend_handles_labels() for part in axes):
        found |= dict(zip(labels, handles, strict=True))
    return list(found.values()), list(found)
