"""The page: texts escaped, charts and plotly's script inlined, written in one piece."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from plotly.io import to_html
from plotly.offline import get_plotlyjs

from conescope.errors import KernelError, StoreError, TrainingError
from conescope.report.charts import CHARTS, Chart
from conescope.run import Run
from conescope.summary import main_numbers, state

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
        figures="\n".join(_figure(run, name, chart) for name, chart in CHARTS.items()),
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


def _figure(run: Run, name: str, chart: Chart) -> str:
    """A chart with its heading and caption, or the reason why this run has none."""
    try:
        body = f'<div class="chart">{_html(run, name, chart)}</div>'
    except (KernelError, TrainingError) as reason:
        body = f'<p class="missing">No chart: {escape(str(reason))}.</p>'
    return (
        f"<figure><h3>{escape(chart.title)}</h3>{body}"
        f"<figcaption>{escape(chart.caption)}</figcaption></figure>"
    )


def _html(run: Run, name: str, chart: Chart) -> str:
    return to_html(
        chart.draw(run),
        div_id=name,
        full_html=False,
        include_plotlyjs=False,
        default_height="100%",
        config={**CHART_CONFIG, "toImageButtonOptions": {"filename": name}},
    )
