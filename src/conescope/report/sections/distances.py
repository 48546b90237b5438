"""Distances and velocity of the kernel between neighbours, and its distance to the first one."""

from __future__ import annotations

import numpy as np

from conescope.report.plot import Line, LinePlot, with_errors
from conescope.report.run_analysis import RunAnalysis
from conescope.report.sections.section import Content, Section
from conescope.report.summary import about_errors, default_lags, require_pair
from conescope.statistics.uncertainty import numerical_floor


def _content(analysis: RunAnalysis) -> Content:
    series = analysis.run.series
    require_pair(series)
    steps, first = np.array(series.steps), series.steps[0]
    from_first = series.distances_from(first)
    dt = default_lags(series)[0]
    after_steps, after = series.distances_after(dt)
    return Content(
        numbers={"numerical floor of S": f"{numerical_floor(series.measured):.1e}"},
        plots={"cone-velocity": _velocity(analysis)},
        column={"S(last kernel, first kernel)": f"{from_first[-1]:.3g}"},
        compared={
            "from-first": LinePlot(
                title="Distance to the first kernel",
                caption="Kernel distance S(θ(t), θ(0)) (eq. 4) of each run.",
                y_label="*S(θ(t), θ(0))*",
                lines=[Line("", steps, from_first)],
            ),
            "after": LinePlot(
                title="Distance between neighbours",
                caption="Kernel distance S(θ(t), θ(t + dt)) (eq. 4) of each run, dt its usual gap "
                "between kernels.",
                y_label="*S(θ(t), θ(t + dt))*",
                lines=[Line("", after_steps, after)],
                y_scale="readable",
            ),
        },
    )


def _velocity(analysis: RunAnalysis) -> LinePlot:
    """Return the plot of the kernel velocity, with the phase boundary if it can be told."""
    series = analysis.run.series
    steps = np.array(series.steps)
    velocity = np.diagonal(series.distances(), 1) / np.diff(steps)
    errors = None
    if series.draws is not None:
        errors = np.diagonal(series.standard_errors(), 1) / np.diff(steps)
    return LinePlot(
        title="Velocity and phase boundary",
        caption="Kernel velocity v = S(t, t + dt) / dt (eq. 5) between neighbouring kernels. The "
        "phase boundary t* is where a falling velocity becomes a lower constant one, with its "
        "95 % interval; without one, no change point is found." + about_errors(series),
        y_label="*v* (1 / iteration)",
        lines=[with_errors("*v(t)*", (steps[:-1] + steps[1:]) / 2, velocity, errors)],
        marks=analysis.moments,
        y_scale="readable",
    )


SECTION = Section(
    "Distances and velocity",
    "How far the kernel moves from its start, and how fast between neighbouring kernels: S by "
    "eq. 4, and v = S / dt by eq. 5.",
    _content,
)
