"""analyse(): all that is said of the kernel's motion in one run, as one value.

Command line, figures and report print and draw this value, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from conescope.errors import DataError
from conescope.kernel.distance import Float64Array
from conescope.kernel.series import KernelSeries
from conescope.report.analysis.noise import NoiseTest, Stretch, motion_in, noise_tests, stretches
from conescope.report.summary import default_lags
from conescope.runs.reader import Run
from conescope.statistics.alignment import AlignmentSeries, alignments
from conescope.statistics.attribution import Attribution, attribution
from conescope.statistics.cone import Cone, cone
from conescope.statistics.cone.verdict import ENOUGH
from conescope.statistics.spectrum import SpectrumSeries, sharpness, spectra
from conescope.statistics.uncertainty import SampledDistance, sampled_distance
from conescope.training.data import choose_probe, load_data
from conescope.training.recipe import Recipe

SAMPLED = 40
"""Kernels of a curve that get error bars; each costs n² a resampled probe."""

SMALLEST_PROBE = 10
"""Images from which a probe is resampled."""


@dataclass(frozen=True)
class SampledCurve:
    """S along training, with error bars over the choice of probe images.

    Attributes:
        to: what S is measured to, as a label: "H(0)" or "H(t + 100)".
        steps: [P], iterations t.
        found: S at each of them.
    """

    to: str
    steps: np.ndarray
    found: Sequence[SampledDistance]


@dataclass(frozen=True)
class Curvature:
    """The kernel's largest eigenvalue as a curvature, against what the optimiser stands.

    Attributes:
        sharpness: [T], as `metrics.spectrum.sharpness`.
        limit: [T], 2 (1 + β) / η of gradient descent with learning rate η and momentum β (Cohen
            et al., arXiv:2103.00065); NaN before the first evaluation, and everywhere for
            optimisers that rescale the gradient, which have another limit.
    """

    sharpness: Float64Array
    limit: Float64Array


@dataclass(frozen=True)
class Analysis:
    """What is said of the motion of a run's kernel.

    Attributes:
        run: the run.
        cone: verdict, and its numbers with intervals. Where the learning rate drops, they are of
            the first stretch between drops with at least 20 kernels, else of the longest.
        stretches: the parts of the run between drops of its learning rate.
        noise: what the motion becomes with less of SGD's noise; empty if neither averaged
            weights nor a drop can tell.
        velocity: [T − 1], v(t) = S(t, t + dt) / dt between neighbouring kernels (eq. 5).
        sampled: S to the first kernel, and between kernels a usual gap apart, with error bars;
            empty if the probe has fewer than ten images.
        spectrum: eigenvalues over training.
        alignment: with labels and the first kernel; None if the labels are not known.
        curvature: None if the number of outputs is not known.
        movements: stretch of training → who moved the kernel there.
    """

    run: Run
    cone: Cone
    stretches: Sequence[Stretch]
    noise: Sequence[NoiseTest]
    velocity: Float64Array
    sampled: Sequence[SampledCurve]
    spectrum: SpectrumSeries
    alignment: AlignmentSeries | None
    curvature: Curvature | None
    movements: Mapping[str, Attribution]


def analyse(run: Run, labels: Tensor | None = None) -> Analysis:
    """Analyse the motion of a run's kernel.

    Args:
        run: with at least ten kernels.
        labels: [n], the classes of the probe's images, if they are known.

    Raises:
        KernelError: if there are fewer than ten kernels at one learning rate, some are identical
            or hold NaN, or the labels do not fit.
    """
    series, parts = run.series, stretches(run)
    main = max(parts, key=lambda part: min(part.kernels, ENOUGH))
    found = cone(series, span=(main.first, main.last))
    cones = [found if part is main else motion_in(series, part) for part in parts]
    spectrum = spectra(series.steps, series.kernels)
    neighbours = np.diagonal(series.distances(), 1)
    return Analysis(
        run=run,
        cone=found,
        stretches=parts,
        noise=noise_tests(run, parts, cones, found),
        velocity=neighbours / np.diff(series.steps),
        sampled=_sampled(series),
        spectrum=spectrum,
        alignment=None if labels is None else alignments(series.steps, series.kernels, labels),
        curvature=_curvature(run, spectrum, labels),
        movements=_movements(series, found, labels),
    )


def known_labels(run: Run) -> Tensor | None:
    """The classes of the probe's images, [n], as stored or from the recipe's data; None if unknown.

    Nothing is downloaded.
    """
    recipe = run.recipe
    if run.labels is not None or not isinstance(recipe, Recipe):
        return run.labels
    if recipe.data.path is None and recipe.data.name != "digits":
        return None
    try:
        data = load_data(recipe.data)
    except DataError:
        return None
    split = data.split(recipe.probe.split)
    return split.labels[choose_probe(split, recipe.probe, data.classes, recipe.seed)]


def _sampled(series: KernelSeries) -> list[SampledCurve]:
    if series.kernels[0].values.shape[0] < SMALLEST_PROBE:
        return []
    steps = np.array(series.steps)
    curves = [(f"H({steps[0]:,})", [(step, steps[0]) for step in _spread(steps[1:])])]
    for dt in default_lags(series)[:1]:
        starts, _ = series.distances_after(dt)
        curves.append((f"H(t + {dt:,})", [(step, step + dt) for step in _spread(starts)]))
    return [SampledCurve(to, *_along(series, pairs)) for to, pairs in curves]


def _along(
    series: KernelSeries, pairs: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, list[SampledDistance]]:
    kernel = dict(zip(series.steps, series.kernels, strict=True))
    steps = np.array([step for step, _ in pairs])
    return steps, [sampled_distance(kernel[step], kernel[other]) for step, other in pairs]


def _spread(steps: np.ndarray) -> list[int]:
    """At most `SAMPLED` of the steps, spread over all of them."""
    places = np.linspace(0, len(steps) - 1, min(SAMPLED, len(steps)))
    return [int(steps[round(place)]) for place in places]


def _curvature(run: Run, spectrum: SpectrumSeries, labels: Tensor | None) -> Curvature | None:
    if labels is None or not isinstance(run.recipe, Recipe):
        return None  # another model's outputs need not be the classes of its probe
    kernel, optimizer = run.series.kernels[0], run.recipe.optimizer
    limit = np.full(len(spectrum.steps), np.nan)
    evaluated = np.asarray(run.scalars["step"])
    if optimizer.name == "sgd" and len(evaluated):
        newest = np.searchsorted(evaluated, spectrum.steps, side="right") - 1
        rates = np.asarray(run.scalars["learning_rate"])[np.maximum(newest, 0)]
        limit = np.where(newest >= 0, 2 * (1 + optimizer.momentum) / rates, np.nan)
    top = spectrum.eigenvalues[:, 0]
    return Curvature(np.asarray(sharpness(top, kernel, int(labels.max()) + 1)), limit)


def _movements(series: KernelSeries, found: Cone, labels: Tensor | None) -> dict[str, Attribution]:
    first, last = series.steps[0], series.steps[-1]
    spans = {(first, last)}
    if found.boundary is not None:
        spans |= {(first, found.first), (found.first, found.last)}
    kernel = dict(zip(series.steps, series.kernels, strict=True))
    return {
        f"{start:,} to {stop:,}": attribution(kernel[start], kernel[stop], labels)
        for start, stop in sorted(spans)
        if start < stop
    }
