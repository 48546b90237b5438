"""The distances of perturbed children at the end of a training: the chaos effect."""

from __future__ import annotations

import numpy as np

from conescope.experiments.perturb import PerturbationResult
from conescope.kernel.distance import Float64Array
from conescope.report.plot import Line, LinePlot, Mark, Panels


def perturbed(result: PerturbationResult) -> Panels:
    """Return the plot of distances at T against the iteration t of the perturbation."""
    seeds = result.kernels.shape[1]
    first = Mark("first difference", "y", *[result.size] * 3, style="dashed")
    weights = _plot(
        result,
        "Weights",
        "Norm of the difference of the weights at iteration T, relative to the run's.",
        "distance of weights at *T*",
        (result.weights, result.weights_between),
        [first],
    )
    kernels = _plot(
        result,
        "Kernels",
        "Kernel distance S (eq. 4) at iteration T.",
        "kernel distance *S* at *T*",
        (result.kernels, result.kernels_between),
        [],
    )
    return Panels(
        title="What becomes of a small difference",
        caption=f"Distances at iteration T = {result.until:,} between a run and children that "
        f"continue it from iteration t with weights moved by {result.size:g} of their norm in a "
        f"random direction, and between two such children. Lines are means over {seeds} "
        f"directions, bands go from the lowest to the highest; children that diverged do not "
        f"enter.",
        panels=[weights, kernels],
        note=f"T = {result.until:,} iterations, {seeds} directions, size {result.size:g}",
    )


def _plot(
    result: PerturbationResult,
    title: str,
    caption: str,
    label: str,
    values: tuple[Float64Array, Float64Array],
    marks: list[Mark],
) -> LinePlot:
    points = np.array(result.points)
    lines = []
    for name, found in zip(("child to run", "child to child"), values, strict=True):
        holds = ~np.isnan(found).all(axis=1)
        if holds.any():
            kept = found[holds]
            low, mean, high = (f(kept, axis=1) for f in (np.nanmin, np.nanmean, np.nanmax))
            lines.append(Line(name, points[holds], mean, low, high))
    empty = Line("all diverged", points, np.full(len(points), np.nan))
    return LinePlot(
        title=title,
        caption=caption,
        x_label="perturbed at *t* (iterations)",
        y_label=label,
        lines=lines or [empty],
        marks=marks,
        y_scale="readable",
    )
