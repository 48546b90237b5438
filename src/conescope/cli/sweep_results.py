"""`conescope sweep status` and `conescope sweep report`: how far a sweep is, and what it says."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich import console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from conescope.cli.command_help import About, Group
from conescope.cli.commands import Commands
from conescope.cli.json_output import add_json, print_json
from conescope.cli.terminal import STDOUT, duration
from conescope.experiments.sweep.sweep_folder import ENDED, STATES, State, read_sweep

if TYPE_CHECKING:
    from conescope.experiments.sweep.sweep_progress import SweepProgress

_SHOWN = 20
"""Rows of a list, so that a table fits a terminal."""

_REFRESH_SECONDS = 2.0

_UNENDED: tuple[State, ...] = tuple(state for state in STATES if state not in ENDED)

_IDLE_LOOKS = 5
"""Looks in a row that see no run at work, after which the status is no longer followed."""

_ABOUT_STATUS = About(
    Group.MANY,
    "say how far a sweep is, live at a terminal",
    (
        "conescope sweep status sweeps/mine",
        "conescope sweep status sweeps/mine --once",
    ),
)

_ABOUT_REPORT = About(
    Group.MANY,
    "write a sweep's table, and its page of figures, from what is stored",
    ("conescope sweep report sweeps/mine",),
)


def add(commands: Commands) -> None:
    """Add the commands."""
    status = commands.add("sweep status", _status, _ABOUT_STATUS)
    status.add_argument("--once", action="store_true", help="say it once, also at a terminal")
    report = commands.add("sweep report", _report, _ABOUT_REPORT)
    for parser in (status, report):
        parser.add_argument("sweep", metavar="DIR", type=Path, help="a sweep's folder")
        add_json(parser)


def _status(arguments: argparse.Namespace) -> int:
    from conescope.experiments.sweep.sweep_progress import read_progress

    sweep = read_sweep(arguments.sweep)
    ended: dict[str, tuple[State, float]] = {}
    progress = read_progress(sweep, ended)
    if arguments.json:
        print_json({"sweep": sweep.path, **asdict(progress)})
        return 0
    if arguments.once or not STDOUT.is_terminal:
        STDOUT.print(_shown(progress))
        return 0
    idle = 0
    with suppress(KeyboardInterrupt), Live(_shown(progress), console=STDOUT) as live:
        while idle < _IDLE_LOOKS and any(progress.counts[state] for state in _UNENDED):
            time.sleep(_REFRESH_SECONDS)
            progress = read_progress(sweep, ended)
            idle = 0 if progress.running else idle + 1
            live.update(_shown(progress))
    return 0


def _shown(progress: SweepProgress) -> console.Group:
    """Return the tables of a sweep's progress."""
    counts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    counts.add_column()
    counts.add_column(justify="right")
    for state, count in progress.counts.items():
        if count:
            counts.add_row(state, f"{count:,}")
    counts.add_row("in all", f"{sum(progress.counts.values()):,}")
    left = progress.seconds_left
    parts = [counts, *([] if left is None else [Text(f"about {duration(left)} left")])]
    running = {
        one.id: (
            f"{one.done:,} kernels" if one.total is None else f"{one.done:,} of {one.total:,}",
            f"{one.rate:.3g} / s" if one.rate else "",
            "" if one.seconds_left is None else duration(one.seconds_left),
        )
        for one in progress.running
    }
    parts += _listed(("running", "iterations", "rate", "left"), running)
    failed: dict[str, tuple[str, ...]] = {}
    for error, names in _by_error(progress.failed).items():
        others = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        failed[names[0] + others] = (error,)
    return console.Group(*parts, *_listed(("failed or diverged", "last error"), failed))


def _by_error(failed: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the line of each error with the runs that it ended."""
    found: dict[str, list[str]] = {}
    for name, error in failed.items():
        found.setdefault(error, []).append(name)
    return found


def _listed(heads: tuple[str, ...], rows: Mapping[str, tuple[str, ...]]) -> list[Table | Text]:
    """Return a table below an empty line, of the first rows; nothing if there is no row."""
    if not rows:
        return []
    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in heads:
        table.add_column(head, overflow="fold")
    for name, values in list(rows.items())[:_SHOWN]:
        table.add_row(Text(name), *map(Text, values))
    more = len(rows) - _SHOWN
    return [Text(), table, *([Text(f"and {more:,} more")] if more > 0 else [])]


def _report(arguments: argparse.Namespace) -> int:
    from conescope.report.sweep_page import write_sweep_report
    from conescope.report.sweep_table import load_sweep

    files = write_sweep_report(load_sweep(arguments.sweep))
    if arguments.json:
        print_json({"sweep": arguments.sweep, "files": files})
        return 0
    for file in files:
        STDOUT.print(str(file))
    return 0
