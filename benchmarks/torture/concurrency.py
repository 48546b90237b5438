"""Concurrent use: several starters of one run, writers of one file, readers beside a writer.

What has to hold: one of the starters works and each other one says so in one line; every writer
ends with 0, and the file is whole; a reader gets numbers of the finished run, or one line.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.torture.outcome import Outcome, drawn
from benchmarks.torture.processes import COMMANDS, RUN, ended, left_by, start
from benchmarks.torture.subjects import numbers
from conescope.errors import ConescopeError, StoreError

_STARTERS = 6
_WRITERS = 4
_WRITTEN = ("figures", "report", "cone")
_READERS = ("status", "report", "cone", "measure", "load_run")
_REPEATS = 4
_LONG = [*RUN, "--training.steps=600", "--snapshots.resume=every 3"]


def concurrency(seed: int, share: float) -> list[Outcome]:
    """Start processes at once on one run folder; see `Battery`."""
    chance, outcomes = random.Random(seed), []
    cases = [("starters", "run")] + [("writers", n) for n in _WRITTEN]
    cases += [("readers", name) for name in _READERS]
    chosen = drawn(cases * _REPEATS, share, chance)
    with tempfile.TemporaryDirectory() as folder:
        whole, long = Path(folder) / "whole", Path(folder) / "long"
        whole.mkdir()
        long.mkdir()
        for name in dict.fromkeys(["run", *(n for k, n in chosen if k == "writers")]):
            assert ended(start(COMMANDS[name], whole)).status == 0
        if any(kind == "readers" for kind, _ in chosen):
            assert ended(start(_LONG, long)).status == 0
        for kind, name in chosen:
            place = Path(folder) / "case"
            place.mkdir()
            if kind == "starters":
                wrong = list(_starters(place, whole))
            elif kind == "writers":
                wrong = list(_writers(name, place, whole))
            else:
                wrong = list(_readers(name, place, long))
            shutil.rmtree(place)
            told = f"{name}: {'; '.join(wrong)}" if wrong else name
            outcomes.append(Outcome(kind, not wrong, told))
    return outcomes


def _starters(place: Path, whole: Path) -> Iterator[str]:
    for done in [ended(one) for one in [start(RUN, place) for _ in range(_STARTERS)]]:
        if done.status == 1 and "belongs to another process" not in done.said:
            yield f"one says {done.said!r}"
        if done.status not in (0, 1) or done.wrong():
            yield f"one ends with {done.status}: {done.wrong()}"
    if left_by("run", place) != left_by("run", whole):
        yield "they leave something else"


def _writers(name: str, place: Path, whole: Path) -> Iterator[str]:
    made = shutil.ignore_patterns("figures", "report.html")
    shutil.copytree(whole / "r", place / "r", ignore=made)
    for done in [ended(one) for one in [start(COMMANDS[name], place) for _ in range(_WRITERS)]]:
        if done.status != 0:
            yield f"one ends with {done.status}: {done.said.strip()[-300:]}"
    if left_by(name, place) != left_by(name, whole):
        yield "they leave something else"
    if list((place / "r").rglob("*.partial")):
        yield "a file written aside stays"


def _readers(name: str, place: Path, long: Path) -> Iterator[str]:
    expected = numbers(long / "r")
    writer = start(_LONG, place)
    while writer.poll() is None:
        if name == "load_run":
            yield from _read(place, expected)
            continue
        done = ended(start(COMMANDS[name], place))
        if done.status not in (0, 1) or done.wrong() or "--when" in done.said:
            yield f"it ends with {done.status}: {done.said.strip()[-300:]}"
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
