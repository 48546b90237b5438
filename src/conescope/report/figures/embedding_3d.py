"""The kernels as points in space, figure 1c of the paper with a third axis."""

from __future__ import annotations

from conescope.report.figures.embedding_2d import path_of
from conescope.report.plot import PathPlot
from conescope.runs.reader import Run


def embedding_3d(run: Run) -> PathPlot:
    """Return the same as `embedding_2d` in three dimensions.

    Raises:
        KernelError: if there are fewer than two kernels, or they are all the same.
    """
    return path_of(
        run,
        3,
        "The kernels in space",
        "The kernels as points whose distances stand for the chords √(2S) (S by eq. 4), with a "
        "third axis (figure 1c). On the report's page it turns when it is dragged.",
    )
