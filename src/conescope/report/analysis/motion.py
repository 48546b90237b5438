"""Plots of the motion of the kernel: displacement, velocity, cone and error bars of S."""

from __future__ import annotations

import numpy as np

from conescope.report.analysis.of_run import Analysis, SampledCurve
from conescope.report.plot import ITERATION, Line, LinePlot, Mark
from conescope.report.summary import readable_scale
from conescope.statistics.cone import Cone, Estimate


def displacement(analysis: Analysis) -> LinePlot:
    """Mean squared displacement against lag, with the best model and its parts."""
    found = analysis.cone
    lags, mean = found.displacement.lags, found.displacement.mean
    parts = [
        Line(part, lags, values, style="dashed") for part, values in found.fitted_parts.items()
    ]
    return LinePlot(
        title="Mean squared displacement",
        caption="The squared chord 2 S(t, t + dt), averaged over all pairs of phase II at the lag "
        "dt, with the best model and its parts. Confined motion, the cone, levels off; free "
        f"diffusion grows like dt, drift like dt². Verdict: {found.verdict}.",
        x_label="lag dt (iterations)",
        y_label="mean squared displacement",
        lines=[
            Line("measured", lags, mean, style="points"),
            Line("best model", lags, found.fitted),
            *parts,
        ],
        x_scale="log",
        y_scale="log",
        y_range=(float(mean.min()) / 5, 2 * float(mean.max())),
    )


def noise(analysis: Analysis) -> LinePlot | None:
    """Displacement with SGD's noise and with less of it; None if nothing makes it less."""
    shown: dict[str, Cone] = {}
    for test in analysis.noise:
        if test.found is not None:
            shown.setdefault(_labelled(analysis, test.found.noisy, "weights"), test.found.noisy)
            calm = "averaged weights" if test.less == "averaging" else "weights"
            shown.setdefault(_labelled(analysis, test.found.calm, calm), test.found.calm)
    if not shown:
        return None
    return LinePlot(
        title="Is it only noise?",
        caption="Mean squared displacement in phase II of the kernels of the weights, and of the "
        "same with less of SGD's noise: of their exponential average, or after a drop of the "
        "learning rate η. What is noise falls for averaged weights, and in proportion to η or "
        "more after a drop: the floor at the shortest lag, the plateau of the cone, or both.",
        x_label="lag dt (iterations)",
        y_label="mean squared displacement",
        lines=[
            Line(label, found.displacement.lags, found.displacement.mean)
            for label, found in shown.items()
        ],
        x_scale="log",
        y_scale="log",
    )


def _labelled(analysis: Analysis, found: Cone, weights: str) -> str:
    """Whose kernels these are, and at which learning rate if there are several."""
    rate = next(s.rate for s in analysis.stretches if s.first <= found.first <= s.last)
    return weights if len(analysis.stretches) == 1 else f"{weights}, η = {rate:g}"


def velocity(analysis: Analysis) -> LinePlot:
    """Kernel velocity (arXiv:2503.16316, eq. 5) with the phase boundary."""
    steps = np.array(analysis.run.series.steps)
    return LinePlot(
        title="Velocity and phase boundary",
        caption="Kernel velocity v = S(t, t + dt) / dt (eq. 5) between neighbouring kernels. The "
        "phase boundary t* is where a falling velocity becomes a lower constant one, with its "
        "95 % interval; without one, no change point is found.",
        x_label=ITERATION,
        y_label="v (1 / iteration)",
        lines=[Line("v(t)", (steps[:-1] + steps[1:]) / 2, analysis.velocity)],
        marks=_moments(analysis),
        y_scale=readable_scale([analysis.velocity]),
    )


def angle(analysis: Analysis) -> LinePlot:
    """Angle of every kernel to the cone's axis, with the half-angle."""
    found = analysis.cone
    angle = found.half_angle
    degrees = Estimate(*np.degrees([angle.value, angle.low, angle.high]).tolist())
    half_angle = Mark(
        "half-angle", "y", degrees.value, degrees.low, degrees.high, style="dash-dotted"
    )
    return LinePlot(
        title="Angle to the cone's axis",
        caption="Angle between each kernel and the mean direction of phase II's kernels. The "
        "half-angle is the root mean square over phase II, with its 95 % interval.",
        x_label=ITERATION,
        y_label="angle to the axis (degrees)",
        lines=[Line("angle", np.array(analysis.run.series.steps), np.degrees(found.angles))],
        marks=[half_angle, *_moments(analysis)],
    )


def error_bars(analysis: Analysis) -> LinePlot | None:
    """S with its error bars over the choice of images; None if the probe is too small."""
    lines = [_sampled_line(curve) for curve in analysis.sampled]
    if not lines:
        return None
    floor = analysis.cone.floor
    plain = [
        Line(
            f"plain S to {curve.to}",
            curve.steps,
            np.array([one.plain for one in curve.found]),
            style="dashed",
        )
        for curve in analysis.sampled
    ]
    return LinePlot(
        title="Error bars of S",
        caption="S with the probe's images taken as a sample: the estimate for the population of "
        "images, without the diagonal, and its 95 % interval over resampled probes; beside it "
        "the plain S, whose diagonal compares images with themselves. Rounding alone makes an S "
        f"of {floor:.0e}.",
        x_label=ITERATION,
        y_label="S",
        lines=[*lines, *plain],
        y_scale=readable_scale(line.y for line in (*lines, *plain)),
    )


def _sampled_line(curve: SampledCurve) -> Line:
    y, low, high = (
        np.array([getattr(one, field) for one in curve.found])
        for field in ("unbiased", "low", "high")
    )
    return Line(f"S to {curve.to}, 95 %", curve.steps, y, low, high)


def _moments(analysis: Analysis) -> list[Mark]:
    """The phase boundary, if there is one, and the drops of the learning rate."""
    boundary = analysis.cone.boundary
    marks = []
    if boundary is not None:
        marks.append(Mark("phase boundary t*", "x", boundary.value, boundary.low, boundary.high))
    for stretch in analysis.stretches[1:]:
        t = stretch.first
        marks.append(Mark(f"drop to η = {stretch.rate:g}", "x", t, t, t, style="dashed"))
    return marks
