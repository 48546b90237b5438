"""Compare several runs, or combine them if they differ in their seed only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from conescope.errors import KernelError
from conescope.report.plot import Panels
from conescope.report.run_analysis import RunAnalysis
from conescope.report.sections import Content
from conescope.report.sections.motion import common_numbers, verdict_numbers
from conescope.statistics.cone import over_seeds
from conescope.training.recipe import Recipe

Value = TypeVar("Value")


def distinct_names(analyses: Sequence[RunAnalysis]) -> list[str]:
    """Return a name for each run: its folder's, or its whole path if two have the same."""
    names = [analysis.run.path.name for analysis in analyses]
    if len(set(names)) == len(names):
        return names
    return [str(analysis.run.path) for analysis in analyses]


def comparison(runs: Sequence[Sequence[Content]]) -> dict[str, list[str]]:
    """Return numbers of runs side by side: name → a text for each run; "–" where it has none.

    Args:
        runs: for each run, what the sections say of it.
    """
    columns = [_merged(part.column for part in parts) for parts in runs]
    return {name: [column.get(name, "–") for column in columns] for name in _all_names(columns)}


def compared(runs: Mapping[str, Sequence[Content]]) -> Panels:
    """Return one figure of several runs: each section's plots with a line for each run.

    Args:
        runs: name → what the sections say of the run.

    Raises:
        KernelError: if no run has anything to draw.
    """
    plots = {name: _merged(part.compared for part in parts) for name, parts in runs.items()}
    panels = []
    for key in _all_names(plots.values()):
        lines = [
            replace(drawn[key].lines[0], label=name.replace("*", "∗"), colour=place)
            for place, (name, drawn) in enumerate(plots.items())
            if key in drawn
        ]
        shown = next(drawn[key] for drawn in plots.values() if key in drawn)
        panels.append(replace(shown, lines=lines))
    if not panels:
        raise KernelError(
            "no run has two kernels, so there is nothing to draw; compare runs that have been "
            "measured at two steps at least"
        )
    caption = " ".join(panel.caption for panel in panels)
    return Panels("Runs side by side", caption, panels, layout="row")


def _merged(parts: Iterable[Mapping[str, Value]]) -> dict[str, Value]:
    """Return all that the sections of a run give."""
    return {name: value for part in parts for name, value in part.items()}


def _all_names(runs: Iterable[Mapping[str, object]]) -> list[str]:
    """Return the names that any run has, in the order of the run that has the most."""
    fullest_first = sorted(runs, key=len, reverse=True)
    return list(dict.fromkeys(name for run in fullest_first for name in run))


def check_only_seeds(analyses: Sequence[RunAnalysis]) -> None:
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


def numbers_over_seeds(analyses: Sequence[RunAnalysis]) -> dict[str, str]:
    """Return the numbers of runs that differ only in their seed, with intervals over the runs.

    Raises:
        KernelError: if there are fewer than two, the runs differ in more than their seed, or the
            motion of one of them cannot be told.
    """
    check_only_seeds(analyses)
    cones = []
    for analysis in analyses:
        try:
            cones.append(analysis.cone)
        except KernelError as reason:
            raise KernelError(f"{analysis.run.path}: {reason}") from reason
    found = over_seeds(cones)
    return {
        "verdict": found.verdict,
        "verdicts of the runs": ", ".join(cone.verdict for cone in cones),
        **verdict_numbers(found),
        **common_numbers(found),
    }
