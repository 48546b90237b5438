"""Processes of `conescope` that meet a fault, a signal or each other, and what they leave."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.torture.subjects import TINY, numbers
from conescope.runs.journal import Kind
from conescope.runs.store import Folder

ROOT = Path(__file__).parents[2]
"""The folder from which a script imports `benchmarks`."""

SECONDS = 900
"""The time after which a process counts as one that never ends, on a busy machine, too."""

RUN = ["run", "digits", *TINY, "--out", "r"]
"""The words that make the run folder `r`, which all the other commands read."""

COMMANDS = {
    "run": RUN,
    "figures": ["figures", "r"],
    "report": ["report", "r"],
    "cone": ["cone", "r"],
    "status": ["status", "r"],
    "measure": ["measure", "r", "--out", "m", "--outputs", "sum"],
    "export": ["export", "r", "--out", "r.zip"],
    "switch": ["switch", "r", "--at", "0,12"],
    "sweep": ["sweep", "digits", *TINY, "--seed=0,1", "--out", "s", "--slots", "2"],
}


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status, and what it wrote on standard error."""

    status: int
    said: str

    def wrong(self) -> str:
        """Return what a failure that is told badly looks like; "" if it is told well."""
        lines = self.said.strip().splitlines()
        if "Traceback" in self.said:
            return f"a traceback that ends with {lines[-1]!r}"
        odd = [line for line in lines if not line.startswith(("conescope: ", "usage: "))]
        if odd:
            return f"other lines than ours on standard error: {odd[-1]!r}"
        errors = [line for line in lines if line.startswith("conescope: error: ")]
        return f"{len(errors)} errors are told" if self.status == 1 and len(errors) != 1 else ""


def start(words: Sequence[str], place: Path, fault: str = "", **options: Any) -> Any:
    """Start `conescope` in a folder.

    Args:
        words: the words after `conescope`.
        place: the current folder of the process.
        fault: Python code to carry out before.
        options: of `subprocess.Popen`.
    """
    code = f"{fault}\nimport sys; sys.argv[0] = 'conescope'\nfrom conescope.cli import main\n"
    program = ["-c", f"{code}sys.exit(main())"] if fault else ["-m", "conescope"]
    given = {
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.PIPE,
        "text": True,
        "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # off in a background
        **options,
    }
    return subprocess.Popen([sys.executable, *program, *words], cwd=place, **given)


def ended(process: Any, seconds: float = SECONDS) -> Ended:
    """Wait for a process."""
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Ended(-1, f"Traceback: no end within {seconds:g} s")
    return Ended(process.returncode, said or "")


def run(words: Sequence[str], place: Path, fault: str = "", **options: Any) -> Ended:
    """Start `conescope`, and wait for its end; see `start`."""
    return ended(start(words, place, fault, **options))


class Whole:
    """What commands leave that nothing disturbs, made when it is first asked for.

    Args:
        path: the folder in which the commands are given.
        commands: name → words of each.
    """

    def __init__(self, path: Path, commands: Mapping[str, Sequence[str]] = COMMANDS) -> None:
        self._path, self._commands = path, commands
        self.seconds: dict[str, float] = {}

    def with_all(self, *names: str) -> Path:
        """Return the folder, once these commands were given in it."""
        self._path.mkdir(exist_ok=True)
        for name in names:
            if name not in self.seconds:
                begun = time.monotonic()
                done = run(self._commands[name], self._path)
                assert done.status == 0, done.said
                self.seconds[name] = time.monotonic() - begun
        return self._path


def left_by(name: str, place: Path) -> dict[str, bytes]:
    """Return what a command leaves that has to be the same whenever it is given."""
    return _LEFT.get(name, lambda _: {})(place)


def _files(pattern: str) -> Callable[[Path], dict[str, bytes]]:
    return lambda place: {
        file.name: file.read_bytes()
        for file in sorted((place / "r").glob(pattern))
        if not file.name.startswith(".")
    }


def _archive(place: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(place / "r.zip") as archive:
        names = [name for name in archive.namelist() if name.startswith(("kernels/", "recipe"))]
        return {name: archive.read(name) for name in names}


def _runs_in(folder: str) -> Callable[[Path], dict[str, bytes]]:
    return lambda place: {
        f"{run.name} {name}": data
        for run in sorted((place / folder).iterdir())
        if run.is_dir()
        for name, data in numbers(run).items()
    }


def _children(place: Path) -> dict[str, bytes]:
    """Return the evaluations of the children of a switch, which have no kernels."""
    return {
        f"{child.name} {entry.values['step']}": repr(
            [value for name, value in sorted(entry.values.items()) if name != "seconds"]
        ).encode()
        for child in sorted((place / "r/branches").iterdir())
        if child.is_dir()
        for entry in Folder(child).entries(Kind.EVALUATION)
    }


_LEFT: dict[str, Callable[[Path], dict[str, bytes]]] = {
    "run": lambda place: numbers(place / "r"),
    "figures": _files("figures/[!c]*"),
    "report": _files("report.html"),
    "cone": _files("figures/cone-*"),
    "measure": lambda place: numbers(place / "m"),
    "export": _archive,
    "switch": _children,
    "sweep": _runs_in("s/runs"),
}
