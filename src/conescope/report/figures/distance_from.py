"""The kernel distance S to fixed kernels, figure 1a of the paper."""

from __future__ import annotations

from conescope.report.plot import LinePlot, with_errors
from conescope.report.stage_marks import stage_marks
from conescope.report.summary import about_errors, curves_from
from conescope.runs.reader import Run


def distance_from(run: Run) -> LinePlot:
    """Return the plot of S(θ(t), θ(τ)) against t, one line for each τ (arXiv:2503.16316, eq. 4).

    Raises:
        KernelError: if there are fewer than two kernels.
    """
    return LinePlot(
        title="Distance to fixed kernels",
        caption="Kernel distance S(θ(t), θ(τ)) (eq. 4) between the kernel at iteration t and the "
        "one at a fixed τ, as in figure 1a of the paper. Inside the cone a line with a late τ "
        "rises at first and then stays nearly constant; where it goes on rising, the kernel "
        "drifts away." + about_errors(run.series),
        y_label="*S(θ(t), θ(τ))*",
        lines=[
            with_errors(f"*τ* = {tau:,}", *curve) for tau, curve in curves_from(run.series).items()
        ],
        marks=stage_marks(run.stages),
    )
