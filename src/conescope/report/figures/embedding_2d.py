"""The kernels as points in a plane, figure 1c of the paper."""

from __future__ import annotations

from typing import Literal

from conescope.report.plot import PathPlot
from conescope.runs.reader import Run


def embedding_2d(run: Run) -> PathPlot:
    """Return the plot of the kernels as points of a plane whose distances are chords √(2S).

    Args:
        run: with at least two different kernels.

    Raises:
        KernelError: if there are fewer than two kernels, or they are all the same.
    """
    return path_of(
        run,
        2,
        "The kernels in a plane",
        "Each kernel H(t), scaled to unit length, as a point, by classical multidimensional "
        "scaling: distances between points stand for the chords √(2S) (S by eq. 4), as in figure "
        "1c. The large point is the first kernel; colours tell the iteration. Labels of the axes "
        "have their shares of the variance.",
    )


def path_of(run: Run, dimensions: Literal[2, 3], title: str, caption: str) -> PathPlot:
    """Return the kernels as points of two or three dimensions.

    Raises:
        KernelError: if there are fewer than two kernels, or they are all the same.
    """
    found = run.series.embedding(dimensions)
    unit = " of variance" if dimensions == 2 else ""
    return PathPlot(
        title,
        caption,
        labels=[f"axis {n} ({share:.0%}{unit})" for n, share in enumerate(found.shares, start=1)],
        points=found.coordinates,
        steps=run.series.steps,
        names=[f"*H({step:,})*" for step in run.series.steps],
    )
