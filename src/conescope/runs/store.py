"""Files of a run folder that are either whole or absent, and the one process that owns it.

`journal.jsonl` is the one source of truth. A file is written under a temporary name, synced and
renamed, and only then is a line with its checksum added to the journal. Files that the journal does
not name are ignored. So a process may be killed at any moment, in the middle of a write too.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from conescope.errors import StoreError
from conescope.runs.journal import (
    Entry,
    Kind,
    append_line,
    drop_torn_line,
    read_journal,
    sync_folder,
)

_JOURNAL = "journal.jsonl"
_LOCK = "lock"


class Folder:
    """A run folder: an append-only journal, and the files it names.

    Args:
        path: the folder; it need not exist before something is written.

    Raises:
        StoreError: if the journal cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries = read_journal(path / _JOURNAL)

    def entries(self, *kinds: Kind) -> list[Entry]:
        """Return the journal's entries of some kinds, oldest first."""
        return [entry for entry in self._entries if entry.kind in kinds]

    def files(self, kind: Kind) -> list[Entry]:
        """Return the newest entry of each file of one kind that is not removed, oldest first."""
        found: dict[str, Entry] = {}
        for entry in self._entries:
            file = entry.values.get("file")
            if file is not None:
                found.pop(file, None)
            if entry.kind == kind:
                found[entry.values["file"]] = entry
        return list(found.values())

    def append(self, kind: Kind, **values: Any) -> None:
        """Add a line to the journal; it is on the disk when the call returns.

        Raises:
            StoreError: if it cannot be written; the journal is then as before.
        """
        with _explained(self.path / _JOURNAL):
            self.path.mkdir(parents=True, exist_ok=True)
            append_line(self.path / _JOURNAL, kind, values)
        self._entries.append(Entry(kind, values))

    def write_tensors(
        self, kind: Kind, name: str, tensors: Mapping[str, Tensor], **values: Any
    ) -> None:
        """Write a safetensors file, then an entry that names it.

        Args:
            kind: the entry's kind.
            name: the file's path in the folder.
            tensors: what to write.
            values: the entry's other fields.

        Raises:
            StoreError: if it cannot be written; everything before stays as it was.
        """
        self.write_bytes(name, data := save(_apart(tensors)))
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
            sync_folder(target.parent)

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
        """Return whether the file that an entry names is there, with the right checksum."""
        try:
            data = (self.path / entry.values["file"]).read_bytes()
        except OSError:
            return False
        return hashlib.sha256(data).hexdigest() == entry.values["sha256"]

    def remove(self, entry: Entry) -> None:
        """Note in the journal that a file is no longer part of the run, then delete it.

        Raises:
            StoreError: if it cannot be done.
        """
        self.append(Kind.REMOVED, file=entry.values["file"])
        with _explained(self.path / entry.values["file"]):
            (self.path / entry.values["file"]).unlink(missing_ok=True)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Own the folder in a `with` block: no second process may write to it.

        The system frees it when the process ends, even by kill -9.

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
            self._entries = read_journal(self.path / _JOURNAL)
            with _explained(self.path / _JOURNAL):
                drop_torn_line(self.path / _JOURNAL)
            yield
        finally:
            lock.release()

    def is_owned(self) -> bool:
        """Return whether some process owns the folder at this moment."""
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


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors that share no memory, as safetensors writes no others."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        tensor = value.detach().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return found


_REPAIR = "run the command that made this folder again, to make it anew"


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
