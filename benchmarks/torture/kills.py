"""Kills: SIGKILL, SIGINT and SIGTERM at random moments of whatever writes a run folder.

What has to hold: no traceback, and the same command, given again until it ends, leaves bit for bit
what it leaves undisturbed. A script of a user's own may show a traceback of its own after Ctrl-C.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.torture.outcome import Outcome, drawn
from benchmarks.torture.processes import COMMANDS, ended, left_by, start
from benchmarks.torture.subjects import numbers

_SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
_NAMES = ("run", "measure", "switch", "watch")
_EACH = 16
_KILLS = 2
_WATCH = "from benchmarks.torture.subjects import watch; from pathlib import Path; watch(Path('w'))"
_ROOT = Path(__file__).parents[2]


def kills(seed: int, share: float) -> list[Outcome]:
    """Kill commands and scripts, each twice, and go on with them to the end; see `Battery`."""
    chance, outcomes = random.Random(seed), []
    chosen = drawn([(n, s) for n in _NAMES for s in _SIGNALS for _ in range(_EACH)], share, chance)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        whole.mkdir()
        used = {name for name, _ in chosen}
        names = [n for n in _NAMES if n in used or (n == "run" and used & {"measure", "switch"})]
        lasts = {name: _undisturbed(name, whole) for name in names}
        for name, number in chosen:
            place = Path(folder) / "case"
            place.mkdir()
            if name in ("measure", "switch"):
                shutil.copytree(whole / "r", place / "r", ignore=shutil.ignore_patterns("branches"))
            moments = [chance.uniform(0.1, lasts[name]) for _ in range(_KILLS)]
            wrong = list(_killed(name, number, place, moments))
            if not wrong and _left(name, place) != _left(name, whole):
                wrong = ["it leaves something else"]
            shutil.rmtree(place)
            at = ", ".join(f"{moment:.2f} s" for moment in moments)
            told = f"after {at}: {'; '.join(wrong)}" if wrong else at
            outcomes.append(Outcome(f"{name}, {number.name}", not wrong, told))
    return outcomes


def _undisturbed(name: str, place: Path) -> float:
    """Carry out a command to its end; return how long it took, in seconds."""
    begun = time.monotonic()
    done = ended(_start(name, place))
    assert done.status == 0, done.said
    return time.monotonic() - begun


def _start(name: str, place: Path) -> Any:
    if name != "watch":
        return start(COMMANDS[name], place)
    code = f"import sys; sys.path.insert(0, {str(_ROOT)!r}); {_WATCH}"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=place, stderr=subprocess.PIPE, text=True
    )


def _killed(name: str, number: signal.Signals, place: Path, moments: list[float]) -> Iterator[str]:
    allowed = {0, -number, 128 + number} | ({1} if name == "watch" else set())
    for moment in moments:
        process = _start(name, place)
        time.sleep(moment)
        process.send_signal(number)
        done = ended(process)
        # Python shows one of its own if Ctrl-C comes before it has loaded the first of our files.
        is_ours = "Traceback" in done.said and "conescope" in done.said and name != "watch"
        if done.status not in allowed and (is_ours or "Traceback" not in done.said):
            yield f"it ends with {done.status}: {done.said.strip()[-300:]}"
        elif is_ours:
            yield f"it shows a traceback: {done.said.strip()[-300:]}"
    done = ended(_start(name, place))
    if done.status != 0:
        yield f"it does not go on to the end: {done.said.strip()[-300:]}"


def _left(name: str, place: Path) -> dict[str, bytes]:
    return numbers(place / "w") if name == "watch" else left_by(name, place)
