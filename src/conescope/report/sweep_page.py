"""Write what a sweep says: its table as parquet and CSV, and one page of figures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import yaml

from conescope.errors import KernelError, StoreError
from conescope.experiments.stored import load_run
from conescope.experiments.sweep.sweep_folder import ENDED, STATES, SweepRun
from conescope.report.figures.distance_after import distance_after
from conescope.report.figures.distance_from import distance_from
from conescope.report.figures.embedding_2d import embedding_2d
from conescope.report.html import (
    Part,
    captioned,
    columns,
    drawn,
    numbers_table,
    origin_parts,
    page_of,
    write_page,
)
from conescope.report.page import ABOUT
from conescope.report.sweep_plots import (
    axes_drawn,
    findings,
    held_text,
    numbers_along,
    phase_diagrams,
    probability_text,
    value_text,
    values_of,
)
from conescope.report.sweep_table import AVERAGED, Row, SweepResults
from conescope.runs.reader import Run

_MULTIPLES = 5
"""Small multiples along an axis, spread over its values."""

_MOST_SETTINGS = 200
"""Rows of the page's table; the files have all."""

_FIGURES = {"a": distance_from, "b": distance_after, "c": embedding_2d}
"""Letter of the paper's figure 1 → the figure."""


_BASES = {"training": "Recipe", "measurement": "What is measured"}


def write_sweep_report(results: SweepResults) -> list[Path]:
    """Write a sweep's tables, a row a run and a row a setting, and its page of figures.

    Returns:
        The files: sweep.parquet, sweep.csv, seeds.parquet, seeds.csv and report.html.

    Raises:
        StoreError: if a file cannot be written, or a kernel is damaged.
    """
    from pyarrow import csv, parquet

    folder, files = results.sweep.path, []
    for name, table in (("sweep", results.table()), ("seeds", results.over_seeds())):
        for suffix, write in ((".parquet", parquet.write_table), (".csv", csv.write_csv)):
            file = folder / f"{name}{suffix}"
            try:
                write(table, file)
            except OSError as error:
                raise StoreError(
                    f"cannot write {file}: {error.strerror or error}; make room, or give yourself "
                    f"the right to write there"
                ) from error
            files.append(file)
    return [*files, write_page(folder / "report.html", sweep_report_page(results))]


def sweep_report_page(
    results: SweepResults, address_of: Callable[[Path], str] | None = None
) -> str:
    """Return the HTML page of a sweep.

    Args:
        results: what its runs have found so far.
        address_of: the address of the report of a run folder, for a table of all runs with links;
            None for no such table.
    """
    sweep = results.sweep
    counts = Counter(row["state"] for row in results.rows)
    left = sum(count for state, count in counts.items() if state not in ENDED)
    axes = [
        f"{name} = {', '.join(map(value_text, values_of(results, name)))}" for name in sweep.axes
    ]
    numbers = {f"runs {state}": f"{counts[state]:,}" for state in STATES if counts[state]}
    plots = {
        **phase_diagrams(results),
        **{k: p for axis in axes_drawn(results) for k, p in numbers_along(results, axis).items()},
    }
    run = next((run for run in sweep.runs if run.state() == "finished"), None)
    environment = load_run(run.path).environment if run and _has_kernels(results, run) else {}
    charts = [drawn(plot, name) for name, plot in plots.items()]
    return page_of(
        name=f"Sweep {sweep.path.resolve().name}",
        description="; ".join(axes),
        state=f"{len(results.rows) - left:,} of {len(results.rows):,} runs have ended",
        is_finished=not left,
        answer=f'<p class="answer">{escape(findings(results))}</p>{numbers_table(numbers)}',
        parts=[
            Part("Figures", f"<p>{ABOUT}</p>{columns(charts)}"),
            Part("Settings", _settings(results)),
            *([] if address_of is None else [Part("Runs", _runs(results, address_of))]),
            *filter(None, map(_Multiples(results).of, axes_drawn(results))),
            *origin_parts(
                "How to make this sweep again",
                sweep.command,
                environment,
                f"{_BASES[sweep.kind]}, of which the axes change",
                yaml.safe_dump(sweep.runs[0].base, sort_keys=False, allow_unicode=True),
            ),
        ],
    )


def _has_kernels(results: SweepResults, run: SweepRun) -> bool:
    return any(row["run"] == run.id and row["kernels"] for row in results.rows)


def _settings(results: SweepResults) -> str:
    """Return the table of settings: means over seeds with their intervals."""
    axes = [name for name in results.sweep.axes if name != "seed"]
    has = [name for name in AVERAGED if any(row[name] is not None for row in results.settings)]
    heads = [*axes, "seeds", "verdict", "probability", *has]
    head = "".join(f'<th scope="col">{escape(_HEADS.get(name, name))}</th>' for name in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_cell(row, name))}</td>" for name in heads) + "</tr>"
        for row in results.settings[:_MOST_SETTINGS]
    )
    more = len(results.settings) - _MOST_SETTINGS
    note = f"<p>{more:,} more are in seeds.csv.</p>" if more > 0 else ""
    return (
        "<p>Means over the seeds that finished; in brackets 95 % intervals by "
        "Student's t. S is the distance of the last kernel to the first, v the mean velocity of "
        f"the second half.</p>{_STYLE}"
        f'<div class="settings" tabindex="0"><table><tr>{head}</tr>{body}</table></div>{note}'
    )


def _runs(results: SweepResults, address_of: Callable[[Path], str]) -> str:
    """Return the table of runs, each with a link to its report once it has begun."""
    heads = ["run", *results.sweep.axes, "state", "kernels", "verdict", "test_accuracy", "S"]
    head = "".join(f'<th scope="col">{escape(_HEADS.get(name, name))}</th>' for name in heads)
    rows = []
    for run, row in zip(results.sweep.runs, results.rows, strict=True):
        name = escape(run.id)
        if row["state"] != "waiting":
            name = f'<a href="{escape(address_of(run.path))}">{name}</a>'
        cells = "".join(
            f"<td>{'–' if row[key] is None else escape(_cell(row, key))}</td>" for key in heads[1:]
        )
        rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    body = "".join(rows)
    return f'<div class="settings" tabindex="0"><table><tr>{head}</tr>{body}</table></div>'


_STYLE = (
    "<style>.settings { overflow-x: auto } .settings :is(th, td) { width: auto; "
    "padding-right: 1.2rem; overflow-wrap: normal; white-space: nowrap } @media print { "
    ".settings { zoom: .7 } .settings :is(th, td) { white-space: normal } }</style>"
)

_HEADS = {
    "test_accuracy": "test accuracy",
    "test_loss": "test loss",
    "v": "v (1 / iteration)",
    "half_angle": "half-angle (degrees)",
}


def _cell(row: Row, name: str) -> str:
    value = row[name]
    if value is None:
        return "diverged" if name == "verdict" and row["diverged"] == row["runs"] else "–"
    if name == "probability":
        return probability_text(value)
    form = ".1%" if name == "test_accuracy" else ".3g"
    text = format(value, form) if isinstance(value, float) else str(value)
    if row.get(f"{name}_low") is None:
        return text
    return f"{text} [{row[f'{name}_low']:{form}}, {row[f'{name}_high']:{form}}]"


class _Multiples:
    """The figures 1a to 1c of runs along an axis; each run is read once."""

    def __init__(self, results: SweepResults) -> None:
        self._results = results
        self._runs: dict[str, Run] = {}

    def of(self, axis: str) -> Part | None:
        """Return the section of one axis: its first finished runs, others axes held."""
        chosen = self._chosen(axis)
        if not chosen:
            return None
        parts = [f"<p>{_ABOUT}"]
        parts.append(escape(held_text(self._results, [axis])) + "</p>")
        for letter, figure_of in _FIGURES.items():
            parts.append('<div class="columns narrow">')
            for place, (value, run) in enumerate(chosen):
                title = f"1{letter}, {axis} = {value_text(value)}{_seed(run)}"
                parts.append(_multiple(run, figure_of, f"multiple-{axis}-{letter}-{place}", title))
            parts.append("</div>")
        return Part(f"Figure 1 along {axis}", "".join(parts))

    def _chosen(self, axis: str) -> list[tuple[Any, Run]]:
        """Return values of the axis with a finished run of each, spread over the axis."""
        first = self._results.settings[0]
        fixed = [n for n in self._results.sweep.axes if n not in (axis, "seed")]
        found: dict[str, tuple[Any, SweepRun]] = {}
        for run, row in zip(self._results.sweep.runs, self._results.rows, strict=True):
            is_usable = row["state"] == "finished" and (row["kernels"] or 0) > 1
            if is_usable and all(row[name] == first[name] for name in fixed):
                found.setdefault(json.dumps(row[axis]), (row[axis], run))
        values = list(found.values())
        last = len(values) - 1
        count = min(_MULTIPLES, len(values))
        places = sorted({round(i * last / max(count - 1, 1)) for i in range(count)})
        return [(values[i][0], self._read(values[i][1])) for i in places]

    def _read(self, run: SweepRun) -> Run:
        if run.id not in self._runs:
            self._runs[run.id] = load_run(run.path)
        return self._runs[run.id]


_ABOUT = (
    "Kernel distance to fixed kernels (1a), between neighbours (1b), and the kernels as points in "
    "a plane (1c), as in the paper's figure 1; one run for each value."
)


def _seed(run: Run) -> str:
    return f", seed {run.recipe.seed}" if run.recipe else ""


def _multiple(run: Run, figure_of: Any, name: str, title: str) -> str:
    try:
        plot = replace(figure_of(run), title=title, caption="")
    except KernelError as reason:
        return captioned(title, "", str(reason))
    return drawn(plot, name.replace(".", "-"))
