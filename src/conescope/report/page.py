"""The page: texts escaped, charts and plotly's script inlined, written in one piece."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from plotly.graph_objects import Figure
from plotly.io import to_html
from plotly.offline import get_plotlyjs

from conescope.errors import KernelError, StoreError, TrainingError
from conescope.report.analysis import analyse, known_labels, numbers, plots
from conescope.report.charts import CHARTS, Chart
from conescope.report.drawn import chart
from conescope.report.summary import main_numbers, state
from conescope.runs.reader import Run

CHART_CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "plotlyServerURL": "",
    "modeBarButtonsToRemove": ["select2d", "lasso2d"],
}


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
    aside = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(_page(run), encoding="utf-8")
        aside.replace(path)
    except OSError as reason:
        aside.unlink(missing_ok=True)
        raise StoreError(
            f"cannot write the report {path}: {reason.strerror}; free space there or choose "
            "another file"
        ) from reason
    return path


def _page(run: Run) -> str:
    template = files("conescope.report").joinpath("page.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        name=escape(run.name),
        description=escape(run.description),
        state=escape(state(run)),
        state_class="finished" if run.finished else "unfinished",
        numbers=_rows(main_numbers(run)),
        figures="\n".join(_figure(run, *item) for item in CHARTS.items()),
        cone=_cone(run),
        command=escape(run.command),
        environment=_rows(run.environment),
        details_title="Recipe" if run.recipe else "What was measured",
        details=escape(run.details),
        plotly=get_plotlyjs(),
    )


def _rows(values: Mapping[str, str]) -> str:
    return "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in values.items()
    )


def _cone(run: Run) -> str:
    """The test for the cone: numbers and charts, or the reason why this run has none."""
    try:
        found = analyse(run, known_labels(run))
    except KernelError as reason:
        return f'<p class="missing">No test: {escape(str(reason))}.</p>'
    charts = (
        _captioned(plot.title, _chart(chart(plot), name), plot.caption)
        for name, plot in plots(found).items()
    )
    table = f'<table class="numbers">{_rows(numbers(found))}</table>'
    return f'{table}\n<div class="columns">{"".join(charts)}</div>'


def _figure(run: Run, name: str, shown: Chart) -> str:
    """A chart with its heading and caption, or the reason why this run has none."""
    try:
        body = _chart(shown.draw(run), name)
    except (KernelError, TrainingError) as reason:
        body = f'<p class="missing">No chart: {escape(str(reason))}.</p>'
    return _captioned(shown.title, body, shown.caption)


def _captioned(title: str, body: str, caption: str) -> str:
    return (
        f"<figure><h3>{escape(title)}</h3>{body}<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _chart(drawn: Figure, name: str) -> str:
    html = to_html(
        drawn,
        div_id=name,
        full_html=False,
        include_plotlyjs=False,
        default_height="100%",
        config={**CHART_CONFIG, "toImageButtonOptions": {"filename": name}},
    )
    return f'<div class="chart">{html}</div>'
