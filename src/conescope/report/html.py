"""Build an HTML page of parts under headings: texts are escaped, charts and plotly inlined."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from conescope.report.plot import Plot
from conescope.report.plotly_drawing import chart
from conescope.report.plotly_looks import AT_NIGHT
from conescope.report.thinned import thinned
from conescope.runs.shared_files import write_result


@dataclass(frozen=True)
class Part:
    """A part of a page, with an entry in its table of contents.

    Attributes:
        title: its heading, as text.
        body: HTML.
    """

    title: str
    body: str


def write_page(path: Path, text: str) -> Path:
    """Write a page that appears whole or not at all; its folder is made if missing.

    Raises:
        StoreError: if the file cannot be written.
    """
    return write_result(path, text.encode())


def page_of(
    *,
    name: str,
    description: str,
    state: str,
    is_finished: bool,
    answer: str,
    parts: Sequence[Part],
    journal: str = "",
) -> str:
    """Return a page that opens with its answer and a table of contents of its parts.

    Args:
        name: its title, as text.
        description: one line of text below it.
        state: how far what it shows is, as text.
        is_finished: whether it is complete.
        answer: HTML of what it found.
        parts: what follows, in the order to show it.
        journal: the head of the journal that it is made from (`Run.head`).
    """
    names = _anchors(part.title for part in parts)
    entries = "".join(
        f'<li><a href="#{anchor}">{escape(part.title)}</a></li>'
        for anchor, part in zip(names, parts, strict=True)
    )
    navigation = f'<nav aria-label="Contents"><ul>{entries}</ul></nav>' if parts else ""
    sections = (
        f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{escape(part.title)}</h2>'
        f"{part.body}</section>"
        for anchor, part in zip(names, parts, strict=True)
    )
    body = "\n".join((answer, *sections))
    return Template(_resource("page.html")).substitute(
        plotly=get_plotlyjs() if "plotly-graph-div" in body else "",
        night=json.dumps(AT_NIGHT),
        script=_resource("page.js"),
        journal=escape(journal),
        name=escape(name),
        description=escape(description),
        state=escape(state),
        state_class="finished" if is_finished else "unfinished",
        answer=answer,
        contents=navigation,
        sections=body.removeprefix(answer),
    )


def _resource(name: str) -> str:
    return files("conescope.report").joinpath(name).read_text(encoding="utf-8")


def _anchors(titles: Iterable[str]) -> list[str]:
    """Return a name for each title that links can point to; no two are the same."""
    words = [re.sub(r"\W+", "-", title.lower()).strip("-") for title in titles]
    return [f"part-{place}-{word}" for place, word in enumerate(words, start=1)]


def origin_parts(
    again: str, command: str, environment: Mapping[str, str], title: str, details: str
) -> list[Part]:
    """Return the last parts of a page: the command that makes it again, machine, and recipe.

    Args:
        again: heading of the command.
        command: a command of the shell.
        environment: versions and machine.
        title: heading of the details.
        details: everything that was asked for, as YAML.
    """
    return [
        Part(again, f'<pre tabindex="0">{escape(command)}</pre>'),
        Part("Environment", f'<table class="environment">{rows(environment)}</table>'),
        Part(title, f'<pre tabindex="0">{escape(details)}</pre>'),
    ]


def numbers_table(values: Mapping[str, str]) -> str:
    """Return a table of names and values; nothing if there are none."""
    return f'<table class="numbers">{rows(values)}</table>' if values else ""


def rows(values: Mapping[str, str]) -> str:
    """Return the rows of a table of names and values."""
    return "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in values.items()
    )


def columns(bodies: Sequence[str]) -> str:
    """Return HTML side by side where there is room; nothing if there is none."""
    return f'<div class="columns">{"".join(bodies)}</div>' if bodies else ""


def missing(reason: str) -> str:
    """Return why something is absent, as a paragraph."""
    return f'<p class="missing">{escape(reason)}</p>'


def drawn(plot: Plot, name: str, facts: Mapping[str, str] | None = None) -> str:
    """Return a plot's chart under its heading, with the numbers that it shows and its caption."""
    plot = thinned(plot)
    body = chart_div(plot, name) + numbers_table(facts or {})
    return captioned(plot.title, body, plot.caption)


def captioned(title: str, body: str, caption: str) -> str:
    """Return an HTML figure: a heading, a body that is HTML, and a caption."""
    return (
        f"<figure><h3>{escape(title)}</h3>{body}<figcaption>{escape(caption)}</figcaption></figure>"
    )


def chart_div(plot: Plot, name: str) -> str:
    """Return the HTML of a plot's chart, under a name that no other chart of the page has."""
    return figure_div(chart(plot), name)


def figure_div(figure: go.Figure, name: str) -> str:
    """Return the HTML of a plotly figure, under a name that no other chart of the page has.

    It is data that the page draws when it comes into view, so that a long page opens at once.
    """
    data = str(figure.to_json()).replace("<", "\\u003c")  # which would end the element
    return (
        f'<div class="chart"><div id="{name}" class="plotly-graph-div"></div>'
        f'<script type="application/json" data-chart="{name}">{data}</script></div>'
    )
