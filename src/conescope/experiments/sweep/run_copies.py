"""Carry out a run on a copy of its folder, where a worker does not see the folder itself."""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from conescope.errors import StoreError
from conescope.experiments.sweep.single_run import RunTask, carry_out_run, line_of, note_error
from conescope.runs.journal import Kind
from conescope.runs.store import Folder, make_folder, write_whole

_JOURNAL = "journal.jsonl"

_SEND_SECONDS = 20.0
"""The least time between two copies that are sent while a run is at work."""

_PAUSES = 20
"""The same as a multiple of the time that sending takes: at most a twentieth of the run's."""


@dataclass(frozen=True)
class SentBack:
    """What a worker sends back of a run that it has carried out on a copy.

    Attributes:
        archive: the folder as it was at the end, as `pack_run` returns it; None if the worker
            has done nothing.
        error: the line of the error that ended the run; empty if none did.
    """

    archive: bytes | None = None
    error: str = ""


def carry_out_copy(
    task: RunTask,
    archive: bytes,
    should_stop: Callable[[], bool],
    send: Callable[[bytes], None] = lambda _: None,
) -> SentBack:
    """Carry out a run in a temporary folder, and return what the folder holds at the end.

    The end may be that of the run, a stop or an error. The run's own folder is not touched. The
    working directory is that of the sweep if it exists here, else the temporary folder.

    Args:
        task: the run.
        archive: its folder so far, as `pack_run` returns it.
        should_stop: asked after every iteration; on true the run stores its state and stops.
        send: is given the folder, packed, from time to time when there is a new snapshot in it.
    """
    try:
        with TemporaryDirectory(prefix="conescope-") as aside:
            folder = Path(aside) / task.folder.name
            unpack_run(archive, folder)
            here = task.here if task.here.is_dir() else Path(aside)
            news = _News(folder, send)

            def stops() -> bool:
                if should_stop():
                    return True
                news.send_if_due()
                return False

            error = _carry_out(replace(task, folder=folder, here=here), task.folder, stops)
            return SentBack(pack_run(folder), error)
    except (OSError, StoreError) as failure:  # such as a full disk
        return SentBack(None, f"on a copy of the run's folder: {line_of(failure)}")


class _News:
    """Sends a run's folder while the run is at work, so that less is lost with the worker.

    Args:
        folder: the folder, of which nothing is written during the calls.
        send: is given it, packed.
    """

    def __init__(self, folder: Path, send: Callable[[bytes], None]) -> None:
        self._folder, self._send = folder, send
        self._sent = self._snapshots()
        self._due = time.monotonic() + _SEND_SECONDS

    def send_if_due(self) -> None:
        """Send the folder if there is a new snapshot in it, and the last time is long ago."""
        begun = time.monotonic()
        if begun < self._due:
            return
        if (snapshots := self._snapshots()) != self._sent:
            self._send(pack_run(self._folder))
            self._sent = snapshots
        now = time.monotonic()
        self._due = now + max(_SEND_SECONDS, _PAUSES * (now - begun))

    def _snapshots(self) -> list[str]:
        return [entry.values["file"] for entry in Folder(self._folder).files(Kind.SNAPSHOT)]


def _carry_out(task: RunTask, known_as: Path, should_stop: Callable[[], bool]) -> str:
    """Carry out a run; return the line of the error that ended it, or nothing.

    The line names the run's own folder in place of the temporary one, so that the same error reads
    the same at each attempt.
    """
    try:
        carry_out_run(task, should_stop)
    except Exception as failure:  # noqa: BLE001 (its line goes to whoever began the task)
        error = line_of(failure).replace(str(task.folder), str(known_as))
        with suppress(StoreError):  # on a full disk; the line is returned too
            note_error(task.folder, error)
        return error
    return ""


def pack_run(folder: Path) -> bytes:
    """Return a run folder as an uncompressed tar archive, without its lock.

    Raises:
        StoreError: if a file cannot be read.
    """
    held = io.BytesIO()
    try:
        with tarfile.open(fileobj=held, mode="w") as archive:
            for name in sorted(_files(folder)):
                archive.add(folder / name, name)
    except OSError as error:
        raise StoreError(
            f"cannot copy {folder}: {error.strerror or error}; mend that, and run it again"
        ) from error
    return held.getvalue()


def unpack_run(archive: bytes, folder: Path) -> None:
    """Make a run folder the one that `pack_run` has packed; it is the old or the new one at a kill.

    The journal says which files count, so it is written after all other files, and files that the
    new one does not have are deleted after that. Files that are the same already are left alone.

    Raises:
        StoreError: if the archive is damaged, has anything but files and folders, or a name in it
            leads out of the folder, before anything is written; or if the folder cannot be written.
    """
    try:
        files = _members(archive, folder)
    except (tarfile.TarError, EOFError) as error:
        raise StoreError(
            f"what a worker sent back of {folder} cannot be unpacked ({error}); the folder is "
            f"as before: run the same command again"
        ) from error
    try:
        make_folder(folder)
        for name in sorted(files, key=lambda name: name == _JOURNAL):
            if not _holds(folder / name, files[name]):
                make_folder((folder / name).parent)
                write_whole(folder / name, files[name])
        for name in _files(folder) - files.keys():
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot write {folder}: {error.strerror or error}; make room, then run the same "
            f"command again: everything before is intact"
        ) from error


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


def _members(archive: bytes, folder: Path) -> dict[str, bytes]:
    """Return name → content of an archive's files.

    Raises:
        TarError: if it is damaged, or has a member that is no file of this folder.
    """
    if len(archive) % tarfile.RECORDSIZE or archive[-2 * tarfile.BLOCKSIZE :].strip(b"\0"):
        raise tarfile.ReadError("its end is missing")
    found = {}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
        for member in tar:
            safe = tarfile.data_filter(member, str(folder))
            content = tar.extractfile(safe) if safe.isfile() else None
            if content is None:
                raise tarfile.TarError(f"{member.name} is no file")
            found[os.path.normpath(safe.name)] = content.read()
    return found


def _files(folder: Path) -> set[str]:
    """Return the names of a run's files: all but its lock, and the runs that lie in its folder."""
    found = set()
    for place, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if not Path(place, name, _JOURNAL).exists()]
        found |= {os.path.relpath(Path(place, name), folder) for name in names}
    return {name for name in found if name != "lock" and not name.endswith(".part")}
