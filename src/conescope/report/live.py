"""Serve the reports of runs and of sweeps as they go, read only, to a browser."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from conescope.errors import ConescopeError
from conescope.experiments.perturb import TABLE
from conescope.experiments.stored import load_run, read_status
from conescope.experiments.sweep.sweep_folder import ENDED, read_sweep
from conescope.report.index_page import index_page, page_without
from conescope.report.page import report_page
from conescope.report.served_folders import JOURNAL, address_name, find_served
from conescope.report.sweep_page import sweep_report_page
from conescope.report.sweep_table import load_sweep

_COOKIE = "conescope-token"
_SECONDS_OF_LIST, _SECONDS_OF_REPORT = 10, 120
"""After how many seconds a browser asks for a list of runs, and for a report, again."""


def application(folders: Sequence[Path], hosts: Sequence[str], token: str | None) -> Starlette:
    """Return a web application that shows runs and sweeps; it writes nothing.

    Args:
        folders: run folders, folders of run folders, and sweeps; looked into at every request.
        hosts: the names under which a browser may ask for it, so that no foreign page can.
        token: what a browser has to know, once as `?token=`; None for no such need.
    """
    pages = _Pages(folders)

    def guarded(answer: Callable[[str], Response]) -> Callable[[Request], Response]:
        def answer_if_known(request: Request) -> Response:
            refusal = None if token is None else _refusal(request, token)
            return refusal or answer(request.path_params.get("name", ""))

        return answer_if_known

    return Starlette(
        routes=[
            Route("/", guarded(pages.index)),
            Route("/runs/{name}", guarded(pages.run)),
            Route("/sweeps/{name}", guarded(pages.sweep)),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
    )


def _refusal(request: Request, token: str) -> Response | None:
    """Return the answer to one who does not know the token, or names it; None for all others."""
    given = request.query_params.get("token")
    if given is not None and secrets.compare_digest(given.encode(), token.encode()):
        answer = RedirectResponse(request.url.path, status_code=303)
        answer.set_cookie(_COOKIE, token, httponly=True, samesite="strict")
        return answer
    known = request.cookies.get(_COOKIE, "")
    if secrets.compare_digest(known.encode(), token.encode()):
        return None
    return PlainTextResponse(
        "This needs the address with ?token= that conescope serve printed.", 403
    )


class _Pages:
    """The pages; one is made again when what it shows has changed, by one request at a time."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._made: dict[Path, tuple[Hashable, str]] = {}
        self._lock = threading.Lock()

    def index(self, _: str) -> Response:
        """Return the list of all."""
        return _again(HTMLResponse(index_page(find_served(self._folders))), _SECONDS_OF_LIST)

    def run(self, name: str) -> Response:
        """Return the report of a run."""
        path = find_served(self._folders).runs.get(name)
        if path is None:
            return PlainTextResponse("There is no such run here; see the list of runs at /", 404)
        try:
            text = self._page(path, _seen(path), lambda: report_page(load_run(path)))
            is_finished = read_status(path).finished
        except ConescopeError as reason:
            text, is_finished = page_without(path, "no report yet", str(reason)), False
        answer = HTMLResponse(text)
        return answer if is_finished else _again(answer, _SECONDS_OF_REPORT)

    def sweep(self, name: str) -> Response:
        """Return the page of a sweep, with links to the reports of its runs."""
        path = find_served(self._folders).sweeps.get(name)
        if path is None:
            return PlainTextResponse("There is no such sweep here; see the list at /", 404)
        try:
            seen = tuple((run.id, run.state(), _size(run.path)) for run in read_sweep(path).runs)
            text = self._page(path, seen, lambda: _page_of_sweep(path))
            is_finished = all(state in ENDED for _, state, _ in seen)
        except ConescopeError as reason:
            text, is_finished = page_without(path, "cannot be shown", str(reason)), False
        answer = HTMLResponse(text)
        return answer if is_finished else _again(answer, _SECONDS_OF_REPORT)

    def _page(self, path: Path, seen: Hashable, make: Callable[[], str]) -> str:
        """Return the page of a folder, made again if what is `seen` of it differs from before."""
        with self._lock:
            if path not in self._made or self._made[path][0] != seen:
                self._made[path] = (seen, make())
            return self._made[path][1]


def _page_of_sweep(path: Path) -> str:
    results = load_sweep(path, store=False)
    return sweep_report_page(results, lambda run: f"/runs/{address_name(run)}")


def _seen(path: Path) -> Hashable:
    """Return what tells whether a run's report would be another one."""
    return _size(path), _size(path, Path("figures") / TABLE)


def _size(path: Path, name: str | Path = JOURNAL) -> tuple[int, int] | None:
    """Return time and size of a file of a run folder, which change with it; None before it."""
    try:
        seen = (path / name).stat()
    except FileNotFoundError:
        return None
    return seen.st_mtime_ns, seen.st_size


def _again(response: Response, seconds: int) -> Response:
    response.headers["Refresh"] = str(seconds)
    return response
