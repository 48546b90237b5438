"""Concurrent use: several starters of one run, writers of one file, readers beside a writer.

What has to hold: one of the starters works and each other one says so in one line; every writer
ends with 0, and the file is whole; a reader gets numbers of the finished run, or one line.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.torture.case import Case
from benchmarks.torture.processes import COMMANDS, ROOT, RUN, Whole, ended, left_by, start
from benchmarks.torture.subjects import numbers, train
from conescope.errors import ConescopeError, StoreError

_STARTERS = 6
_WRITERS = 4
_WRITTEN = ("figures", "report", "cone")
_READERS = ("status", "report", "cone", "measure", "load_run")
_REPEATS = 4
_SLOW_WRITER = """
import os, sys, time
from pathlib import Path
from benchmarks.torture.subjects import train
sync = os.fsync
def slow(descriptor):
    time.sleep(0.3)
    return sync(descriptor)
os.fsync = slow
train(Path(sys.argv[1]))
"""
"""Trains, and waits whenever something is about to become visible to readers."""


def concurrency(shared: Path) -> list[Case]:
    """Start processes at once on one run folder; see `Battery`."""
    whole = Whole(shared / "whole")
    attempts = {"starters, run": partial(_starters, whole)}
    attempts |= {f"writers, {name}": partial(_writers, name, whole) for name in _WRITTEN}
    attempts |= {f"readers, {name}": partial(_readers, name) for name in _READERS}
    return [
        Case(name, f"{name}, {number}", attempt)
        for name, attempt in attempts.items()
        for number in range(_REPEATS)
    ]


def _starters(whole: Whole, place: Path, _: random.Random) -> Iterator[str]:
    for done in [ended(one) for one in [start(RUN, place) for _ in range(_STARTERS)]]:
        if done.status == 1 and "belongs to another process" not in done.said:
            yield f"one says {done.said!r}"
        if done.status not in (0, 1) or done.wrong():
            yield f"one ends with {done.status}: {done.wrong()}"
    if left_by("run", place) != left_by("run", whole.with_all("run")):
        yield "they leave something else"


def _writers(name: str, whole: Whole, place: Path, _: random.Random) -> Iterator[str]:
    path = whole.with_all("run", name)
    made = shutil.ignore_patterns("figures", "report.html")
    shutil.copytree(path / "r", place / "r", ignore=made)
    for done in [ended(one) for one in [start(COMMANDS[name], place) for _ in range(_WRITERS)]]:
        if done.status != 0:
            yield f"one ends with {done.status}: {done.said.strip()[-300:]}"
    if left_by(name, place) != left_by(name, path):
        yield "they leave something else"
    if list((place / "r").rglob("*.partial")):
        yield "a file written aside stays"


def _readers(name: str, place: Path, _: random.Random) -> Iterator[str]:
    train(place / "undisturbed")
    expected = numbers(place / "undisturbed")
    command = [sys.executable, "-c", _SLOW_WRITER, str(place / "r")]
    writer = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while writer.poll() is None:
        if name == "load_run":
            yield from _read(place, expected)
            time.sleep(0.1)
            continue
        done = ended(start(COMMANDS[name], place))
        if done.status not in (0, 1) or done.wrong():
            yield f"a reader ends with {done.status}: {done.wrong()}; {done.said.strip()[-300:]}"
    done = ended(writer)
    if done.status != 0 or numbers(place / "r") != expected:
        yield f"the writer ends with {done.status}: {done.said.strip()[-300:]}"


def _read(place: Path, expected: dict[str, bytes]) -> Iterator[str]:
    try:
        found = numbers(place / "r")
    except StoreError:
        return
    except ConescopeError as error:
        yield f"it says {error}"
        return
    for name, data in found.items():
        if not expected.get(name, b"").startswith(data):
            yield f"{name} is another one"
