"""The first sentences of a run's page, which say what its kernels show."""

from __future__ import annotations

import math

import numpy as np

from conescope.errors import KernelError
from conescope.report.run_analysis import RunAnalysis, analyse
from conescope.report.sections.noise import noise_tests
from conescope.report.sections.wording import digits
from conescope.runs.reader import Run
from conescope.statistics.cone import Cone
from conescope.statistics.cone.verdict import CERTAIN, ENOUGH


def answer(run: Run) -> str:
    """Return what a run's kernels say, in a few sentences: the first words of its report.

    They say what kind of motion the kernel makes, its cause where that was tested, and how far the
    last kernel is from the first.
    """
    return opening(analyse(run))


def opening(analysis: RunAnalysis) -> str:
    """Return the verdict on the kernel's motion, its distance from the start, and its cause.

    Each sentence is left out, or says so, where the run is too short or lacks what it needs.
    """
    series = analysis.run.series
    try:
        found = analysis.cone
    except KernelError as reason:
        sentences = [f"Whether the kernel stays in a cone cannot be told: {reason}."]
    else:
        sentences = [_motion(analysis, found), *_cause(analysis, found)]
    if len(series) > 1:
        first, last = series.steps[0], series.steps[-1]
        sentences.append(
            f"At iteration {last:,} the kernel is at a distance S = "
            f"{digits(float(series.distances()[0, -1]))} from the one at iteration {first:,}."
        )
    return " ".join(sentences)


def _motion(analysis: RunAnalysis, found: Cone) -> str:
    since = f"After iteration {found.first:,}" if found.boundary else "From the start"
    if len(analysis.stretches) > 1:
        since += f", at the learning rate {analysis.main_stretch.rate:g},"
    if found.verdict == "undecided":
        weighed = sorted(found.probability.items(), key=lambda kind: -kind[1])
        kinds = ", ".join(f"{kind} {p:.2f}" for kind, p in weighed if p >= 0.005)
        count = int(np.count_nonzero(found.axis))
        few = f"there are {count:,} kernels, and that takes at least {ENOUGH}: measure more often"
        return (
            f"{since} it cannot be told what kind of motion the kernel makes"
            f"{f', since {few}' if count < ENOUGH else ''} (probabilities: "
            f"{kinds or 'none is known'}; a verdict takes {CERTAIN:g}); up to iteration "
            f"{found.last:,} it stays about {_degrees(found)} from its mean."
        )
    what, then = {
        "confined": (f"stays in a cone of half-angle {_degrees(found)}", ""),
        "frozen": ("stands still, within the noise of its measurement", ""),
        "free diffusion": ("moves on as a random walk does", ": there is no cone"),
        "drift": ("moves on in one direction", ": there is no cone"),
        "mixed": (f"moves in a mixed way ({_shares(found)})", ": no single kind of motion rules"),
    }[found.verdict]
    return f"{since} the kernel {what}, with probability {_likely(found)}{then}."


def _likely(found: Cone) -> str:
    probability = max(found.probability.values())
    return "above 0.99" if probability > 0.99 else f"{probability:.2f}"


def _degrees(found: Cone) -> str:
    angle = found.half_angle
    value, low, high = (f"{math.degrees(a):.1f}°" for a in (angle.value, angle.low, angle.high))
    return f"{value} (95 %: {low} to {high})"


def _shares(found: Cone) -> str:
    shares = sorted(found.shares.items(), key=lambda part: -part[1])
    return ", ".join(f"{part} {share:.0%}" for part, share in shares if share >= 0.005)


def _cause(analysis: RunAnalysis, found: Cone) -> list[str]:
    """Return whether confined motion is SGD's noise, if there is such motion and a test of it."""
    if found.verdict in ("frozen", "free diffusion", "drift"):
        return []
    for test in noise_tests(analysis):
        if test.found is None or test.found.noisy is not found:
            continue
        change = test.found.radius
        left = f"{test.name}: {digits(change.ratio.value)} of its width is left"
        if change.is_noise == "yes":
            return [f"Its confined motion is SGD's noise ({left})."]
        if change.is_noise == "no":
            return [f"Its confined motion is more than SGD's noise ({left})."]
    return []
