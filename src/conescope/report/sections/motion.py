"""The cone as a test: the kind of motion that the kernel makes in phase II."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from conescope.report.plot import Line, LinePlot, Mark
from conescope.report.run_analysis import RunAnalysis
from conescope.report.sections.section import Content, Section
from conescope.report.sections.wording import digits, text_of
from conescope.statistics.cone import Cone, Estimate, Evidence, Kind, SeedCone

WEIGHED = 3
"""Models whose evidence is printed."""


def _content(analysis: RunAnalysis) -> Content:
    found = analysis.cone
    best = _probabilities(found.probability).partition(",")[0]
    moved = found.displacement
    return Content(
        numbers={
            "verdict": found.verdict,
            **verdict_numbers(found),
            **{
                f"model {place}": _evidence(model)
                for place, model in enumerate(found.evidence[:WEIGHED], start=1)
            },
            **_rate(analysis),
            "phase II": f"iterations {found.first:,} to {found.last:,}, "
            f"{int(np.count_nonzero(found.axis)):,} kernels",
            **_measures(found),
        },
        plots={"cone-displacement": _displacement(found), "cone-angle": _angle(analysis)},
        column={"verdict": found.verdict, "most probable": best, **_measures(found)},
        compared={
            "displacement": LinePlot(
                title="Mean squared displacement",
                caption="2 S(t, t + dt) averaged over the pairs of phase II, against the lag dt.",
                x_label="lag *dt* (iterations)",
                y_label="mean squared displacement",
                lines=[Line("", moved.lags, moved.mean)],
                x_scale="log",
                y_scale="log",
            )
        },
    )


def verdict_numbers(found: Cone | SeedCone) -> dict[str, str]:
    """Return the probabilities of the kinds of motion, and the shares of its parts."""
    return {
        "probabilities": _probabilities(found.probability),
        "shares at phase II's length": ", ".join(
            f"{part} {share:.0%}" for part, share in found.shares.items()
        ),
    }


def common_numbers(found: Cone | SeedCone) -> dict[str, str]:
    """Return the numbers with intervals that one run has, and several seeds together."""
    boundary, angle = found.boundary, found.half_angle
    degrees = Estimate(*(math.degrees(a) for a in (angle.value, angle.low, angle.high)))
    return {
        "phase boundary t*": "none found" if boundary is None else text_of(boundary),
        "exponent α of the displacement": text_of(found.exponent),
        "plateau R": text_of(found.radius),
        "half-angle of the cone": text_of(degrees, "degrees"),
        "S to H(0) in phase II": text_of(found.start_distance),
    }


def _measures(found: Cone) -> dict[str, str]:
    return {
        **common_numbers(found),
        "relaxation time τ_c": _relaxation(found),
        "dimension of the motion": text_of(found.dimension),
    }


def _rate(analysis: RunAnalysis) -> dict[str, str]:
    """Return the learning rate of the verdict, where the run has several."""
    if len(analysis.stretches) == 1:
        return {}
    rates = ", then ".join(f"{stretch.rate:g}" for stretch in analysis.stretches)
    return {"learning rate in phase II": f"{analysis.main_stretch.rate:g}, in a run at {rates}"}


def _relaxation(found: Cone) -> str:
    time = found.relaxation_time
    if time is None:
        return "no part is seen to relax"
    if time.value == 0.0:
        return f"below {digits(time.high)} iterations"
    return text_of(time, "iterations")


def _probabilities(probability: Mapping[Kind, float]) -> str:
    open_end = max(0.0, 1.0 - sum(probability.values()))
    known = sorted(probability.items(), key=lambda item: -item[1])
    texts = (f"{kind} {p:.2f}" for kind, p in (*known, ("cannot be told", open_end)) if p >= 0.005)
    return ", ".join(texts)


def _evidence(model: Evidence) -> str:
    parts = " + ".join(model.parts)
    return f"{parts}: probability {model.probability:.2f}, criterion +{model.criterion:.1f}"


def _displacement(found: Cone) -> LinePlot:
    lags, mean = found.displacement.lags, found.displacement.mean
    parts = [
        Line(part, lags, values, style="dashed") for part, values in found.fitted_parts.items()
    ]
    return LinePlot(
        title="Mean squared displacement",
        caption="The squared chord 2 S(t, t + dt), averaged over all pairs of phase II at the lag "
        "dt, with the best model and its parts. Confined motion, the cone, levels off; free "
        f"diffusion grows like dt, drift like dt². Verdict: {found.verdict}.",
        x_label="lag *dt* (iterations)",
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


def _angle(analysis: RunAnalysis) -> LinePlot:
    found = analysis.cone
    angle = found.half_angle
    value, low, high = np.degrees([angle.value, angle.low, angle.high]).tolist()
    return LinePlot(
        title="Angle to the cone's axis",
        caption="Angle between each kernel and the cone's axis, which is the mean of phase II's "
        "kernels of unit length. The half-angle is the root mean square over phase II, with its "
        "95 % interval.",
        y_label="angle to the axis (degrees)",
        lines=[Line("angle", np.array(analysis.run.series.steps), np.degrees(found.angles))],
        marks=[
            Mark("half-angle", "y", value, low, high, style="dash-dotted"),
            *analysis.moments,
        ],
    )


SECTION = Section(
    "The cone as a test",
    "What kind of motion the kernel makes, from its distances alone: frozen, confined (inside a "
    "cone), free diffusion, drift, or mixed. Numbers in parentheses are 95 % intervals; the "
    "method, its sources and how often it is right are in docs/cone.md.",
    _content,
)
