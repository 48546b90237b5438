"""Figures 1 and 3 of the paper: three plots of the kernel distance in one."""

from __future__ import annotations

from conescope.report.figures.distance_after import distance_after
from conescope.report.figures.distance_from import distance_from
from conescope.report.figures.embedding_2d import embedding_2d
from conescope.report.plot import Panels
from conescope.report.summary import about_errors
from conescope.runs.reader import Run


def overview(run: Run) -> Panels:
    """Return the paper's three plots side by side (arXiv:2503.16316, figures 1 and 3).

    Args:
        run: with at least two different kernels.

    Raises:
        KernelError: if there are fewer than two kernels, or they are all the same.
    """
    return Panels(
        title="Kernel distance: from fixed kernels, between neighbours, and embedded",
        caption="Kernel distance S (eq. 4) to fixed kernels, between neighbouring kernels, and "
        "the kernels as points whose distances stand for the chords √(2S), as in figure 1."
        + about_errors(run.series),
        panels=[distance_from(run), distance_after(run), embedding_2d(run)],
        layout="row",
    )
