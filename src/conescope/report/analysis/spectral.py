"""Plots of eigenvalues and alignment over training."""

from __future__ import annotations

import numpy as np

from conescope.report.analysis.of_run import Analysis
from conescope.report.plot import ITERATION, Line, LinePlot
from conescope.report.summary import readable_scale

LARGEST = 4
"""Eigenvalues that are drawn, each as a line."""


def eigenvalues(analysis: Analysis) -> LinePlot:
    """The largest eigenvalues as shares of the trace."""
    found = analysis.spectrum
    lines = [
        Line(f"λ{_subscript(k + 1)}", found.steps, found.eigenvalues[:, k] / found.trace)
        for k in range(min(LARGEST, found.eigenvalues.shape[1]))
    ]
    rest = 1 - found.eigenvalues.sum(axis=1) / found.trace
    count = found.eigenvalues.shape[1]
    return LinePlot(
        title="Largest eigenvalues",
        caption=f"The kernel's largest eigenvalues as shares of its trace, and what is left beyond "
        f"the largest {count}.",
        x_label=ITERATION,
        y_label="share of the trace",
        lines=[*lines, Line(f"beyond λ{_subscript(count)}", found.steps, rest, style="dashed")],
        y_scale=readable_scale(line.y for line in lines),
    )


def effective_rank(analysis: Analysis) -> LinePlot:
    """Effective rank over training."""
    found = analysis.spectrum
    return LinePlot(
        title="Effective rank",
        caption="Exponential of the entropy of the eigenvalues' shares of the trace (Roy & "
        "Vetterli 2007): how many directions the kernel has.",
        x_label=ITERATION,
        y_label="effective rank",
        lines=[Line("effective rank", found.steps, found.effective_rank)],
    )


def overlap(analysis: Analysis) -> LinePlot:
    """Overlap of the leading eigenspace with its past selves."""
    found = analysis.spectrum
    count = found.eigenvalues.shape[1]
    return LinePlot(
        title="Top eigenspace and its past",
        caption=f"How much of the space of the {count} leading eigenvectors lies in that of the "
        "first kernel, and of the kernel before: the mean squared cosine of the principal "
        "angles, 1 for the same space.",
        x_label=ITERATION,
        y_label="overlap",
        lines=[
            Line("with the first kernel", found.steps, found.overlap_with_first),
            Line("with the kernel before", found.steps[1:], found.overlap_with_previous),
        ],
        y_range=(0.0, 1.02),
    )


def alignment(analysis: Analysis) -> LinePlot | None:
    """Alignments with labels and the first kernel; None if labels are not known."""
    found = analysis.alignment
    if found is None:
        return None
    return LinePlot(
        title="Alignment",
        caption="Cosine between the kernel and the label kernel (1 within a class, 0 between), "
        "plain (kernel–target alignment) and centred (CKA), and CKA with the first kernel.",
        x_label=ITERATION,
        y_label="alignment",
        lines=[
            Line("with labels", found.steps, found.target),
            Line("with labels, centred", found.steps, found.centred_target),
            Line("with the first kernel, centred", found.steps, found.centred_first),
        ],
        y_range=(min(0.0, float(found.centred_target.min())), 1.02),
    )


def class_means(analysis: Analysis) -> LinePlot | None:
    """Means within and between classes; None if labels are not known."""
    found = analysis.alignment
    if found is None:
        return None
    lines = [
        Line("within classes", found.steps, found.within),
        Line("between classes", found.steps, found.between),
    ]
    return LinePlot(
        title="Within and between classes",
        caption="Mean of the kernel over pairs of different images of one class, and of two.",
        x_label=ITERATION,
        y_label="mean of K(x, x′)",
        lines=lines,
        y_scale=readable_scale(line.y for line in lines),
    )


def sharpness(analysis: Analysis) -> LinePlot | None:
    """λ_max as a curvature against 2 / η; None if the number of outputs is not known."""
    found = analysis.curvature
    if found is None:
        return None
    steps = analysis.spectrum.steps
    lines = [Line("from λ_max of the kernel", steps, found.sharpness)]
    if np.isfinite(found.limit).any():
        lines.append(Line("2 (1 + β) / η", steps, found.limit, style="dashed"))
    return LinePlot(
        title="Sharpness against 2 / η",
        caption="The kernel's largest eigenvalue as a curvature: λ_max / (n c) for a class trace, "
        "a lower bound of the Gauss–Newton curvature of half the mean squared error. Gradient "
        "descent with learning rate η and momentum β is stable below 2 (1 + β) / η; "
        "cross-entropy's own curvature falls far below the kernel's as images are fitted. "
        "Optimisers that rescale the gradient have another limit.",
        x_label=ITERATION,
        y_label="curvature",
        lines=lines,
        y_scale=readable_scale(line.y for line in lines),
    )


def _subscript(number: int) -> str:
    return "".join(chr(ord("₀") + int(digit)) for digit in str(number))
