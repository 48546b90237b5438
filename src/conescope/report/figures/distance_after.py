"""The kernel distance S between neighbouring kernels, figure 1b of the paper."""

from __future__ import annotations

from conescope.report.plot import LinePlot, with_errors
from conescope.report.stage_marks import stage_marks
from conescope.report.summary import about_errors, curves_after
from conescope.runs.reader import Run


def distance_after(run: Run) -> LinePlot:
    """Return the plot of S(θ(t), θ(t + dt)) against t, one line for each dt (figure 1b).

    Raises:
        KernelError: if there are fewer than two kernels.
    """
    curves = curves_after(run.series)
    return LinePlot(
        title="Distance between neighbours",
        caption="Kernel distance S(θ(t), θ(t + dt)) (eq. 4) between kernels dt iterations apart, "
        "as in figure 1b; divided by dt it is the kernel velocity v(t) (eq. 5). Lazy training "
        "brings it to zero; in the cone it drops early to a low floor above zero that hardly "
        "depends on dt. Exactly 0 says that two kernels are the same numbers."
        + about_errors(run.series),
        y_label="*S(θ(t), θ(t + dt))*",
        lines=[with_errors(f"*dt* = {dt:,}", *curve) for dt, curve in curves.items()],
        marks=stage_marks(run.stages),
        y_scale="readable",
    )
