"""Plots of a sweep, as values: phase diagrams, and numbers against an axis."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from conescope.report.plot import Line, LinePlot, MatrixPlot
from conescope.report.sweep_table import Row, SweepResults

MOST_AXES = 3
"""Axes that figures are drawn over, the first ones."""

_MOST_LINES = 7
"""Values of a second axis that have a line of their own, the first ones."""

_MOST_TICKS = 8
"""Values of an axis that are written below it, each at its place."""

_DRAWN: Mapping[str, tuple[str, str]] = {
    "test_accuracy": ("Test accuracy", "test accuracy"),
    "test_loss": ("Test loss", "test loss"),
    "S": ("Kernel distance S of the last kernel to the first", "kernel distance *S*"),
    "R": ("Plateau R", "plateau *R* (chord)"),
    "half_angle": ("Half-angle of the cone", "half-angle (degrees)"),
}
"""Number of a run → the title of its plot, and the label of its axis."""


def axes_drawn(results: SweepResults) -> list[str]:
    """Return the axes that figures are drawn over: without the seed, with two values at least."""
    lengths = results.sweep.lengths
    return [name for name, count in lengths.items() if count > 1 and name != "seed"][:MOST_AXES]


def values_of(results: SweepResults, axis: str) -> list[Any]:
    """Return the values of an axis, in the order of the table."""
    return list({json.dumps(row[axis]): row[axis] for row in results.rows}.values())


def value_text(value: Any) -> str:
    """Return a value of an axis as text."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def probability_text(value: float) -> str:
    """Return a probability in two digits, rounded down: what is below 0.9 is no verdict."""
    return f"{math.floor(100 * value) / 100:.2f}"


def held_text(results: SweepResults, free: Sequence[str]) -> str:
    """Return the sentence that says at which values the other axes are held."""
    held = _held(results, free)
    texts = ", ".join(f"{name} = {value_text(value)}" for name, value in held.items())
    return f" Held: {texts}." if texts else ""


def settings_along(results: SweepResults, free: Sequence[str]) -> list[Row]:
    """Return the settings at the first value of every axis that is not free."""
    held = _held(results, free)
    return [
        row for row in results.settings if all(row[name] == value for name, value in held.items())
    ]


def _held(results: SweepResults, free: Sequence[str]) -> dict[str, Any]:
    axes = [name for name in results.sweep.axes if name not in (*free, "seed")]
    return {name: results.settings[0][name] for name in axes}


def findings(results: SweepResults) -> str:
    """Return the sentences that say what a sweep has found so far."""
    settings, runs = results.settings, results.rows
    ended = sum(row["seeds"] + row["diverged"] for row in settings)
    if not ended:
        return f"None of {len(runs):,} runs has ended yet."
    verdicts = Counter(row["verdict"] or "not known" for row in settings)
    kinds = ", ".join(f"{kind} at {count:,}" for kind, count in verdicts.most_common())
    of = f"Of {len(settings):,} settings the verdict is {kinds}."
    if len(verdicts) == 1:
        whole = "" if len(settings) == 1 else f" at all {len(settings):,} settings"
        of = f"The verdict is {next(iter(verdicts))}{whole}."
    said = [of] if _has_kernels(results) else []
    diverged = sum(row["diverged"] for row in settings)
    if diverged:
        said.append(f"{diverged:,} of {len(runs):,} runs diverged.")
    for number, text, form in (
        ("test_accuracy", "Test accuracy is highest,", ".1%"),
        ("S", "The kernel ends furthest from the first, at S =", ".3g"),
    ):
        known = [row for row in settings if row[number] is not None]
        if len(known) > 1:
            best = max(known, key=lambda row: row[number])
            axes = [name for name in results.sweep.axes if name != "seed"]
            where = ", ".join(f"{name} = {value_text(best[name])}" for name in axes)
            said.append(f"{text} {best[number]:{form}}, where {where}.")
    return " ".join(said)


def _has_kernels(results: SweepResults) -> bool:
    return any(row["kernels"] for row in results.rows)


def phase_diagrams(results: SweepResults) -> dict[str, MatrixPlot]:
    """Return a heat map of the verdict over every two axes, by file name; over one if only one.

    There is none as long as no run has a kernel.
    """
    if not _has_kernels(results):
        return {}
    axes = axes_drawn(results)
    pairs = list(itertools.combinations(axes, 2)) or [(name, "") for name in axes]
    return {
        f"phases-{place}": _phase_diagram(results, x, y)
        for place, (x, y) in enumerate(pairs, start=1)
    }


def _phase_diagram(results: SweepResults, x: str, y: str) -> MatrixPlot:
    columns = values_of(results, x)
    rows = values_of(results, y) if y else [""]
    free = [x, y] if y else [x]
    found = {
        (json.dumps(row[x]), json.dumps(row[y] if y else "")): row
        for row in settings_along(results, free)
    }
    values = np.full((len(rows), len(columns)), np.nan)
    texts = [["" for _ in columns] for _ in rows]
    for (r, row), (c, column) in itertools.product(enumerate(rows), enumerate(columns)):
        cell = found.get((json.dumps(column), json.dumps(row)))
        if cell is not None:
            texts[r][c] = _cell_text(cell)
            values[r, c] = math.nan if cell["probability"] is None else cell["probability"]
    return MatrixPlot(
        title=f"Verdict over {x}" + (f" and {y}" if y else ""),
        caption="The most probable kind of motion in phase II, and below it its probability, which "
        "is the colour; the mean over the seeds that finished. From 0.9 on it is the verdict. A "
        'cell without a colour says why it has none; "no verdict": its runs are too short for one, '
        "or their kernels do not move." + held_text(results, free),
        x_label=x,
        y_label=y,
        value_label="probability",
        places=[value_text(value) for value in columns],
        rows=[value_text(value) for value in rows],
        values=values,
        texts=texts,
        most=1.0,
    )


def _cell_text(row: Row) -> str:
    """Return what a setting's cell says, in lines short enough for a narrow cell."""
    if row["likeliest"] is not None:
        return f"{row['likeliest']} {probability_text(row['probability'])}".replace(" ", "\n")
    if row["diverged"] == row["runs"]:
        return "diverged"
    return "no\nverdict" if row["seeds"] else "not\nfinished"


def numbers_along(results: SweepResults, axis: str) -> dict[str, LinePlot]:
    """Return plots of main numbers against an axis, with intervals over seeds, by file name.

    A second axis, if there is one, has a line for each of its values. An axis that is no number
    has its places 1, 2, 3, … instead.
    """
    values = values_of(results, axis)
    is_number = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    places = values if is_number else list(range(1, len(values) + 1))
    order = np.argsort(places)
    at = {json.dumps(values[i]): float(places[i]) for i in order}
    others = [name for name in axes_drawn(results) if name != axis][:1]
    free = [axis, *others]
    settings = settings_along(results, free)
    spans = is_number and min(places) > 0 and max(places) >= 10 * min(places)
    ticks = {float(place): value_text(v) for place, v in zip(places, values, strict=True)}
    plots = {}
    for number, (title, label) in _DRAWN.items():
        lines = _lines(results, settings, number, axis, at, others)
        if lines:
            plots[f"{axis}-{number}".replace(".", "-").replace("_", "-")] = LinePlot(
                title=f"{title} against {axis}",
                caption=_BAND + held_text(results, free),
                y_label=label,
                lines=lines,
                x_label=axis,
                x_scale="log" if spans else "linear",
                x_whole=False,
                from_zero=number not in ("test_accuracy", "test_loss"),
                percent=number == "test_accuracy",
                x_ticks=ticks if len(ticks) <= _MOST_TICKS or not is_number else {},
            )
    return plots


_BAND = (
    "The mean over the seeds that finished; the band is its 95 % interval by Student's t, where "
    "there are two seeds or more."
)


def _lines(
    results: SweepResults,
    settings: Sequence[Row],
    number: str,
    axis: str,
    at: Mapping[str, float],
    others: Sequence[str],
) -> list[Line]:
    """Return a line for each value of the other axis, or one line if there is none."""
    lines = []
    for value in values_of(results, others[0])[:_MOST_LINES] if others else [None]:
        rows = [row for row in settings if not others or row[others[0]] == value]
        points = {at[json.dumps(row[axis])]: row for row in rows if row[number] is not None}
        if not points:
            continue
        chosen = [points[x] for x in sorted(points)]
        low, middle, high = (
            np.array([np.nan if row[name] is None else row[name] for row in chosen], dtype=float)
            for name in (f"{number}_low", number, f"{number}_high")
        )
        has_band = not np.isnan(low).any()
        lines.append(
            Line(
                f"{others[0]} = {value_text(value)}" if others else "mean over seeds",
                np.array(sorted(points)),
                middle,
                low if has_band else None,
                high if has_band else None,
            )
        )
    return lines
