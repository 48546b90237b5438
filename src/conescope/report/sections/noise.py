"""Whether the motion of the kernel is only SGD's noise, by the same motion with less noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from conescope.report.plot import Line, LinePlot
from conescope.report.run_analysis import RunAnalysis
from conescope.report.sections.section import Content, Section
from conescope.report.sections.wording import digits, text_of
from conescope.statistics.cone import Change, Cone, Contrast, cone, contrast
from conescope.statistics.cone.phases import MINIMUM


@dataclass(frozen=True)
class NoiseTest:
    """The motion of the kernel against the same motion with less noise.

    Attributes:
        name: the name of the test.
        less: what reduces the noise.
        found: None if there are fewer than ten kernels on either side.
    """

    name: str
    less: Literal["averaging", "the drop"]
    found: Contrast | None


def noise_tests(analysis: RunAnalysis) -> list[NoiseTest]:
    """Return the tests that the run allows: by averaged weights, and by drops of the learning rate.

    Raises:
        KernelError: if the motion of the kernel cannot be told at all.
    """
    averaged, phase, tests = analysis.run.averaged, analysis.cone, []
    if averaged is not None:
        found = None
        if sum(phase.first <= step <= phase.last for step in averaged.steps) >= MINIMUM:
            found = contrast(phase, cone(averaged, span=(phase.first, phase.last)), 0.0)
        tests.append(NoiseTest("averaged weights", "averaging", found))
    parts = zip(analysis.stretches, analysis.cones, strict=True)
    for (before, noisy), (after, calm) in pairwise(parts):
        alone = math.sqrt(after.rate / before.rate)
        found = None if noisy is None or calm is None else contrast(noisy, calm, alone)
        tests.append(NoiseTest(f"drop to {after.rate:g} at {after.first:,}", "the drop", found))
    return tests


def _content(analysis: RunAnalysis) -> Content:
    tests = noise_tests(analysis)
    if not tests:
        missing = "needs kernels of averaged weights or a drop of the learning rate" + (
            ", which only runs of a recipe have"
            if analysis.run.recipe is None
            else "; run with --training.average 0.99 or --lr_schedule.drops"
        )
        return Content(missing=[missing])
    numbers = {name: text for test in tests for name, text in _numbers(test).items()}
    has_plot = any(test.found for test in tests)
    return Content(numbers, {"cone-noise": _plot(analysis, tests)} if has_plot else {})


def _numbers(test: NoiseTest) -> dict[str, str]:
    """Return whether floor and plateau are SGD's noise, by how they change with less noise."""
    found = test.found
    if found is None:
        return {
            test.name: f"tells nothing of noise: it takes {MINIMUM} kernels with it, and with less"
        }
    rows = {
        "verdicts": f"{found.noisy.verdict}; {found.calm.verdict} after {test.less}",
        "plateau R": _change(found.radius),
        "half-angle (radians)": _change(found.half_angle),
    }
    if found.floor is not None:
        rows[f"floor S(t, t + {found.noisy.gap:,.0f})"] = _change(found.floor)
        rows["floor is noise?"] = _answer(found.floor, "the floor", "it")
    rows["plateau is noise?"] = _answer(found.radius, "R", "the confined motion")
    return {f"{test.name}: {name}": text for name, text in rows.items()}


def _change(change: Change) -> str:
    before, after, ratio = map(text_of, (change.before, change.after, change.ratio))
    return f"{before}, then {after}; ratio {ratio}"


def _answer(change: Change, what: str, motion: str) -> str:
    """Return whether something is noise, as one sentence."""
    line = f"{digits(change.line)} of itself (noise alone would fall to {digits(change.alone)})"
    return {
        "yes": f"yes: {what} falls below {line}: {motion} is SGD's noise",
        "no": f"no: {what} stays above {line}: {motion} is more than SGD's noise",
        "cannot be told": f"cannot be told: {what} may be above or below {line}",
        "slower": f"cannot be told: {what} falls below {line}, as noise does, and as does all that "
        "a lower learning rate slows down",
        "no plateau": f"cannot be told: with the noise or with less, {motion} has no plateau, or "
        "is too slow to show one",
    }[change.is_noise]


def _plot(analysis: RunAnalysis, tests: list[NoiseTest]) -> LinePlot:
    shown: dict[str, Cone] = {}
    for test in tests:
        if test.found is not None:
            shown.setdefault(_label(analysis, test.found.noisy, "weights"), test.found.noisy)
            calm = "averaged weights" if test.less == "averaging" else "weights"
            shown.setdefault(_label(analysis, test.found.calm, calm), test.found.calm)
    return LinePlot(
        title="Displacement with less of SGD's noise",
        caption="Mean squared displacement 2 S(t, t + dt) in phase II of the kernels of the "
        "weights, and of the same with less of SGD's noise: of their exponential average, or "
        "after a drop of the learning rate η. What is noise falls for averaged weights, and in "
        "proportion to η or more after a drop: the floor at the shortest lag, the plateau of the "
        "cone, or both.",
        x_label="lag *dt* (iterations)",
        y_label="mean squared displacement",
        lines=[
            Line(label, found.displacement.lags, found.displacement.mean)
            for label, found in shown.items()
        ],
        x_scale="log",
        y_scale="log",
    )


def _label(analysis: RunAnalysis, found: Cone, weights: str) -> str:
    """Return whose kernels these are, and at which learning rate if there are several."""
    rate = next(s.rate for s in analysis.stretches if s.first <= found.first <= s.last)
    return weights if len(analysis.stretches) == 1 else f"{weights}, *η* = {rate:g}"


SECTION = Section(
    "Noise",
    "Whether the floor and the plateau of the motion are only SGD's noise, by what becomes of "
    "them with less of it.",
    _content,
)
