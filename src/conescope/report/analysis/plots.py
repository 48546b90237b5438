"""All plots of an analysis, and those of several, as values that figures and report draw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from conescope.report.analysis import motion, movement, spectral
from conescope.report.analysis.of_run import Analysis
from conescope.report.plot import ITERATION, Line, LinePlot, Plot
from conescope.report.summary import default_lags, readable_scale


def plots(analysis: Analysis) -> dict[str, Plot]:
    """Name → plot, in the order to show them; those that lack their data are left out."""
    found: dict[str, Plot | None] = {
        "cone-displacement": motion.displacement(analysis),
        "cone-noise": motion.noise(analysis),
        "cone-velocity": motion.velocity(analysis),
        "cone-angle": motion.angle(analysis),
        "cone-error-bars": motion.error_bars(analysis),
        "cone-eigenvalues": spectral.eigenvalues(analysis),
        "cone-effective-rank": spectral.effective_rank(analysis),
        "cone-overlap": spectral.overlap(analysis),
        "cone-alignment": spectral.alignment(analysis),
        "cone-classes": spectral.class_means(analysis),
        "cone-sharpness": spectral.sharpness(analysis),
        "cone-layers": movement.layers(analysis),
        "cone-blocks": movement.blocks(analysis),
        "cone-images": movement.images(analysis),
    }
    return {name: plot for name, plot in found.items() if plot is not None}


def distinct_names(analyses: Sequence[Analysis]) -> list[str]:
    """What to call each run: its folder's name, or its whole path if two have the same name."""
    names = [analysis.run.path.name for analysis in analyses]
    if len(set(names)) == len(names):
        return names
    return [str(analysis.run.path) for analysis in analyses]


def compared(analyses: Sequence[Analysis]) -> tuple[LinePlot, LinePlot, LinePlot]:
    """Runs in one plot each: S to the first kernel, S between neighbours, and displacement."""
    names = distinct_names(analyses)
    from_first, after, displacement = [], [], []
    for name, analysis in zip(names, analyses, strict=True):
        series = analysis.run.series
        steps = np.array(series.steps)
        from_first.append(Line(name, steps, series.distances_from(series.steps[0])))
        for dt in default_lags(series)[:1]:
            after.append(Line(name, *series.distances_after(dt)))
        moved = analysis.cone.displacement
        displacement.append(Line(name, moved.lags, moved.mean))
    return (
        LinePlot(
            "Distance to the first kernel",
            "S(θ(t), θ(0)) (eq. 4) of each run.",
            ITERATION,
            "S(θ(t), θ(0))",
            from_first,
        ),
        LinePlot(
            "Distance between neighbours",
            "S(θ(t), θ(t + dt)) of each run, dt its usual gap between kernels.",
            ITERATION,
            "S(θ(t), θ(t + dt))",
            after,
            y_scale=readable_scale(line.y for line in after),
        ),
        LinePlot(
            "Mean squared displacement",
            "2 S averaged over phase II, against lag.",
            "lag dt (iterations)",
            "mean squared displacement",
            displacement,
            x_scale="log",
            y_scale="log",
        ),
    )
