"""Run folders: files that are either whole or absent, a journal that says which, one owner.

`journal.jsonl` is the one source of truth. A file is written aside, synced and renamed, and only
then does an entry with its checksum join the journal: what the journal does not name does not
exist. So a process may be killed at any moment, in the middle of a write too.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from conescope.errors import DamageWarning, StoreError

_JOURNAL = "journal.jsonl"
_LOCK = "lock"


@dataclass(frozen=True)
class Entry:
    """One line of the journal.

    Attributes:
        kind: what the line says something about.
        values: what it says; JSON values.
    """

    kind: str
    values: Mapping[str, Any]


class Folder:
    """A run folder: an append-only journal, and the files it names.

    Args:
        path: the folder; it need not exist before something is written.

    Raises:
        StoreError: if the journal cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries = _read_journal(path / _JOURNAL)

    def entries(self, *kinds: str) -> list[Entry]:
        """The journal's entries of some kinds, oldest first."""
        return [entry for entry in self._entries if entry.kind in kinds]

    def files(self, kind: str) -> list[Entry]:
        """The newest entry of each file of one kind that was not removed since, oldest first."""
        found: dict[str, Entry] = {}
        for entry in self._entries:
            file = entry.values.get("file")
            if file is not None:
                found.pop(file, None)
            if entry.kind == kind:
                found[entry.values["file"]] = entry
        return list(found.values())

    def append(self, kind: str, **values: Any) -> None:
        """Add an entry to the journal; durable when the call returns.

        Raises:
            StoreError: if it cannot be written; the journal is then as before.
        """
        line = _encode({"kind": kind, **values})
        with _explained(self.path / _JOURNAL):
            self.path.mkdir(parents=True, exist_ok=True)
            _append_durably(self.path / _JOURNAL, line)
        self._entries.append(Entry(kind, values))

    def write_tensors(
        self, kind: str, name: str, tensors: Mapping[str, Tensor], **values: Any
    ) -> None:
        """Write a safetensors file, then an entry that names it.

        Args:
            kind: the entry's kind.
            name: the file's path in the folder.
            tensors: what to write.
            values: what else the entry says.

        Raises:
            StoreError: if it cannot be written; everything before stays as it was.
        """
        flat = {key: value.detach().contiguous() for key, value in tensors.items()}
        self.write_bytes(name, data := save(flat))
        self.append(kind, file=name, sha256=hashlib.sha256(data).hexdigest(), **values)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file that is whole or absent, whatever happens.

        Raises:
            StoreError: if it cannot be written.
        """
        target = self.path / name
        aside = target.with_name(f".{target.name}.part")
        with _explained(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with aside.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                aside.replace(target)
            except OSError:
                with suppress(OSError):
                    aside.unlink(missing_ok=True)
                raise
            _sync_folder(target.parent)

    def read_tensors(self, entry: Entry) -> dict[str, Tensor]:
        """Read the safetensors file that an entry names.

        Raises:
            StoreError: if the file is absent, or is not the one that was written.
        """
        path = self.path / entry.values["file"]
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise StoreError(f"{path} is missing; {_REPAIR}") from None
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != entry.values["sha256"]:
            raise StoreError(f"{path} is damaged: its checksum does not match; {_REPAIR}")
        try:
            return load(data)
        except SafetensorError as error:
            raise StoreError(f"{path} is no safetensors file: {error}") from error

    def is_whole(self, entry: Entry) -> bool:
        """Whether the file that an entry names is there, with the right checksum."""
        try:
            data = (self.path / entry.values["file"]).read_bytes()
        except OSError:
            return False
        return hashlib.sha256(data).hexdigest() == entry.values["sha256"]

    def remove(self, entry: Entry) -> None:
        """Say in the journal that a file goes, then delete it."""
        self.append("removed", file=entry.values["file"])
        with _explained(self.path / entry.values["file"]):
            (self.path / entry.values["file"]).unlink(missing_ok=True)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Own the folder: no second process may write to it. Freed even by kill -9.

        Raises:
            StoreError: if another process owns it, or the folder cannot be made.
        """
        with _explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / _LOCK, timeout=0.5)
            try:
                lock.acquire()
            except Timeout:
                raise StoreError(
                    f"{self.path} belongs to another process that is running; wait for it, stop "
                    f"it, or choose another folder with --out"
                ) from None
        try:
            self._entries = _read_journal(self.path / _JOURNAL)
            _drop_torn_line(self.path / _JOURNAL)
            yield
        finally:
            lock.release()

    def is_owned(self) -> bool:
        """Whether some process owns the folder at this moment."""
        if not (self.path / _LOCK).exists():
            return False
        lock = FileLock(self.path / _LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return True
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                return False  # nobody here can write to it, as to an archive
            raise
        lock.release()
        return False


_REPAIR = "run the command that made this folder again, to make it anew"


def _encode(values: Mapping[str, Any]) -> bytes:
    text = json.dumps(values, allow_nan=False)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:16]} {text}\n".encode()


def _read_journal(path: Path) -> list[Entry]:
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
        entries.append(Entry(values.pop("kind"), values))
    if damaged:
        numbers = ", ".join(map(str, damaged))
        warnings.warn(
            f"{path}: line {numbers} is damaged and does not count", DamageWarning, stacklevel=3
        )
    return entries


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line that a kill left unfinished, so that the next one starts a line."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with _explained(path):
            os.truncate(path, whole)


def _append_durably(path: Path, line: bytes) -> None:
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
        _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write into a `StoreError` that names path, reason and cure."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}; make room or choose another folder "
            f"with --out, then run the same command again: everything before is intact"
        ) from error
