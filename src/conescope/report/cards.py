"""Cards that notebooks show of a run and of a series: a sentence, and a picture or a table."""

from __future__ import annotations

import base64
from html import escape

from conescope.errors import KernelError
from conescope.kernel.series import KernelSeries
from conescope.report.figures.overview import overview
from conescope.report.html import numbers_table
from conescope.report.matplotlib_drawing import draw
from conescope.report.opening import answer
from conescope.report.plot import LinePlot, Plot, with_errors
from conescope.report.summary import curves_from, estimated_by, main_numbers, state
from conescope.runs.reader import Run


def run_card(run: Run) -> str:
    """Return what a run's kernels say and the paper's figure 1; its numbers where that lacks."""
    title = f"<b>{escape(run.name)}</b>, {escape(state(run))}<br>{escape(run.description)}"
    command = f"<code>conescope report {escape(str(run.path))}</code>"
    try:
        said = f"<p>{escape(answer(run))}</p>"
        shown = _picture(overview(run))
    except KernelError as reason:  # too few kernels, or some that are not finite
        said, shown = f"<p>{escape(str(reason))}</p>", ""
        if len(run.series) == 1:
            shown = numbers_table(main_numbers(run))
    return f"<div>{title}{said}{shown}<p>{command} writes a page with the rest.</p></div>"


def series_card(series: KernelSeries) -> str:
    """Return what a series holds, and its distances to some of its kernels."""
    first, last = series.steps[0], series.steps[-1]
    estimated = estimated_by(series)
    title = (
        f"<b>{len(series):,} kernel{'' if len(series) == 1 else 's'}</b> of "
        f"{series.measured[0].values.shape[0]:,} samples, steps {first:,} to {last:,}"
        f"{'' if estimated is None else f', estimated {estimated}'}"
    )
    try:
        shown = _picture(_distances(series))
    except KernelError as reason:
        shown = f"<p>{escape(str(reason))}</p>"
    return f"<div>{title}{shown}</div>"


def _distances(series: KernelSeries) -> LinePlot:
    curves = curves_from(series)
    return LinePlot(
        title="Distance to fixed kernels",
        caption="",
        y_label="*S(θ(t), θ(τ))*",
        lines=[with_errors(f"*τ* = {tau:,}", *curve) for tau, curve in curves.items()],
    )


def _picture(plot: Plot) -> str:
    """Return a plot as an image inside the HTML, on white also where the notebook is dark."""
    drawn = base64.b64encode(draw(plot)._repr_png_()).decode()
    return (
        f'<img alt="{escape(plot.title)}" src="data:image/png;base64,{drawn}" '
        f'style="display: block; max-width: 100%; background: #fff; border-radius: 4px">'
    )
