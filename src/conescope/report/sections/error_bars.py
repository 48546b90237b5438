"""Error bars of the kernel distance S over the choice of the probe's samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from conescope.kernel.series import KernelSeries
from conescope.report.plot import Line, LinePlot
from conescope.report.run_analysis import RunAnalysis
from conescope.report.sections.section import Content, Section
from conescope.report.sections.wording import text_of
from conescope.report.summary import default_lags, require_pair
from conescope.statistics.cone import Estimate
from conescope.statistics.uncertainty import SampledDistance, numerical_floor, sampled_distance

SAMPLED = 40
"""Kernels of a curve that get error bars; each costs n² a resampled probe."""

SMALLEST_PROBE = 10
"""Samples from which a probe is resampled."""


@dataclass(frozen=True)
class SampledCurve:
    """S along training, with error bars over the choice of the probe's samples.

    Attributes:
        to: the kernel to which S is measured: "H(0)" or "H(t + 100)".
        steps: [P], iterations t.
        found: S at each of them.
    """

    to: str
    steps: np.ndarray
    found: Sequence[SampledDistance]


def sampled_curves(series: KernelSeries) -> list[SampledCurve]:
    """Return S to the first kernel, and between kernels a usual gap apart, with error bars.

    Raises:
        KernelError: if there are fewer than two kernels, or fewer than ten samples.
    """
    require_pair(series)
    steps = np.array(series.steps)
    curves = [(f"H({steps[0]:,})", [(step, steps[0]) for step in _spread(steps[1:])])]
    for dt in default_lags(series)[:1]:
        starts, _ = series.distances_after(dt)
        curves.append((f"H(t + {dt:,})", [(step, step + dt) for step in _spread(starts)]))
    return [SampledCurve(to, *_along(series, pairs)) for to, pairs in curves]


def _content(analysis: RunAnalysis) -> Content:
    series = analysis.run.series
    samples = series.measured[0].values.shape[0]
    if samples < SMALLEST_PROBE:
        few = f"needs a probe of at least {SMALLEST_PROBE} samples, and this one has {samples}"
        return Content(missing=[f"{few}; take a larger one"])
    curves = sampled_curves(series)
    return Content(
        dict(map(_number, curves)),
        {"cone-error-bars": _plot(curves, numerical_floor(series.measured))},
    )


def _number(curve: SampledCurve) -> tuple[str, str]:
    """Return the name and the value of the curve's last S."""
    last, step = curve.found[-1], curve.steps[-1]
    interval = text_of(Estimate(last.unbiased, last.low, last.high))
    place = "" if "t" not in curve.to else f" at t = {step:,}"
    start = "t" if place else f"{step:,}"
    name = f"S(H({start}), {curve.to}){place}"
    return name, f"{last.plain:.3g}; for the population of samples {interval}"


def _plot(curves: Sequence[SampledCurve], floor: float) -> LinePlot:
    lines = [_sampled_line(curve) for curve in curves]
    lines += [
        Line(
            f"plain *S* to *{curve.to}*",
            curve.steps,
            np.array([one.plain for one in curve.found]),
            style="dashed",
        )
        for curve in curves
    ]
    return LinePlot(
        title="Error bars of S",
        caption="S (eq. 4) with the probe's samples taken from a population: the estimate for the "
        "population, without the diagonal, and its 95 % interval over resampled probes; beside it "
        "the plain S, whose diagonal compares samples with themselves. Rounding alone makes an S "
        f"of {floor:.0e}.",
        y_label="*S*",
        lines=lines,
        y_scale="readable",
    )


def _sampled_line(curve: SampledCurve) -> Line:
    y, low, high = (
        np.array([getattr(one, name) for one in curve.found])
        for name in ("unbiased", "low", "high")
    )
    return Line(f"*S* to *{curve.to}*, 95 %", curve.steps, y, low, high)


def _along(
    series: KernelSeries, pairs: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, list[SampledDistance]]:
    kernel = dict(zip(series.steps, series.measured, strict=True))
    steps = np.array([step for step, _ in pairs])
    return steps, [sampled_distance(kernel[step], kernel[other]) for step, other in pairs]


def _spread(steps: np.ndarray) -> list[int]:
    """Return at most `SAMPLED` of the steps, spread over all of them."""
    places = np.linspace(0, len(steps) - 1, min(SAMPLED, len(steps)))
    return [int(steps[round(place)]) for place in places]


SECTION = Section(
    "Error bars",
    "How sure the kernel distance S is, with the probe's samples taken as drawn from a population.",
    _content,
)
