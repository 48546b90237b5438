"""The journal of a run folder: which kinds of lines it has, and the chain that they form.

Each line holds a checksum of its text and the text, a JSON object. Its field "line" is the number
of the line, and "after" the checksum, the kind and the iteration of the line before. So a line
that is deleted, repeated, moved or changed is found and named. What a kill left of a line that it
interrupted, at the end, does not count.

Earlier versions wrote lines without these two fields. The first line of a chain that goes on from
such lines holds the checksum of all of them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any


class Kind(StrEnum):
    """A kind of line; `LINES` says what each kind states, and by which fields."""

    RUN = "run"
    RECIPE = "recipe"
    LABELS = "labels"
    TEXTS = "texts"
    SESSION = "session"
    EVALUATION = "evaluation"
    REVISION = "revision"
    KERNEL = "kernel"
    AVERAGED_KERNEL = "averaged kernel"
    SNAPSHOT = "snapshot"
    ORIGIN = "origin"
    RESULT = "result"
    SKIPPED = "skipped"
    REMOVED = "removed"
    MENDED = "mended"
    DIVERGED = "diverged"
    FINISHED = "finished"


@dataclass(frozen=True)
class Line:
    """What the lines of one kind state.

    Attributes:
        states: what such a line states.
        fields: the fields that it may have. "seconds" is the wall time over all sessions, and
            "step" an iteration. `foreign` says what may stand in each.
        optional: those of them that not every line has.
    """

    states: str
    fields: tuple[str, ...]
    optional: tuple[str, ...] = ()


_FILE = ("file", "sha256")
_STATE = (*_FILE, "step", "param_groups", "plain_slots")
_NOT_ALWAYS = ("weights", "draws", "groups", "seed", "probe_outputs")
_MEASURED = (*_FILE, "step", "seconds", "outputs", *_NOT_ALWAYS)
_EVALUATED = ("learning_rate", "train_loss", "train_accuracy", "test_loss", "test_accuracy")

LINES: Mapping[Kind, Line] = MappingProxyType(
    {
        Kind.RUN: Line(
            "the run begins: it carries out a recipe, or it measures a source",
            ("recipe", "source", "command", "total_steps", "labels"),
            ("recipe", "source", "total_steps", "labels"),
        ),
        Kind.RECIPE: Line("a file holds the recipe as YAML, for people", _FILE),
        Kind.LABELS: Line(
            "the classes of the probe's samples; the newest line counts", ("labels",)
        ),
        Kind.TEXTS: Line(
            "how each text of the probe begins, for people; the newest line counts", ("texts",)
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
            ("config",),
        ),
        Kind.KERNEL: Line(
            "a file holds the kernel of the weights at an iteration", _MEASURED, _NOT_ALWAYS
        ),
        Kind.AVERAGED_KERNEL: Line(
            "a file holds the kernel of the weights' exponential average", _MEASURED, _NOT_ALWAYS
        ),
        Kind.SNAPSHOT: Line(
            "a file holds the whole state of the training at an iteration",
            (*_STATE, "seconds"),
            ("plain_slots",),
        ),
        Kind.ORIGIN: Line(
            "a file holds the snapshot that a branch starts from", _STATE, ("plain_slots",)
        ),
        Kind.RESULT: Line(
            "a file holds what one seed of a fine-tuning and of its linearisation gave", _FILE
        ),
        Kind.SKIPPED: Line(
            "no kernel was measured at these iterations, to keep to a share of the wall time",
            ("steps", "budget"),
        ),
        Kind.REMOVED: Line("a file is no longer part of the run", ("file",)),
        Kind.MENDED: Line(
            "the journal was damaged, which another file keeps, and was written anew from the "
            "lines that count",
            ("lost", "kept"),
        ),
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

    def __str__(self) -> str:
        step = self.values.get("step")
        return str(self.kind) if step is None else f"{self.kind}, iteration {step:,}"


@dataclass
class Journal:
    """What a journal says, and where its next line joins.

    Attributes:
        entries: what its lines say, in the order of their numbers.
        size: the length of its whole lines in bytes.
        newest: the number of its newest line.
        after: the field "after" of the next line.
        unchained: the number of lines at its beginning that an earlier version wrote.
        damage: what is wrong with it, a text for each line; empty if nothing is.
        lost: those of the texts on lines of which what they said is lost.
    """

    entries: list[Entry] = field(default_factory=list)
    size: int = 0
    newest: int = 0
    after: str = ""
    unchained: int = 0
    damage: Sequence[str] = ()
    lost: Sequence[str] = ()

    @property
    def head(self) -> str:
        """The checksum of the newest line, and with it of the whole chain; "" if there is none."""
        return self.after.partition(" ")[0]

    @property
    def state(self) -> str:
        """Return how far the journal vouches for itself, as one line of text."""
        if self.damage:
            return f"damaged: {len(self.damage):,} of its lines"
        if self.unchained == self.newest:
            return "not chained, as earlier versions wrote it: lost lines would not be noticed"
        behind = f", chained from line {self.unchained + 1:,} on" if self.unchained else ""
        return f"{self.newest:,} lines{behind}, the newest {self.head}"

    def line(self, entry: Entry) -> bytes:
        """Return the next line of the file, if it says this; see `add`."""
        noted = {"kind": entry.kind, "line": self.newest + 1, "after": self.after}
        text = json.dumps({**noted, **entry.values}, allow_nan=False).encode()
        return f"{checksum_of(text)} ".encode() + text + b"\n"

    def add(self, entry: Entry, line: bytes) -> None:
        """Take note that a line, made by `line`, now stands in the file."""
        self.entries.append(entry)
        self.size, self.newest = self.size + len(line), self.newest + 1
        self.after = f"{line.partition(b' ')[0].decode()} {entry}"

    def mended(self, kept: str) -> bytes:
        """Return what a new file in place of a damaged one holds.

        Args:
            kept: the name of the file that keeps the damaged one.
        """
        anew, lines = Journal(), b""
        lost = Entry(Kind.MENDED, {"lost": list(self.lost), "kept": kept})
        for entry in (*self.entries, lost):
            line = anew.line(entry)
            anew.add(entry, line)
            lines += line
        return lines


def checksum_of(data: bytes) -> str:
    """Return the first 16 hexadecimal digits of the sha256 of some bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


def append_bytes(path: Path, data: bytes, size: int) -> bool:
    """Add to the end of a file; all is on the disk when the call returns, or nothing is added.

    Args:
        path: the file; made if need be.
        data: what to add.
        size: the length that the file has.

    Returns:
        False if the file has another length; nothing is then done.

    Raises:
        OSError: if it cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        if os.fstat(descriptor).st_size != size:
            return False
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
    if size == 0:
        sync_folder(path.parent)
    return True


def cut(path: Path, size: int) -> None:
    """Cut a file to a length, and make sure that the rest of it is on the disk.

    Raises:
        OSError: if the system refuses.
    """
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.ftruncate(descriptor, size)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_folder(path.parent)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of some bytes, in as many calls as the system needs."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


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
