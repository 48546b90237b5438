"""Files of a run folder that are either whole or absent, and the one process that owns it.

`journal.jsonl` is the one source of truth. A file is written under a temporary name, synced and
renamed, and only then is a line with its checksum added to the journal. Files that the journal does
not name are ignored. So a process may be killed at any moment, in the middle of a write too, and
the power may fail: what a call has written is on the disk when it returns.
"""

from __future__ import annotations

import errno
import hashlib
import json
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
from conescope.runs.chain import read_journal, read_regular
from conescope.runs.journal import Entry, Journal, Kind, append_bytes, cut, sync_folder, write_all

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
        self.journal = self._read()
        self._note_files()

    def _read(self) -> Journal:
        file = self.path / _JOURNAL
        try:
            file.stat()
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                return Journal()
        except ValueError:
            raise StoreError(f"{self.path} cannot be a folder's name; give a run folder") from None
        return read_journal(file)  # which says what else is wrong with the path

    def _note_files(self) -> None:
        self._files: dict[str, Entry] = {}
        for entry in self.journal.entries:
            self._note(entry)

    def _note(self, entry: Entry) -> None:
        """Take note of the file that an entry names, or says to be removed."""
        file = entry.values.get("file")
        if file is not None:
            self._files.pop(file, None)
            if entry.kind != Kind.REMOVED:
                self._files[file] = entry

    def entries(self, *kinds: Kind) -> list[Entry]:
        """Return the journal's entries of some kinds, oldest first."""
        return [entry for entry in self.journal.entries if entry.kind in kinds]

    def files(self, kind: Kind) -> list[Entry]:
        """Return the newest entry of each file of one kind that is not removed, oldest first."""
        return [entry for entry in self._files.values() if entry.kind == kind]

    def append(self, kind: Kind, **values: Any) -> None:
        """Add a line to the journal; it is on the disk when the call returns.

        Raises:
            StoreError: if it cannot be written; the journal is then as before.
        """
        entry = Entry(kind, json.loads(json.dumps(values, allow_nan=False)))  # as it is read again
        with _explained(self.path / _JOURNAL):
            make_folder(self.path)
            line = self.journal.line(entry)
            if not append_bytes(self.path / _JOURNAL, line, self.journal.size):
                self._read_again()
                line = self.journal.line(entry)
                append_bytes(self.path / _JOURNAL, line, self.journal.size)
        self.journal.add(entry, line)
        self._note(entry)

    def write_tensors(
        self, kind: Kind, name: str, tensors: Mapping[str, Tensor], **values: Any
    ) -> None:
        """Write a safetensors file, then an entry that names it; see `write_file`."""
        self.write_file(kind, name, save(_apart(tensors)), **values)

    def write_file(self, kind: Kind, name: str, data: bytes, **values: Any) -> None:
        """Write a file, then an entry that names it.

        Args:
            kind: the entry's kind.
            name: the file's path in the folder.
            data: what to write.
            values: the entry's other fields.

        Raises:
            StoreError: if it cannot be written; everything before stays as it was.
        """
        checksum, held = hashlib.sha256(data).hexdigest(), self._files.get(name)
        if held is not None and held.values["sha256"] != checksum:
            self.forget(held)  # else the journal would name it with a wrong checksum for a moment
        self.write_bytes(name, data)
        self.append(kind, file=name, sha256=checksum, **values)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file that is whole or absent, whatever happens.

        Raises:
            StoreError: if it cannot be written.
        """
        with _explained(self.path / name):
            make_folder((self.path / name).parent)
            write_whole(self.path / name, data)

    def read_tensors(self, entry: Entry) -> dict[str, Tensor]:
        """Read the safetensors file that an entry names.

        Raises:
            StoreError: if the file is absent, or is not the one that was written.
        """
        path = self.path / entry.values["file"]
        try:
            data = read_regular(path)
        except FileNotFoundError:
            raise StoreError(f"{path} is missing; {REPAIR}") from None
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}; {REPAIR}") from error
        if hashlib.sha256(data).hexdigest() != entry.values["sha256"]:
            raise StoreError(f"{path} is damaged: its checksum does not match; {REPAIR}")
        try:
            return load(data)
        except SafetensorError as error:
            raise StoreError(f"{path} is no safetensors file: {error}; {REPAIR}") from error

    def is_whole(self, entry: Entry) -> bool:
        """Return whether the file that an entry names is there, with the right checksum."""
        try:
            data = read_regular(self.path / entry.values["file"])
        except OSError:
            return False
        return hashlib.sha256(data).hexdigest() == entry.values["sha256"]

    def forget(self, entry: Entry) -> None:
        """Note in the journal that a file is no longer part of the run, and leave the file.

        Raises:
            StoreError: if it cannot be noted.
        """
        self.append(Kind.REMOVED, file=entry.values["file"])

    def remove(self, entry: Entry) -> None:
        """Note in the journal that a file is no longer part of the run, then delete it.

        Raises:
            StoreError: if it cannot be done.
        """
        self.forget(entry)
        with _explained(self.path / entry.values["file"]):
            (self.path / entry.values["file"]).unlink(missing_ok=True)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Own the folder in a `with` block: no second process may write to it.

        The system frees it when the process ends, even by kill -9. What a kill left of a line is
        cut off, and a damaged journal is kept aside and written anew from the lines that count.

        Raises:
            StoreError: if another process owns it, or the folder cannot be made.
        """
        with _explained(self.path):
            make_folder(self.path)
        with _explained(self.path / _LOCK):
            with suppress(PermissionError):  # of a parent that nobody may list
                sync_folder(self.path.parent)  # an earlier process may have died before it did
            lock = FileLock(self.path / _LOCK, timeout=0.5)
            try:
                lock.acquire()
            except Timeout:
                raise StoreError(
                    f"{self.path} belongs to another process that is running; wait for it, stop "
                    f"it, or choose another folder with --out"
                ) from None
        try:
            with _explained(self.path / _JOURNAL):
                self._read_again()
            yield
        finally:
            lock.release()

    def _read_again(self) -> None:
        """Read the journal again, and make it one that lines can be added to."""
        file, before = self.path / _JOURNAL, self.journal.entries
        self.journal = self._read()
        if self.journal.entries[: len(before)] != before:
            raise StoreError(
                f"{file} was changed by something else; run the same command again to go on from "
                f"what it holds now"
            )
        if file.exists():
            cut(file, self.journal.size)  # a torn last line
        if self.journal.damage:
            data = file.read_bytes()
            kept = f"journal.damaged-{hashlib.sha256(data).hexdigest()[:16]}.jsonl"
            write_whole(self.path / kept, data)
            write_whole(file, self.journal.mended(kept))
            self.journal = self._read()
        self._note_files()

    def is_owned(self) -> bool:
        """Return whether some process owns the folder at this moment."""
        if not (self.path / _LOCK).exists():
            return False
        lock = FileLock(self.path / _LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return True
        except OSError:
            return False  # nobody here can own it, as in an archive that cannot be written
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


REPAIR = "run the command that made this folder again, to make it anew"
"""The cure for a damaged file."""


def make_folder(path: Path) -> None:
    """Make a folder and those that it lies in, so that they are on the disk."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is whole or as before, whatever happens."""
    aside = path.with_name(f".{path.name}.part")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        aside.replace(path)
    except OSError:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write into a `StoreError` that names path, reason and cure."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}; "
            f"{_CURES.get(error.errno or 0, 'make room')} or choose another folder "
            f"with --out, then run the same command again: everything before is intact"
        ) from error


_CURES = {
    **dict.fromkeys((errno.EISDIR, errno.ENOTDIR, errno.EEXIST), "move away what stands there"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files (ulimit -n 1024)"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it writable"),
}
