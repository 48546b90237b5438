"""Eigenvalues of the kernel: against their rank for one kernel, over training for several."""

from __future__ import annotations

import numpy as np
import torch

from conescope.report.plot import Line, LinePlot
from conescope.report.run_analysis import RunAnalysis
from conescope.report.sections.section import Content, Section
from conescope.report.sections.wording import course
from conescope.statistics.spectrum import SpectrumSeries, spectrum

LARGEST = 4
"""Eigenvalues that are drawn over training, each as a line."""


def _content(analysis: RunAnalysis) -> Content:
    found = analysis.spectra
    top = found.eigenvalues[:, 0]
    numbers = {
        "trace": course(found.trace),
        "largest eigenvalue, share of the trace": course(top / found.trace),
        "effective rank": course(found.effective_rank),
    }
    column = {"effective rank, last": f"{found.effective_rank[-1]:.3g}"}
    if len(found.steps) == 1:
        return Content(numbers, {"cone-eigenvalues": _against_rank(analysis)}, column)
    overlap = f"{found.overlap_with_first[-1]:.3g}"
    return Content(
        numbers={**numbers, "overlap of top eigenspaces, first and last": overlap},
        plots={
            "cone-eigenvalues": _over_training(found),
            "cone-effective-rank": _effective_rank(found),
            "cone-overlap": _overlap(found),
        },
        column=column,
    )


def _against_rank(analysis: RunAnalysis) -> LinePlot:
    """Return the plot of the only kernel's eigenvalues above rounding, as shares of the trace."""
    (kernel,) = analysis.run.series.kernels
    found = spectrum(kernel, top=len(kernel.matrix))
    ranks = np.arange(1, len(found.eigenvalues) + 1)
    is_seen = found.eigenvalues > torch.finfo(kernel.values.dtype).eps * found.eigenvalues[0]
    return LinePlot(
        title="Eigenvalues",
        caption="The kernel's eigenvalues λ_k, largest first, as shares of its trace; those "
        "below ε λ_1, with the machine epsilon ε of the kernel's precision, are left out.",
        x_label="rank *k*",
        y_label="share of the trace",
        lines=[Line("eigenvalues", ranks[is_seen], found.eigenvalues[is_seen] / found.trace)],
        x_scale="log",
        y_scale="log",
    )


def _over_training(found: SpectrumSeries) -> LinePlot:
    count = found.eigenvalues.shape[1]
    lines = [
        Line(f"λ{_subscript(k + 1)}", found.steps, found.eigenvalues[:, k] / found.trace)
        for k in range(min(LARGEST, count))
    ]
    if count > LARGEST:
        rest = 1 - found.eigenvalues.sum(axis=1) / found.trace
        lines.append(Line(f"beyond λ{_subscript(count)}", found.steps, rest, style="dashed"))
    return LinePlot(
        title="Largest eigenvalues",
        caption=f"The kernel's largest eigenvalues as shares of its trace, and what is left beyond "
        f"the largest {count}.",
        y_label="share of the trace",
        lines=lines,
        y_scale="readable",
    )


def _effective_rank(found: SpectrumSeries) -> LinePlot:
    return LinePlot(
        title="Effective rank",
        caption="The effective rank exp(−Σ p_k log p_k) with the eigenvalues' shares p_k of the "
        "trace (Roy & Vetterli 2007): from 1 for a kernel of rank one to the number of its rows "
        "for a multiple of the identity.",
        y_label="effective rank",
        lines=[Line("effective rank", found.steps, found.effective_rank)],
    )


def _overlap(found: SpectrumSeries) -> LinePlot:
    count = found.eigenvalues.shape[1]
    return LinePlot(
        title="Overlap of the leading eigenspaces",
        caption=f"Share of the space of the {count} leading eigenvectors that lies in the same "
        "space of the first kernel, and of the kernel before: the mean squared cosine of the "
        "principal angles ‖UᵀV‖² / k, 1 for the same space.",
        y_label="overlap",
        lines=[
            Line("with the first kernel", found.steps, found.overlap_with_first),
            Line("with the kernel before", found.steps[1:], found.overlap_with_previous),
        ],
        y_range=(0.0, 1.02),
    )


def _subscript(number: int) -> str:
    return "".join(chr(ord("₀") + int(digit)) for digit in str(number))


SECTION = Section(
    "Spectrum",
    "The eigenvalues of the kernel, and how far its leading eigenvectors turn.",
    _content,
)
