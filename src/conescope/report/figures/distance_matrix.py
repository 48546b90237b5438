"""The kernel distance S between every two kernels, as a matrix."""

from __future__ import annotations

from conescope.report.plot import ITERATION, MatrixPlot
from conescope.report.summary import require_pair
from conescope.runs.reader import Run


def distance_matrix(run: Run) -> MatrixPlot:
    """Return the plot of S(θ(t), θ(s)) for all pairs of kernels, on axes of real iterations.

    Raises:
        KernelError: if there are fewer than two kernels.
    """
    require_pair(run.series)
    return MatrixPlot(
        title="Distances between all kernels",
        caption="S(θ(t), θ(s)) (eq. 4) for every two kernels; every other figure of distances is "
        "read off this matrix. A square of small distances on the diagonal is a stretch of "
        "training in which the kernel stays within a small region. Colour is linear in the "
        "chord √(2S) between kernels of unit length, so that small late distances show beside "
        "large early ones.",
        x_label=ITERATION,
        y_label="iteration *s*",
        value_label="*S(θ(t), θ(s))*",
        places=run.series.steps,
        values=run.series.distances(),
        colour="square root",
    )
