"""The list of sweeps and runs that are served, as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from conescope.errors import ConescopeError
from conescope.experiments.stored import read_status
from conescope.experiments.sweep.sweep_folder import STATES, read_sweep
from conescope.report.html import Part, missing, page_of
from conescope.report.served_folders import Served
from conescope.runs.reader import Status


def index_page(served: Served) -> str:
    """Return the page that leads to every sweep, and to every run that belongs to none."""
    sweeps = [_sweep_row(name, path) for name, path in served.sweeps.items()]
    runs = [_run_row(name, path) for name, path in served.single.items()]
    bodies = {
        "Sweeps": _table(("sweep", "axes", "runs"), sweeps),
        "Runs": _table(("run", "state", "iterations", "kernels"), runs),
    }
    return page_of(
        name="Runs",
        description="This list and the reports behind it are read from the run folders as they go.",
        state=f"{len(served.runs):,} run{'' if len(served.runs) == 1 else 's'}",
        is_finished=True,
        answer="" if sweeps or runs else missing("No runs yet."),
        parts=[Part(title, body) for title, body in bodies.items() if body],
    )


def page_without(path: Path, state: str, reason: str) -> str:
    """Return the page of a folder that cannot be shown yet."""
    return page_of(
        name=path.name,
        description=str(path),
        state=state,
        is_finished=False,
        answer=missing(reason),
        parts=[Part("Runs", '<p><a href="/">All runs</a></p>')],
    )


def _table(heads: Sequence[str], rows: Sequence[str]) -> str:
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    body = "".join(rows)
    return f'<div class="wide" tabindex="0"><table><tr>{head}</tr>{body}</table></div>'


def _row(kind: str, name: str, path: Path, cells: Sequence[str]) -> str:
    link = f'<a href="/{kind}/{name}">{escape(str(path))}</a>'
    rest = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f'<tr><th scope="row">{link}</th>{rest}</tr>'


def _sweep_row(name: str, path: Path) -> str:
    try:
        sweep = read_sweep(path)
        counts: Mapping[str, int] = Counter(run.state() for run in sweep.runs)
    except ConescopeError as reason:
        return _row("sweeps", name, path, ("", str(reason)))
    states = ", ".join(f"{counts[state]:,} {state}" for state in STATES if counts[state])
    return _row("sweeps", name, path, (", ".join(sweep.axes), states))


def _run_row(name: str, path: Path) -> str:
    try:
        status = read_status(path)
    except ConescopeError as reason:
        return _row("runs", name, path, (str(reason), "", ""))
    return _row("runs", name, path, (_state(status), status.extent, f"{status.kernels:,}"))


def _state(status: Status) -> str:
    states = {"finished": status.finished, "running": status.running, "diverged": status.diverged}
    return next((state for state, holds in states.items() if holds), "stopped")
