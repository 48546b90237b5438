"""Files that are whole or absent whatever happens, and regular files alone that are read."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from conescope.errors import StoreError
from conescope.runs.journal import sync_folder, write_all


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
def explained(path: Path) -> Iterator[None]:
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
