"""Failing writes: full and read-only disks, few open files, lost folders, broken standard output.

What has to hold: a command that fails says so in one line and by its exit status; the same command,
once the fault is gone, ends with 0 and leaves what it would have left without it.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

from benchmarks.torture.case import Case
from benchmarks.torture.processes import COMMANDS, RUN, Ended, Whole, left_by, run

_NAMES = ("run", "figures", "report", "cone", "status", "measure", "export")
_PATCH = """
import errno, os
left, names = [{after}], ("open", "write", "fsync", "mkdir", "replace")
def failing(real, name):
    def call(path, *rest, **named):
        writes = name != "open" or (rest and rest[0] & (os.O_WRONLY | os.O_RDWR))
        left[0] -= bool(writes)
        if writes and left[0] < 0:
            raise OSError(errno.{error}, os.strerror(errno.{error}))
        return real(path, *rest, **named)
    return call
for name in names:
    setattr(os, name, failing(getattr(os, name), name))
"""
_LOST = """
import os, shutil
left, sync = [{after}], os.fsync
def losing(descriptor):
    left[0] -= 1
    if left[0] == 0:
        shutil.rmtree("r", ignore_errors=True)
    return sync(descriptor)
os.fsync = losing
"""
_LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_{name}, ({value},) * 2)"
_ERRORS = ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EIO")
_FAULTS = (
    *_ERRORS, "few open files", "a limit of the size of files", "a lost folder", "a full disk",
    "a read-only disk", "standard output full", "standard output closed",
    "standard output a closed pipe",
)  # fmt: skip
_DRAWN = (*_ERRORS, "few open files", "a limit of the size of files", "a lost folder")
"""The faults of which a case draws the moment or the extent."""

_REPEATS = 3
_DISK = 48 * 2**20


def failing_writes(shared: Path) -> list[Case]:
    """Give commands while writing fails, and again when it does not; see `Battery`.

    Disks of their own take the right to mount a tmpfs; without it, their cases are left out.
    """
    faults = [f for f in _FAULTS if "disk" not in f or _can_mount()]
    whole = Whole(shared / "whole")
    return [
        Case(fault, f"{fault}, {name}, {number}", partial(_attempted, fault, name, whole))
        for fault in faults
        for name in _NAMES
        for number in range(_REPEATS if fault in _DRAWN else 1)
    ]


def _attempted(
    fault: str, name: str, whole: Whole, place: Path, chance: random.Random
) -> list[str]:
    path = whole.with_all("run", name)
    with _disk(place) if "disk" in fault else nullcontext():
        if name != "run":
            shutil.copytree(path / "r", place / "r", ignore=_made)
        first = _with_fault(fault, name, place, chance)
        return [*_wrong(first, fault, name), *_again(name, place, path)]


def _made(_: str, names: list[str]) -> list[str]:
    return [name for name in names if name in ("figures", "report.html")]


def _with_fault(fault: str, name: str, place: Path, chance: random.Random) -> Ended:
    words = COMMANDS[name]
    if fault == "standard output full":
        with open("/dev/full", "w") as full:
            return run(words, place, stdout=full)
    if fault == "standard output closed":
        return run(words, place, "import os; os.close(1); import sys; sys.stdout = None")
    if fault == "standard output a closed pipe":
        reading, writing = os.pipe()
        os.close(reading)
        try:
            return run(words, place, stdout=writing)
        finally:
            os.close(writing)
    if fault == "a full disk":
        filler = place / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        free = chance.choice((0, 4096, 40960))
        os.truncate(filler, max(0, filler.stat().st_size - free))
        done = run(words, place)
        filler.unlink()
        return done
    if fault == "a read-only disk":
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        done = run(words, place)
        subprocess.run(["mount", "-o", "remount,rw", place], check=True)
        return done
    return run(words, place, _code(fault, chance))


def _code(fault: str, chance: random.Random) -> str:
    if fault == "few open files":
        return _LIMIT.format(name="NOFILE", value=chance.randrange(5, 24))
    if fault == "a limit of the size of files":
        return _LIMIT.format(name="FSIZE", value=chance.choice((0, 100, 5000)))
    if fault == "a lost folder":
        return _LOST.format(after=chance.randrange(1, 30))
    return _PATCH.format(error=fault, after=chance.randrange(40))


def _wrong(first: Ended, fault: str, name: str) -> Iterator[str]:
    if told := first.wrong() if first.status != 1 or "pipe" not in fault else "":
        yield f"it ends with {first.status} and {told}"
    if first.status == 0 and "output" in fault:
        yield "it ends with 0"
    if first.status == 0 and "disk" in fault and name != "status":
        yield "it ends with 0"
    if "pipe" in fault and "error" in first.said:
        yield f"it says {first.said!r}"


def _again(name: str, place: Path, whole: Path) -> Iterator[str]:
    if name != "run" and not (place / "r" / "journal.jsonl").exists():
        shutil.rmtree(place / "r", ignore_errors=True)
        shutil.copytree(whole / "r", place / "r", ignore=_made)
    if name == "export":
        (place / "r.zip").unlink(missing_ok=True)
    again = run(RUN if name == "run" else COMMANDS[name], place)
    if again.status != 0:
        yield f"again, it ends with {again.status}: {again.said.strip()[-300:]}"
    elif left_by(name, place) != left_by(name, whole):
        yield "again, it leaves something else"


@contextmanager
def _disk(place: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def _can_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "tmpfs", folder]
        try:
            if subprocess.run(command, capture_output=True, check=False).returncode:
                return False
        except FileNotFoundError:
            return False
        subprocess.run(["umount", folder], check=True)
    return True
