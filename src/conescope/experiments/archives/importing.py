"""Import an archive of a run from anybody: nothing in it is believed before it is checked.

Members are uncompressed, so that they cannot grow; their names are of a closed list, so that they
cannot leave the folder; their sizes are declared and their contents hashed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from conescope.errors import StoreError
from conescope.experiments.archives.exporting import CHUNK, writing
from conescope.experiments.archives.layout import (
    CRATE,
    MOST_CRATE_BYTES,
    Member,
    described,
    is_member,
)
from conescope.runs.progress import Progress

_MOST_MEMBERS = 1_000_000
_UNREADABLE = (
    zipfile.BadZipFile, struct.error, EOFError, OSError, NotImplementedError, ValueError,
    RuntimeError, OverflowError,
)  # fmt: skip
"""What zipfile raises of a file that is torn, damaged or made to be."""


@dataclass(frozen=True)
class Contents:
    """The contents of an archive, as it declares them; their hashes are not checked yet.

    Attributes:
        files: name → each file in it.
        left_out: name → each snapshot that it was made without.
        date: the day on which the journal was last written.
    """

    files: Mapping[str, Member]
    left_out: Mapping[str, Member]
    date: str

    @property
    def size(self) -> int:
        """The size of all files, in bytes."""
        return sum(member.size or 0 for member in self.files.values())


def read_contents(archive: Path) -> Contents:
    """Read what an archive declares to hold, without unpacking it.

    Raises:
        StoreError: if it is no archive that `conescope export` wrote, or is torn or damaged.
    """
    with _opened(archive) as opened:
        return _contents(opened, archive)


def import_run(archive: Path, out: Path, progress: Progress) -> None:
    """Unpack an archive into a new run folder, which is whole or absent.

    Args:
        archive: a file that `conescope export` wrote, or that pretends to be one.
        out: the folder to make; it must not exist, or be empty.
        progress: what is told how many files are unpacked.

    Raises:
        StoreError: if the archive is torn, damaged or made to harm, the folder exists, or it
            cannot be written.
    """
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise StoreError(f"{out} exists already; choose another folder with --out")
    with _opened(archive) as opened:
        contents = _contents(opened, archive)
        aside = out.with_name(f".{out.name}.part-{os.getpid()}")
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(out.parent).free
            if contents.size > free:
                raise StoreError(
                    f"{archive} needs {contents.size:,} bytes, and {out.parent} has {free:,} left; "
                    f"make room there, or choose another folder"
                )
            aside.mkdir()
        try:
            _unpack(opened, archive, contents, aside, progress)
            with writing(out):
                aside.replace(out)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    try:
        if not stat.S_ISREG(archive.stat().st_mode):
            raise StoreError(f"{archive} is no file; give an archive that conescope export wrote")
        opened = zipfile.ZipFile(archive)
    except FileNotFoundError:
        raise StoreError(f"there is no {archive}; give an archive or a folder") from None
    except _UNREADABLE as error:
        raise StoreError(
            f"{archive} is no whole zip archive ({error}); download it again, or ask for another"
        ) from None
    with opened:
        yield opened


def _contents(opened: zipfile.ZipFile, archive: Path) -> Contents:
    """Check names, kinds and sizes of all members, and read the description of them."""
    infos = opened.infolist()
    if len(infos) > _MOST_MEMBERS:
        raise StoreError(f"{archive} has {len(infos):,} members; a run has fewer")
    seen: set[str] = set()
    for info in infos:
        _check_member(info, archive)
        if info.filename.casefold() in seen:
            raise StoreError(f"{archive} holds {info.filename!r} twice; ask for another")
        seen.add(info.filename.casefold())
    if sum(info.file_size for info in infos) > archive.stat().st_size:
        raise StoreError(f"{archive} declares more bytes than it has; its members overlap")
    sizes = {info.filename: info.file_size for info in infos}
    if sizes.pop(CRATE, MOST_CRATE_BYTES + 1) > MOST_CRATE_BYTES:
        raise StoreError(f"{archive} has no {CRATE} of a usable size; conescope export writes one")
    try:
        metadata = opened.read(CRATE)
    except _UNREADABLE as error:
        raise _damaged(archive, CRATE, error) from None
    files, left_out, date = described(metadata, str(archive))
    declared = {name: member.size for name, member in files.items()}
    if declared != sizes:
        name = min(name for name in {**declared, **sizes} if declared.get(name) != sizes.get(name))
        raise StoreError(f"{archive} does not hold {name!r} as its {CRATE} says; ask for another")
    if "journal.jsonl" not in files:
        raise StoreError(f"{archive} holds no journal.jsonl, and so no run; ask for another")
    return Contents(files, left_out, date)


def _check_member(info: zipfile.ZipInfo, archive: Path) -> None:
    mode = info.external_attr >> 16
    name = info.filename
    if name != CRATE and not (is_member(name) and info.orig_filename == name):
        raise StoreError(f"{archive} holds {name[:200]!r}, which is no file of a run; not unpacked")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise StoreError(f"{archive} holds {name!r} as a link or device; not unpacked")
    is_plain = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
    if not is_plain or info.flag_bits & 0x1:
        raise StoreError(
            f"{archive} holds {name!r} compressed or encrypted, which conescope export never "
            f"does; not unpacked"
        )


def _unpack(
    opened: zipfile.ZipFile, archive: Path, contents: Contents, folder: Path, progress: Progress
) -> None:
    progress.begin("importing", 0, len(contents.files))
    with writing(folder):
        (folder / CRATE).write_bytes(opened.read(CRATE))
    for done, (name, member) in enumerate(sorted(contents.files.items()), start=1):
        target = folder / name
        digest = hashlib.sha256()
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            file = target.open("xb")
        with file:
            for chunk in _chunks(opened, archive, name):
                digest.update(chunk)
                with writing(target):
                    file.write(chunk)
            with writing(target):
                file.flush()
        if digest.hexdigest() != member.sha256:
            raise _damaged(archive, name, "its checksum does not match")
        progress.advance(done)
    _restore_date(folder / "journal.jsonl", contents.date)


def _chunks(opened: zipfile.ZipFile, archive: Path, name: str) -> Iterator[bytes]:
    try:
        with opened.open(name) as member:
            while chunk := member.read(CHUNK):
                yield chunk
    except _UNREADABLE as error:
        raise _damaged(archive, name, error) from None


def _restore_date(journal: Path, date: str) -> None:
    """Give the journal the day of the archive, so that exporting it again gives the same."""
    try:
        seconds = datetime.strptime(date, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return
    with writing(journal):
        os.utime(journal, (seconds, seconds))


def _damaged(archive: Path, name: str, reason: object) -> StoreError:
    return StoreError(
        f"{archive} is damaged: {name}: {reason}; download it again, or ask for another"
    )
