"""The numbers of an analysis as text: name → value, in the order to show them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from conescope.errors import KernelError
from conescope.report.analysis.noise import NoiseTest
from conescope.report.analysis.of_run import Analysis
from conescope.report.summary import state
from conescope.statistics.attribution import Attribution
from conescope.statistics.cone import Change, Cone, Estimate, Evidence, Kind, SeedCone, over_seeds
from conescope.statistics.cone.phases import MINIMUM
from conescope.training.recipe import Recipe

WEIGHED = 3
"""Models whose evidence is printed."""


def numbers(analysis: Analysis) -> dict[str, str]:
    """Everything that is said of one run's motion. Intervals are of 95 %."""
    return {
        **_verdict(analysis.cone),
        **_rate(analysis),
        **_motion(analysis.cone),
        **{name: text for test in analysis.noise for name, text in _noise(test).items()},
        **_error_bars(analysis),
        **_spectrum(analysis),
        **_alignment(analysis),
        **_movements(analysis.movements),
    }


def numbers_over_seeds(analyses: Sequence[Analysis]) -> dict[str, str]:
    """What runs that differ in their seed only say together, with intervals over runs.

    Raises:
        KernelError: if there are fewer than two, or the runs differ in more than their seed.
    """
    _check_only_seeds(analyses)
    found = over_seeds([analysis.cone for analysis in analyses])
    single = (analysis.cone.verdict for analysis in analyses)
    return {
        "verdict": found.verdict,
        "verdicts of the runs": ", ".join(single),
        "probabilities": _probabilities(found.probability),
        "shares at phase II's length": _shares(found.shares),
        **_common(found),
    }


def comparison(analyses: Sequence[Analysis]) -> dict[str, list[str]]:
    """Numbers of runs side by side: name → a text for each run, in the order of the runs."""
    columns = [_column(analysis) for analysis in analyses]
    names = dict.fromkeys(name for column in columns for name in column)
    return {name: [column.get(name, "–") for column in columns] for name in names}


def text_of(estimate: Estimate, unit: str = "") -> str:
    """An estimate with its interval, such as "0.12 (0.1 to 0.15)"."""
    value, low, high = map(_digits, (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low} to {high}){unit and ' ' + unit}"


def _digits(value: float) -> str:
    """Three digits, or all of a whole number; 0 and ∞ for ends that nothing bounds."""
    if value > 0 and not 1e-15 < value < 1e15:
        return "0" if value < 1 else "∞"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def _column(analysis: Analysis) -> dict[str, str]:
    found, series = analysis.cone, analysis.run.series
    column = {"state": state(analysis.run)}
    if isinstance(analysis.run.recipe, Recipe):
        recipe = analysis.run.recipe
        column["seed"] = str(recipe.seed)
        column["learning rate"] = f"{recipe.optimizer.lr:g} ({recipe.optimizer.name})"
        column["network"] = recipe.model.name
        column["data"] = recipe.data.name
    if len(analysis.run.scalars["step"]):
        column["test accuracy, last"] = f"{analysis.run.scalars['test_accuracy'][-1]:.2%}"
    column |= {
        "verdict": found.verdict,
        "most probable": _probabilities(found.probability).partition(",")[0],
        **_common(found),
        "relaxation time τ_c": _relaxation(found),
        "dimension of the motion": text_of(found.dimension),
        "S(last kernel, first kernel)": f"{series.distances_from(series.steps[0])[-1]:.3g}",
        "effective rank, last": f"{analysis.spectrum.effective_rank[-1]:.3g}",
    }
    if analysis.alignment is not None:
        column["target alignment, last"] = f"{analysis.alignment.target[-1]:.3g}"
    return column


def _verdict(found: Cone) -> dict[str, str]:
    return {
        "verdict": found.verdict,
        "probabilities": _probabilities(found.probability),
        "shares at phase II's length": _shares(found.shares),
        **{
            f"model {place}": _evidence(model)
            for place, model in enumerate(found.evidence[:WEIGHED], start=1)
        },
    }


def _rate(analysis: Analysis) -> dict[str, str]:
    """At which learning rate the verdict is, where there are several."""
    if len(analysis.stretches) == 1:
        return {}
    at = [s.rate for s in analysis.stretches if s.first <= analysis.cone.first <= s.last]
    course = ", then ".join(f"{stretch.rate:g}" for stretch in analysis.stretches)
    return {"learning rate in phase II": f"{at[0]:g}, in a run at {course}"}


def _motion(found: Cone) -> dict[str, str]:
    kernels = int(np.count_nonzero(found.axis))
    return {
        "phase II": f"iterations {found.first:,} to {found.last:,}, {kernels:,} kernels",
        **_common(found),
        "relaxation time τ_c": _relaxation(found),
        "dimension of the motion": text_of(found.dimension),
    }


def _common(found: Cone | SeedCone) -> dict[str, str]:
    boundary, angle = found.boundary, found.half_angle
    degrees = Estimate(*(math.degrees(a) for a in (angle.value, angle.low, angle.high)))
    return {
        "phase boundary t*": "none found" if boundary is None else text_of(boundary),
        "exponent α of the displacement": text_of(found.exponent),
        "plateau R": text_of(found.radius),
        "half-angle of the cone": text_of(degrees, "degrees"),
        "S to H(0) in phase II": text_of(found.start_distance),
    }


def _relaxation(found: Cone) -> str:
    time = found.relaxation_time
    if time is None:
        return "no part is seen to relax"
    if time.value == 0.0:
        return f"below {_digits(time.high)} iterations"
    return text_of(time, "iterations")


def _noise(test: NoiseTest) -> dict[str, str]:
    """Whether floor and plateau are SGD's noise, by what becomes of them with less of it."""
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
    """Whether something is noise, as one sentence."""
    line = f"{_digits(change.line)} of itself (noise alone would fall to {_digits(change.alone)})"
    return {
        "yes": f"yes: {what} falls below {line}: {motion} is SGD's noise",
        "no": f"no: {what} stays above {line}: {motion} is more than SGD's noise",
        "cannot be told": f"cannot be told: {what} may be above or below {line}",
        "slower": f"cannot be told: {what} falls below {line}, as noise does, and as does all that "
        "a lower learning rate slows down",
        "no plateau": f"cannot be told: with the noise or with less, {motion} has no plateau, or "
        "is too slow to show one",
    }[change.is_noise]


def _error_bars(analysis: Analysis) -> dict[str, str]:
    rows = {}
    for curve in analysis.sampled:
        last, step = curve.found[-1], curve.steps[-1]
        interval = text_of(Estimate(last.unbiased, last.low, last.high))
        place = "" if "t" not in curve.to else f" at t = {step:,}"
        start = "t" if place else f"{step:,}"
        rows[f"S(H({start}), {curve.to}){place}"] = (
            f"{last.plain:.3g}; for the population of images {interval}"
        )
    rows["numerical floor of S"] = f"{analysis.cone.floor:.1e}"
    return rows


def _spectrum(analysis: Analysis) -> dict[str, str]:
    found = analysis.spectrum
    top = found.eigenvalues[:, 0]
    rows = {
        "trace": _course(found.trace),
        "largest eigenvalue, share of the trace": _course(top / found.trace),
        "effective rank": _course(found.effective_rank),
        "overlap of top eigenspaces, first and last": f"{found.overlap_with_first[-1]:.3g}",
    }
    if analysis.curvature is not None:
        rows["sharpness from λ_max"] = _course(analysis.curvature.sharpness)
        limit = analysis.curvature.limit[-1]
        if np.isfinite(limit):
            rows["stable below, last"] = f"{limit:.3g}"
    return rows


def _alignment(analysis: Analysis) -> dict[str, str]:
    found = analysis.alignment
    if found is None:
        return {}
    return {
        "target alignment": _course(found.target),
        "centred target alignment": _course(found.centred_target),
        "centred alignment with the first kernel, last": f"{found.centred_first[-1]:.3g}",
        "mean within classes": _course(found.within),
        "mean between classes": _course(found.between),
    }


def _movements(movements: Mapping[str, Attribution]) -> dict[str, str]:
    rows = {}
    for stretch, moved in movements.items():
        layers = sorted(moved.layers.items(), key=lambda item: -item[1])
        if layers:
            shares = ", ".join(f"{layer} {share:.1%}" for layer, share in layers)
            rows[f"moved by layers, {stretch}"] = shares
        if moved.blocks is not None:
            within = float(np.trace(moved.blocks))
            rows[f"moved within classes, {stretch}"] = f"{within:.1%}"
        tenth = max(1, len(moved.images) // 10)
        largest = float(np.sort(moved.images)[-tenth:].sum())
        rows[f"moved by the {tenth:,} leading images of {len(moved.images):,}, {stretch}"] = (
            f"{largest:.1%}"
        )
    return rows


def _probabilities(probability: Mapping[Kind, float]) -> str:
    open_end = max(0.0, 1.0 - sum(probability.values()))
    known = sorted(probability.items(), key=lambda item: -item[1])
    texts = (f"{kind} {p:.2f}" for kind, p in (*known, ("cannot be told", open_end)) if p >= 0.005)
    return ", ".join(texts)


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{part} {share:.0%}" for part, share in shares.items())


def _evidence(model: Evidence) -> str:
    parts = " + ".join(model.parts)
    return f"{parts}: probability {model.probability:.2f}, criterion +{model.criterion:.1f}"


def _course(values: np.ndarray) -> str:
    return f"{_digits(values[0])} at first, {_digits(values[-1])} at last"


def _check_only_seeds(analyses: Sequence[Analysis]) -> None:
    """Raise `KernelError` unless recipes differ in their seed, and in nothing else of their id."""
    recipes = [one.run.recipe for one in analyses if isinstance(one.run.recipe, Recipe)]
    if len({replace(recipe, name="run", seed=0).id for recipe in recipes}) > 1:
        raise KernelError(
            "these runs differ in more than their seed; use 'conescope compare' to set them side "
            "by side"
        )
    if len({recipe.seed for recipe in recipes}) < len(recipes):
        raise KernelError(
            "two of these runs have the same seed; intervals over seeds take each seed once"
        )
