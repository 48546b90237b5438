"""The journal of a run folder: which kinds of lines it has, and how a line is written and read.

Each line holds a checksum of its text and the text, a JSON object. A line that a kill left
unfinished is cut off before the next one is written; a damaged line is named and does not count.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from conescope.errors import DamageWarning, StoreError


class Kind(StrEnum):
    """A kind of line; `LINES` says what each kind states, and by which fields."""

    RUN = "run"
    LABELS = "labels"
    SESSION = "session"
    EVALUATION = "evaluation"
    REVISION = "revision"
    KERNEL = "kernel"
    AVERAGED_KERNEL = "averaged kernel"
    SNAPSHOT = "snapshot"
    ORIGIN = "origin"
    SKIPPED = "skipped"
    REMOVED = "removed"
    DIVERGED = "diverged"
    FINISHED = "finished"


@dataclass(frozen=True)
class Line:
    """What the lines of one kind state.

    Attributes:
        states: what such a line states.
        fields: the fields that it may have. "seconds" is the wall time over all sessions, and
            "step" an iteration.
    """

    states: str
    fields: tuple[str, ...]


_FILE = ("file", "sha256")
_STATE = (*_FILE, "step", "param_groups", "plain_slots")
_MEASURED = (*_FILE, "step", "seconds", "outputs", "weights", "draws", "groups", "seed")
_EVALUATED = ("learning_rate", "train_loss", "train_accuracy", "test_loss", "test_accuracy")

LINES: Mapping[Kind, Line] = MappingProxyType(
    {
        Kind.RUN: Line(
            "the run begins: it carries out a recipe, or it measures a source",
            ("recipe", "source", "command", "total_steps", "labels"),
        ),
        Kind.LABELS: Line(
            "the classes of the probe's samples; the newest line counts", ("labels",)
        ),
        Kind.SESSION: Line(
            "a process begins to work on the run, with these versions on this machine",
            ("environment",),
        ),
        Kind.EVALUATION: Line(
            "loss (nats), accuracy (0 to 1) and learning rate at an iteration",
            ("step", "seconds", *_EVALUATED),
        ),
        Kind.REVISION: Line(
            "the weights at an iteration are a commit of a repository on the Hugging Face Hub, and "
            "belong to a stage of the training that began at another iteration; config is a hash "
            "of the config.json of which the model was built",
            ("step", "name", "commit", "stage", "begins", "config"),
        ),
        Kind.KERNEL: Line("a file holds the kernel of the weights at an iteration", _MEASURED),
        Kind.AVERAGED_KERNEL: Line(
            "a file holds the kernel of the weights' exponential average", _MEASURED
        ),
        Kind.SNAPSHOT: Line(
            "a file holds the whole state of the training at an iteration", (*_STATE, "seconds")
        ),
        Kind.ORIGIN: Line("a file holds the snapshot that a branch starts from", _STATE),
        Kind.SKIPPED: Line(
            "no kernel was measured at these iterations, to keep to a share of the wall time",
            ("steps", "budget"),
        ),
        Kind.REMOVED: Line("a file is no longer part of the run", ("file",)),
        Kind.DIVERGED: Line(
            "the training ended, since its loss is not finite", ("step", "reason", "seconds")
        ),
        Kind.FINISHED: Line("the run is complete, unless a kernel follows", ("seconds",)),
    }
)
"""Kind of line → what its lines state, and by which fields."""


@dataclass(frozen=True)
class Entry:
    """One line of the journal.

    Attributes:
        kind: what the line says something about.
        values: what it says; JSON values.
    """

    kind: Kind
    values: Mapping[str, Any]


def read_journal(path: Path) -> list[Entry]:
    """Read the whole lines of a journal, oldest first; none if there is no such file.

    Raises:
        StoreError: if the file cannot be read, or holds lines of a later version.

    Warns:
        DamageWarning: if lines are damaged; they are left out.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    entries, damaged = [], []
    lines = data.split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last \n is torn
        checksum, _, text = line.partition(b" ")
        if checksum.decode("ascii", "replace") != hashlib.sha256(text).hexdigest()[:16]:
            damaged.append(number)
            continue
        values = json.loads(text)
        entries.append(Entry(_kind(values.pop("kind"), path, number), values))
    if damaged:
        numbers = ", ".join(map(str, damaged))
        warnings.warn(
            f"{path}: line {numbers} is damaged and does not count", DamageWarning, stacklevel=4
        )
    return entries


def append_line(path: Path, kind: Kind, values: Mapping[str, Any]) -> None:
    """Add a line; it is on the disk when the call returns, or not there at all.

    Raises:
        OSError: if it cannot be written.
    """
    text = json.dumps({"kind": kind, **values}, allow_nan=False)
    line = f"{hashlib.sha256(text.encode()).hexdigest()[:16]} {text}\n".encode()
    is_new = not path.exists()
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            written = file.write(line)
            if written != len(line):
                raise OSError(28, "No space left on device")
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(before)
            raise
    if is_new:
        sync_folder(path.parent)


def drop_torn_line(path: Path) -> None:
    """Cut off a last line that a kill left unfinished, so that the next one starts a line.

    Raises:
        OSError: if it cannot be written.
    """
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)


def sync_folder(path: Path) -> None:
    """Make sure that a folder's list of files is on the disk.

    Raises:
        OSError: if the system refuses.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _kind(name: str, path: Path, number: int) -> Kind:
    try:
        return Kind(name)
    except ValueError:
        raise StoreError(
            f"{path}: line {number} is of the kind {name!r}, which this version of conescope does "
            f"not know; read the folder with the version that wrote it, or a later one"
        ) from None
