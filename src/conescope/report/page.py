"""Write a run as one HTML file that opens with what its kernels say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from types import MappingProxyType

from conescope.errors import KernelError, TrainingError
from conescope.report.figures import FIGURES
from conescope.report.html import (
    Part,
    columns,
    drawn,
    missing,
    numbers_table,
    origin_parts,
    page_of,
    write_page,
)
from conescope.report.iterations import kernels_by_iteration
from conescope.report.opening import opening
from conescope.report.perturbed_part import perturbed_part
from conescope.report.plot import Plot
from conescope.report.probe_pictures import leading_eigenvectors, leading_samples
from conescope.report.run_analysis import RunAnalysis, analyse
from conescope.report.sections import SECTIONS, Content, contents
from conescope.report.summary import distance_numbers, main_numbers, neighbour_numbers, state
from conescope.runs.reader import Run

ABOUT = """S is the kernel distance (eq. 4) and v = S / dt the kernel velocity (eq. 5) between
empirical neural tangent kernels of one fixed probe; equations and figures are those of
<cite>On the Cone Effect in the Learning Dynamics</cite> (arXiv:2503.16316)."""
"""HTML that says what the numbers of a run, or of a sweep, are."""

_LEADING = ("distance-from", "distance-after", "embedding-2d", "cone-displacement")
"""The pictures that carry the answer, in the order to show them."""

_PICTURES: Mapping[str, Callable[[RunAnalysis], str]] = MappingProxyType(
    {"Spectrum": leading_eigenvectors, "Attribution": leading_samples}
)
"""Title of a section → what it shows of the probe's samples themselves, as HTML."""


def write_report(run: Run, path: Path) -> Path:
    """Write a run's figures, numbers, recipe and environment as one HTML file.

    The file loads nothing from elsewhere, so it can be read without a network and sent by mail.
    It appears whole or not at all: an earlier report stays until the new one is complete.

    Args:
        run: a run, finished or not.
        path: the file to write; its folder is made if missing.

    Returns:
        `path`.

    Raises:
        StoreError: if the file cannot be written.
    """
    return write_page(path, report_page(run))


def report_page(run: Run) -> str:
    """Return the HTML page that `write_report` writes."""
    analysis = analyse(run)
    found = {s.title: c for s, c in zip(SECTIONS, contents(analysis), strict=True)}
    plots, absent = _figures(run)
    for content in found.values():
        plots |= content.plots
    facts = _facts(run, found)
    leading = [drawn(plots[name], name, facts.get(name)) for name in _LEADING if name in plots]
    charts = [drawn(plots[name], name) for name in FIGURES if name in plots.keys() - {*_LEADING}]
    parts = [
        Part("Main numbers", f"<p>{ABOUT}</p>{numbers_table(main_numbers(run))}"),
        Part("Iteration by iteration", kernels_by_iteration(analysis)),
        Part("Other figures", columns([*charts, *map(missing, absent)])),
        *_sections(analysis, found),
        perturbed_part(run),
        *origin_parts(
            "How to make this run again",
            run.command,
            run.environment,
            "Recipe" if run.recipe else "What was measured",
            run.details,
        ),
    ]
    return page_of(
        name=run.name,
        description=run.description,
        state=state(run),
        is_finished=run.finished,
        journal=run.head,
        answer=f'<p class="answer">{escape(opening(analysis))}</p>{columns(leading)}',
        parts=[part for part in parts if part.body],
    )


def _figures(run: Run) -> tuple[dict[str, Plot], list[str]]:
    """Return all figures but the overview, which holds three of them again, and why some lack."""
    plots, absent = {}, []
    for name, figure_of in FIGURES.items():
        if name == "overview":
            continue
        try:
            plots[name] = figure_of(run)
        except (KernelError, TrainingError) as reason:
            absent.append(f"No figure {name}: {reason}.")
    return plots, absent


def _facts(run: Run, found: Mapping[str, Content]) -> dict[str, Mapping[str, str]]:
    """Return the numbers that each of the leading pictures shows."""
    motion = found["The cone as a test"].numbers
    chosen = {
        "embedding-2d": ("phase boundary t*", "half-angle of the cone", "dimension of the motion"),
        "cone-displacement": ("verdict", "probabilities", "shares at phase II's length"),
    }
    return {
        "distance-from": distance_numbers(run.series),
        "distance-after": neighbour_numbers(run.series),
        **{
            name: {key: motion[key] for key in keys if key in motion}
            for name, keys in chosen.items()
        },
    }


def _sections(analysis: RunAnalysis, found: Mapping[str, Content]) -> list[Part]:
    """Return every section of the analysis that says something, or why it is absent."""
    parts = []
    for section in SECTIONS:
        content = found[section.title]
        if not (content.says_something or content.missing):
            continue
        charts = [drawn(plot, name) for name, plot in content.plots.items() if name not in _LEADING]
        pictures = _PICTURES[section.title](analysis) if section.title in _PICTURES else ""
        body = (
            f"<p>{escape(section.about)}</p>",
            numbers_table(content.numbers),
            columns(charts),
            pictures,
            *(missing(f"Absent: {reason}.") for reason in content.missing),
        )
        parts.append(Part(section.title, "\n".join(body)))
    return parts
