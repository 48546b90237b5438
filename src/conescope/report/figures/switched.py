"""The result of a switch experiment, figure 2 of the paper."""

from __future__ import annotations

from dataclasses import replace
from textwrap import wrap

import numpy as np

from conescope.experiments.switch import SwitchResult
from conescope.kernel.distance import Float64Array
from conescope.report.plot import Line, LinePlot, Mark, Panels

_NOTE_WIDTH = 60
"""Letters of a line of the note, as many as the figure is wide."""

_WIDE = 20
"""From this ratio on, losses are shown by their logarithm: one that diverged hides all others."""

_LABELS = {"linearised": "linearised from *t*", "standard": "not linearised, restarted at *t*"}


def switched(result: SwitchResult, note: str = "") -> Panels:
    """Return the plot of test accuracy and loss at T against t (arXiv:2503.16316, figure 2).

    Args:
        result: the results of the experiment.
        note: text below the figure.
    """
    loss = _plot(result, "test_loss", "test loss at *T*")
    least, most = _extremes(loss)
    if least > 0 and most > _WIDE * least:
        loss = replace(loss, y_scale="log")
    runs = len(result.parents["test_loss"])
    spread = f"mean and range of {runs} runs" if runs > 1 else "one run"
    return Panels(
        title="What is lost when training is linearised",
        caption="Test accuracy and test loss at iteration T of trainings that are linearised from "
        "iteration t on, of the same without linearisation (the control), and of the runs they "
        "start from (figure 2). Lines are means over runs, bands go from the lowest run to the "
        "highest; trainings that diverged are crosses and do not enter the line.",
        panels=[_plot(result, "test_accuracy", "test accuracy at *T*", percent=True), loss],
        note="\n".join([f"T = {result.until:,} iterations, {spread}", *wrap(note, _NOTE_WIDTH)]),
    )


def _plot(result: SwitchResult, quantity: str, label: str, *, percent: bool = False) -> LinePlot:
    points = np.array(result.points)
    lines = []
    for colour, (dynamics, name) in enumerate(_LABELS.items(), start=1):
        values, diverged = result.children[dynamics][quantity], result.diverged[dynamics]
        kept = np.where(diverged, np.nan, values)
        holds = ~np.isnan(kept).all(axis=0)
        low, middle, high = _range(kept[:, holds])
        style = "dashed" if dynamics == "standard" else "solid"
        lines.append(Line(name, points[holds], middle, low, high, style, colour))
        rows, columns = np.nonzero(diverged & ~np.isnan(values))
        if len(rows):
            lost = values[rows, columns]
            lines.append(Line("diverged", points[columns], lost, style="crosses", colour=colour))
    low, middle, high = (float(end[0]) for end in _range(result.parents[quantity][:, None]))
    return LinePlot(
        title=quantity.replace("_", " ").capitalize(),
        caption=f"The {quantity.replace('_', ' ')} at iteration T against the switch point t.",
        x_label="switch point *t* (iterations)",
        y_label=label,
        lines=lines,
        marks=[Mark("never linearised", "y", middle, low, high)],
        from_zero=False,
        percent=percent,
    )


def _extremes(plot: LinePlot) -> tuple[float, float]:
    values = [
        part for line in plot.lines for part in (line.y, line.low, line.high) if part is not None
    ]
    values += [np.array([mark.low, mark.high]) for mark in plot.marks]
    together = np.concatenate(values)
    return float(np.nanmin(together)), float(np.nanmax(together))


def _range(values: Float64Array) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Return the lowest, mean and highest of the runs that have a value; from [R, P] to [P]."""
    return np.nanmin(values, axis=0), np.nanmean(values, axis=0), np.nanmax(values, axis=0)
