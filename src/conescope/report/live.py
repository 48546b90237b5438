"""Serve the reports of runs as they go, read only, to a browser."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from conescope.errors import ConescopeError
from conescope.experiments.stored import load_run, read_status
from conescope.report.html import Part, missing, page_of
from conescope.report.page import report_page
from conescope.runs.reader import Status

_JOURNAL = "journal.jsonl"
_COOKIE = "conescope-token"
_SECONDS_OF_LIST, _SECONDS_OF_REPORT = 10, 120
"""After how many seconds a browser asks for a list of runs, and for a report, again."""


def runs_in(folders: Sequence[Path]) -> Iterator[Path]:
    """Return the run folders among some folders, and those in them, as in a sweep's `runs`."""
    for folder in folders:
        if (folder / _JOURNAL).exists():
            yield folder
        else:
            yield from sorted(file.parent for file in folder.glob(f"*/{_JOURNAL}"))
            yield from sorted(file.parent for file in folder.glob(f"runs/*/{_JOURNAL}"))


def application(folders: Sequence[Path], hosts: Sequence[str], token: str | None) -> Starlette:
    """Return a web application that shows runs; it writes nothing.

    Args:
        folders: run folders, folders of run folders, and sweeps; looked into at every request.
        hosts: the names under which a browser may ask for it, so that no foreign page can.
        token: what a browser has to know, once as `?token=`; None for no such need.
    """
    pages = _Pages(folders)

    def guarded(request: Request) -> Response:
        if token is not None:
            given = request.query_params.get("token")
            if given is not None and secrets.compare_digest(given.encode(), token.encode()):
                answer = RedirectResponse(request.url.path, status_code=303)
                answer.set_cookie(_COOKIE, token, httponly=True, samesite="strict")
                return answer
            known = request.cookies.get(_COOKIE, "")
            if not secrets.compare_digest(known.encode(), token.encode()):
                return PlainTextResponse(
                    "This needs the address with ?token= that conescope serve printed.", 403
                )
        return pages.answer(request.path_params.get("run"))

    return Starlette(
        routes=[Route("/", guarded), Route("/runs/{run}", guarded)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
    )


class _Pages:
    """The pages; a report is made again when its journal has changed, by one request at a time."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._made: dict[Path, tuple[tuple[int, int], str]] = {}
        self._lock = threading.Lock()

    def answer(self, run: str | None) -> Response:
        paths = {_name(path): path for path in runs_in(self._folders)}
        if run is None:
            return _again(HTMLResponse(_list_of(paths)), _SECONDS_OF_LIST)
        if run not in paths:
            return PlainTextResponse("There is no such run here; see the list of runs at /", 404)
        try:
            with self._lock:
                text = self._report(paths[run])
            is_finished = read_status(paths[run]).finished
        except ConescopeError as reason:
            text, is_finished = _without_report(paths[run], str(reason)), False
        answer = HTMLResponse(text)
        return answer if is_finished else _again(answer, _SECONDS_OF_REPORT)

    def _report(self, path: Path) -> str:
        seen = (path / _JOURNAL).stat()
        key = (seen.st_mtime_ns, seen.st_size)
        if path not in self._made or self._made[path][0] != key:
            self._made[path] = (key, report_page(load_run(path)))
        return self._made[path][1]


def _again(response: Response, seconds: int) -> Response:
    response.headers["Refresh"] = str(seconds)
    return response


def _name(path: Path) -> str:
    """Return a name of a run folder for addresses, which no other has."""
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]


def _list_of(paths: dict[str, Path]) -> str:
    rows = "".join(_row(name, path) for name, path in paths.items())
    heads = "".join(f"<th>{head}</th>" for head in ("run", "state", "iterations", "kernels"))
    table = f'<table class="runs"><tr>{heads}</tr>{rows}</table>'
    return page_of(
        name="Runs",
        description="This list and the reports behind it are read from the run folders as they go.",
        state=f"{len(paths):,} runs",
        is_finished=True,
        answer=table if rows else missing("No runs yet."),
        parts=[],
    )


def _row(name: str, path: Path) -> str:
    link = f'<a href="/runs/{name}">{escape(str(path))}</a>'
    try:
        status = read_status(path)
    except ConescopeError as reason:
        return f'<tr><td>{link}</td><td colspan="3">{escape(str(reason))}</td></tr>'
    cells = (_state(status), status.extent, f"{status.kernels:,}")
    return f"<tr><td>{link}</td>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _state(status: Status) -> str:
    states = {"finished": status.finished, "running": status.running, "diverged": status.diverged}
    return next((state for state, holds in states.items() if holds), "stopped")


def _without_report(path: Path, reason: str) -> str:
    return page_of(
        name=path.name,
        description=str(path),
        state="no report yet",
        is_finished=False,
        answer=missing(reason),
        parts=[Part("Runs", '<p><a href="/">All runs</a></p>')],
    )
