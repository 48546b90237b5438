"""The part of a run's report that shows its perturbed children, if it has any."""

from __future__ import annotations

import numpy as np

from conescope.errors import StoreError
from conescope.experiments.perturb import TABLE, PerturbationResult, read_table
from conescope.report.figures.perturbed import perturbed
from conescope.report.html import Part, drawn, missing, numbers_table
from conescope.runs.reader import Run

_ABOUT = """Children that continue the run from weights moved a little, on its data and with its
optimiser's state: how far apart they end says how much the training amplifies a difference
(arXiv:2505.13900)."""


def perturbed_part(run: Run) -> Part:
    """Return figure and numbers of the newest `conescope perturb`; empty if there was none."""
    file = run.path / "figures" / TABLE
    if not file.exists():
        return Part("Perturbed children", "")
    try:
        result = read_table(run.name, file)
    except StoreError as reason:
        return Part("Perturbed children", missing(f"Absent: {reason}."))
    chart = drawn(perturbed(result), "perturbed")
    return Part("Perturbed children", f"<p>{_ABOUT}</p>{numbers_table(_numbers(result))}{chart}")


def _numbers(result: PerturbationResult) -> dict[str, str]:
    """Return the mean distances over the directions, and how many children diverged."""
    found = {}
    for row, point in enumerate(result.points):
        kept = ~np.isnan(result.kernels[row])
        lost = f", {(~kept).sum()} diverged" if not kept.all() else ""
        means = (values[row, kept].mean() for values in (result.weights, result.kernels))
        found[f"perturbed at {point:,}"] = (
            "weights {:.3g}, kernels S = {:.3g}".format(*means) + lost if kept.any() else lost[2:]
        )
    return found
