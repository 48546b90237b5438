"""The kernel's largest eigenvalue as a curvature, against the limit of gradient descent."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from conescope.errors import DataError
from conescope.kernel.distance import Float64Array
from conescope.report.plot import Line, LinePlot
from conescope.report.run_analysis import RunAnalysis
from conescope.report.sections.section import Content, Section
from conescope.report.sections.wording import course
from conescope.statistics.spectrum import sharpness
from conescope.training.data.dataset import is_at_hand, load_data
from conescope.training.recipe import Recipe


def curvature(analysis: RunAnalysis) -> tuple[Float64Array, Float64Array] | None:
    """Return the curvature over training, and the limit below which gradient descent is stable.

    Returns:
        [T], as `statistics.spectrum.sharpness`; and [T], the limit 2 (1 + β) / η of gradient
        descent with learning rate η and momentum β (Cohen et al., arXiv:2103.00065), NaN before
        the first evaluation, and everywhere for optimisers that rescale the gradient. None if the
        number of the network's outputs is not known, which takes a recipe and labels: another
        model's outputs need not be the classes of its probe.

    Raises:
        KernelError: if a kernel is zero or holds NaN.
    """
    run, labels = analysis.run, analysis.labels
    if labels is None or not isinstance(run.recipe, Recipe):
        return None
    outputs = _outputs(run.recipe, labels)
    if outputs is None:
        return None
    spectra, optimizer = analysis.spectra, run.recipe.optimizer
    limit = np.full(len(spectra.steps), np.nan)
    evaluated = np.asarray(run.scalars["step"])
    if optimizer.name == "sgd" and not optimizer.options and len(evaluated):
        newest = np.searchsorted(evaluated, spectra.steps, side="right") - 1
        rates = np.asarray(run.scalars["learning_rate"])[np.maximum(newest, 0)]
        limit = np.where(newest >= 0, 2 * (1 + optimizer.momentum) / rates, np.nan)
    top = spectra.eigenvalues[:, 0]
    return np.asarray(sharpness(top, run.series.kernels[0], outputs)), limit


def _outputs(recipe: Recipe, labels: Tensor) -> int | None:
    """Return the number of the network's outputs, the classes of its data; None if not known.

    A probe that is no stratified one may lack classes, such as bytes that are rare in a text.
    """
    if recipe.probe.stratified or not is_at_hand(recipe.data):
        return int(labels.max()) + 1
    try:
        return load_data(recipe.data).classes
    except DataError:
        return None


def _content(analysis: RunAnalysis) -> Content:
    found = curvature(analysis)
    if found is None:
        missing = (
            "needs a run of a recipe whose data are here, to know the number of the network's "
            "outputs"
        )
        return Content(missing=[missing])
    curved, limit = found
    numbers = {"sharpness from λ_max": course(curved)}
    if np.isfinite(limit[-1]):
        numbers["stable below, last"] = f"{limit[-1]:.3g}"
    if len(curved) == 1:
        return Content(numbers)
    steps = np.array(analysis.run.series.steps)
    return Content(numbers, {"cone-sharpness": _plot(steps, curved, limit)})


def _plot(steps: np.ndarray, curved: Float64Array, limit: Float64Array) -> LinePlot:
    lines = [Line("from the largest eigenvalue", steps, curved)]
    if np.isfinite(limit).any():
        lines.append(Line("2 (1 + *β*) / *η*", steps, limit, style="dashed"))
    return LinePlot(
        title="Sharpness against 2 / η",
        caption="The kernel's largest eigenvalue as a curvature: λ_max / (n c) for a class trace, "
        "a lower bound of the Gauss–Newton curvature of half the mean squared error. Gradient "
        "descent with learning rate η and momentum β is stable below 2 (1 + β) / η; "
        "cross-entropy's own curvature falls far below the kernel's as samples are fitted. "
        "Optimisers that rescale the gradient have another limit.",
        y_label="curvature",
        lines=lines,
        y_scale="readable",
    )


SECTION = Section(
    "Curvature",
    "The kernel's largest eigenvalue as a curvature of the loss, against its limit 2 / η.",
    _content,
)
