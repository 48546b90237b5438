"""Write several runs side by side as one HTML file."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

from conescope.errors import KernelError
from conescope.report.comparison import compared, comparison, distinct_names
from conescope.report.figures import FIGURES
from conescope.report.html import Part, captioned, columns, drawn, missing, page_of, write_page
from conescope.report.opening import opening
from conescope.report.page import ABOUT
from conescope.report.run_analysis import RunAnalysis
from conescope.report.sections import Content

_FIGURES = ("distance-from", "distance-after", "embedding-2d")


def write_comparison(
    analyses: Sequence[RunAnalysis], found: Sequence[Sequence[Content]], path: Path
) -> Path:
    """Write what each run says, their numbers as one table, and their figures side by side.

    Args:
        analyses: the runs.
        found: for each run, what the sections say of it.
        path: the file to write.

    Returns:
        `path`.

    Raises:
        StoreError: if the file cannot be written.
    """
    names = distinct_names(analyses)
    runs = dict(zip(names, analyses, strict=True))
    finished = sum(analysis.run.finished for analysis in analyses)
    said = "".join(
        f"<h3>{escape(name)}</h3><p>{escape(opening(analysis))}</p>"
        for name, analysis in runs.items()
    )
    command = shlex.join(["conescope", "compare", *(str(one.run.path) for one in analyses)])
    text = page_of(
        name="Runs side by side",
        description=", ".join(names),
        state=f"{finished} of {len(analyses)} runs are finished",
        is_finished=finished == len(analyses),
        answer=said,
        parts=[
            Part("Numbers", f"<p>{ABOUT}</p>{_table(names, comparison(found))}"),
            Part("Together", _together(dict(zip(names, found, strict=True)))),
            *(Part(_title(figure), _of_each(runs, figure)) for figure in _FIGURES),
            Part("How to make this comparison again", f'<pre tabindex="0">{escape(command)}</pre>'),
        ],
    )
    return write_page(path, text)


def _title(figure: str) -> str:
    return {
        "distance-from": "Distance to fixed kernels, run by run",
        "distance-after": "Distance between neighbours, run by run",
        "embedding-2d": "The kernels in a plane, run by run",
    }[figure]


def _table(names: Sequence[str], numbers: Mapping[str, Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(value)}</td>" for value in values)
        + "</tr>"
        for name, values in numbers.items()
    )
    return f'<div class="wide" tabindex="0"><table><tr><td></td>{head}</tr>{rows}</table></div>'


def _together(found: Mapping[str, Sequence[Content]]) -> str:
    try:
        panels = compared(found).panels
    except KernelError as reason:
        return missing(f"Absent: {reason}.")
    return columns([drawn(panel, f"together-{place}") for place, panel in enumerate(panels)])


def _of_each(runs: Mapping[str, RunAnalysis], figure: str) -> str:
    charts = []
    for place, (name, analysis) in enumerate(runs.items()):
        try:
            plot = replace(FIGURES[figure](analysis.run), title=name, caption="")
        except KernelError as reason:
            charts.append(captioned(name, "", str(reason)))
        else:
            charts.append(drawn(plot, f"{figure}-{place}"))
    return columns(charts)
