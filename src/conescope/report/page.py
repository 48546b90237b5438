"""Write a run as one HTML file: texts are escaped, charts and plotly's script inlined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from plotly.io import to_html
from plotly.offline import get_plotlyjs

from conescope.errors import KernelError, StoreError, TrainingError
from conescope.report.figures import FIGURES
from conescope.report.plot import Plot
from conescope.report.plotly_drawing import chart
from conescope.report.run_analysis import analyse
from conescope.report.sections import SECTIONS, Content, Section, contents
from conescope.report.summary import main_numbers, state
from conescope.runs.reader import Run

CHART_CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "plotlyServerURL": "",
    "modeBarButtonsToRemove": ["select2d", "lasso2d"],
}

_ABOUT = """S is the kernel distance (eq. 4) and v = S / dt the kernel velocity (eq. 5) between
empirical neural tangent kernels of one fixed probe; equations and figures are those of
<cite>On the Cone Effect in the Learning Dynamics</cite> (arXiv:2503.16316)."""


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
    return write_page(path, _page(run))


def write_page(path: Path, text: str) -> Path:
    """Write a page that appears whole or not at all; see `write_report`."""
    aside = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as reason:
        aside.unlink(missing_ok=True)
        raise StoreError(
            f"cannot write the report {path}: {reason.strerror}; free space there or choose "
            "another file"
        ) from reason
    return path


def _page(run: Run) -> str:
    return filled(
        journal=run.head,
        name=escape(run.name),
        description=escape(run.description),
        state=escape(state(run)),
        state_class="finished" if run.finished else "unfinished",
        about=_ABOUT,
        numbers=rows(main_numbers(run)),
        figures=_figures(run),
        sections=_sections(run),
        command=escape(run.command),
        environment=rows(run.environment),
        details_title="Recipe" if run.recipe else "What was measured",
        details=escape(run.details),
    )


def filled(*, journal: str = "", **parts: str) -> str:
    """Return a page of these parts, each of them HTML under its name in the template.

    Args:
        journal: the head of the journal that the page was made from (`Run.head`).
        parts: the parts.
    """
    template = files("conescope.report").joinpath("page.html").read_text(encoding="utf-8")
    return Template(template).substitute(plotly=get_plotlyjs(), journal=escape(journal), **parts)


def rows(values: Mapping[str, str]) -> str:
    """Return the rows of a table of names and values."""
    return "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in values.items()
    )


def _sections(run: Run) -> str:
    """Return every section of the analysis that says something, or why it is absent."""
    found = zip(SECTIONS, contents(analyse(run)), strict=True)
    return "\n".join(_section(*pair) for pair in found if pair[1].says_something or pair[1].missing)


def _section(section: Section, content: Content) -> str:
    parts = [f"<h2>{escape(section.title)}</h2><p>{escape(section.about)}</p>"]
    if content.numbers:
        parts.append(f'<table class="numbers">{rows(content.numbers)}</table>')
    charts = [drawn(plot, name) for name, plot in content.plots.items()]
    if charts:
        parts.append(f'<div class="columns">{"".join(charts)}</div>')
    parts += [f'<p class="missing">Absent: {escape(reason)}.</p>' for reason in content.missing]
    return "\n".join(parts)


def _figures(run: Run) -> str:
    """Return the charts of all figures, without the overview, which holds three of them again."""
    return "\n".join(
        _figure(run, name, figure_of) for name, figure_of in FIGURES.items() if name != "overview"
    )


def _figure(run: Run, name: str, figure_of: Callable[[Run], Plot]) -> str:
    """Return a chart with its heading and caption, or the reason why this run has none."""
    try:
        plot = figure_of(run)
    except (KernelError, TrainingError) as reason:
        return f'<figure><p class="missing">No figure {name}: {escape(str(reason))}.</p></figure>'
    return drawn(plot, name)


def drawn(plot: Plot, name: str) -> str:
    """Return a plot's chart between its heading and its caption."""
    html = to_html(
        chart(plot),
        div_id=name,
        full_html=False,
        include_plotlyjs=False,
        default_height="100%",
        config={**CHART_CONFIG, "toImageButtonOptions": {"filename": name}},
    )
    caption = f"<figcaption>{escape(plot.caption)}</figcaption>"
    return f'<figure><h3>{escape(plot.title)}</h3><div class="chart">{html}</div>{caption}</figure>'
