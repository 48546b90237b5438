"""Kills: SIGKILL, SIGINT and SIGTERM at random moments of whatever writes a run folder.

What has to hold: no traceback, and the same command, given again until it ends, leaves bit for bit
what it leaves undisturbed. A script of a user's own may show a traceback of its own after Ctrl-C.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.torture.case import Case
from benchmarks.torture.processes import COMMANDS, ROOT, Ended, Whole, ended, left_by, start
from benchmarks.torture.subjects import numbers

_SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
_COMMANDS = ("run", "measure", "switch")
_EACH = 9
"""Cases of a command and a signal; so there are 27 of each command, with 54 kills."""

_KILLS = 2
_WATCH = "from benchmarks.torture.subjects import watch; from pathlib import Path; watch(Path('w'))"


class _WholeWatch:
    """What the script with a watch leaves that nothing disturbs, made when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._path, self._seconds = path, 0.0

    def made(self) -> tuple[Path, float]:
        """Return the folder that it was given in, and how long it took, in seconds."""
        if not self._path.exists():
            self._path.mkdir()
            begun = time.monotonic()
            done = ended(_start_watch(self._path))
            assert done.status == 0, done.said
            self._seconds = time.monotonic() - begun
        return self._path, self._seconds


def kills(shared: Path) -> list[Case]:
    """Kill commands, scripts and workers, each twice, and go on with them; see `Battery`."""
    whole, watch = Whole(shared / "whole"), _WholeWatch(shared / "watch")
    attempts = {name: partial(_command, name, whole) for name in _COMMANDS}
    attempts |= {"watch": partial(_watch, watch), "sweep": partial(_sweep, whole)}
    return [
        Case(
            f"{name}, {number.name}",
            f"{name}, {number.name}, {count}",
            partial(attempt, number),
        )
        for name, attempt in attempts.items()
        for number in _SIGNALS
        for count in range(_EACH)
    ]


def _command(
    name: str, whole: Whole, number: signal.Signals, place: Path, chance: random.Random
) -> Iterator[str]:
    path = whole.with_all("run", name)
    if name != "run":
        shutil.copytree(path / "r", place / "r", ignore=shutil.ignore_patterns("branches"))
    for _ in range(_KILLS):
        moment = chance.uniform(0.1, whole.seconds[name])
        done = _killed(start(COMMANDS[name], place), number, moment)
        # Python shows one of its own if Ctrl-C comes before it has loaded the first of our files.
        is_pythons = "Traceback" in done.said and "conescope" not in done.said
        if done.status not in (0, -number, 128 + number) and not is_pythons:
            yield f"after {moment:.2f} s it ends with {done.status}: {done.said.strip()[-300:]}"
        elif "Traceback" in done.said and not is_pythons:
            yield f"after {moment:.2f} s it shows a traceback: {done.said.strip()[-300:]}"
    done = ended(start(COMMANDS[name], place))
    if done.status != 0:
        yield f"it does not go on to the end: {done.said.strip()[-300:]}"
    elif left_by(name, place) != left_by(name, path):
        yield "it leaves something else"


def _watch(
    whole: _WholeWatch, number: signal.Signals, place: Path, chance: random.Random
) -> Iterator[str]:
    path, seconds = whole.made()
    for _ in range(_KILLS):
        moment = chance.uniform(0.1, seconds)
        done = _killed(_start_watch(place), number, moment)
        if done.status not in (0, 1, -number, 128 + number):
            yield f"after {moment:.2f} s it ends with {done.status}: {done.said.strip()[-300:]}"
    done = ended(_start_watch(place))
    if done.status != 0:
        yield f"it does not go on to the end: {done.said.strip()[-300:]}"
    elif numbers(place / "w") != numbers(path / "w"):
        yield "it leaves something else"


def _sweep(
    whole: Whole, number: signal.Signals, place: Path, chance: random.Random
) -> Iterator[str]:
    """Kill workers of one sweep; what dies twice at one place may be given up until it is rerun."""
    path = whole.with_all("sweep")
    process = start(COMMANDS["sweep"], place)
    for _ in range(_KILLS):
        _wait(process, chance.uniform(0.1, whole.seconds["sweep"]))
        while process.poll() is None and not (workers := _workers(process.pid)):
            _wait(process, 0.05)
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(chance.choice(workers), number)
    done = ended(process)
    if done.status != 0 and not (done.status == 1 and "given up" in done.said):
        yield f"the sweep ends with {done.status}: {done.said.strip()[-300:]}"
    if "Traceback" in done.said:
        yield f"the sweep shows a traceback: {done.said.strip()[-300:]}"
    done = ended(start(COMMANDS["sweep"], place))
    if done.status != 0:
        yield f"it does not go on to the end: {done.said.strip()[-300:]}"
    elif left_by("sweep", place) != left_by("sweep", path):
        yield "it leaves something else"


def _killed(process: Any, number: signal.Signals, moment: float) -> Ended:
    _wait(process, moment)
    if process.poll() is None:
        process.send_signal(number)
    return ended(process)


def _wait(process: Any, seconds: float) -> None:
    """Wait for some seconds, or until a process has ended."""
    until = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)


def _workers(pid: int) -> list[int]:
    """Return the processes that the server of a sweep's slots has started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    servers = {child for child, parent in parents.items() if parent == pid}
    return sorted(child for child, parent in parents.items() if parent in servers)


def _start_watch(place: Path) -> Any:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {_WATCH}"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=place, stderr=subprocess.PIPE, text=True
    )
