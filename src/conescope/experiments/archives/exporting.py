"""Export a run folder as one archive, which is the same bytes each time."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from conescope.errors import StoreError
from conescope.experiments.archives.layout import CRATE, Description, Member, is_member
from conescope.experiments.stored import read_status
from conescope.runs.contents import KERNEL_FOLDERS
from conescope.runs.journal import Entry, Kind
from conescope.runs.progress import Progress
from conescope.runs.store import Folder

CHUNK = 2**20
"""Bytes that are copied at once."""

_WITHOUT_CHECKSUM = (
    "recipe.yaml", "report.html", "figures/*.pdf", "figures/*.png", "figures/*.csv",
)  # fmt: skip
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Export:
    """What will be written, known before it is.

    Attributes:
        folder: the run folder.
        description: all files, with sizes and checksums.
        made: name → contents of files that are made for the archive.
    """

    folder: Path
    description: Description
    made: Mapping[str, bytes]

    @property
    def size(self) -> int:
        """The size of all files, in bytes; the archive is little more."""
        return sum(member.size or 0 for member in self.description.files.values())


def plan_export(
    path: Path,
    derived: Callable[[Path], bytes | None],
    *,
    weights: bool = False,
    branches: bool = False,
) -> Export:
    """Find out what an archive of a run will hold; nothing is written.

    Args:
        path: the run folder.
        derived: gives numbers.json of a run folder; None for a run without kernels.
        weights: whether to include the snapshots.
        branches: whether to include the children in its folder `branches`.

    Raises:
        StoreError: if there is no run, a process works on it, or one of its files is damaged.
    """
    files: dict[str, Member] = {}
    left_out: dict[str, Member] = {}
    made: dict[str, bytes] = {}
    for prefix in ["", *(_children(path, "") if branches else [])]:
        inner = path / prefix
        status = read_status(inner)
        if status.running:
            raise StoreError(f"a process is working on {inner}; wait for it, or stop it first")
        held, absent = _held(Folder(inner), weights=weights)
        files |= {prefix + name: member for name, member in held.items()}
        left_out |= {prefix + name: member for name, member in absent.items()}
        if (numbers := derived(inner)) is not None:
            made[f"{prefix}numbers.json"] = numbers
    files |= {name: _member(data) for name, data in made.items()}
    if odd := next((name for name in sorted(files) if not is_member(name)), None):
        raise StoreError(f"{path / odd} has a name that an archive cannot hold; rename it")
    sessions = Folder(path).entries(Kind.SESSION)
    changed = datetime.fromtimestamp((path / "journal.jsonl").stat().st_mtime, UTC)
    description = Description(
        name=read_status(path).name,
        text=_about(Folder(path)),
        date=changed.date().isoformat(),
        software=version("conescope"),
        environment=sessions[-1].values["environment"] if sessions else {},
        files=files,
        left_out=left_out,
    )
    return Export(path, description, made)


def write_archive(export: Export, out: Path, progress: Progress) -> None:
    """Write an archive that is whole or absent.

    Args:
        export: what to write.
        out: the file to write; it must not exist.
        progress: what is told how many files are written.

    Raises:
        StoreError: if it exists or cannot be written, or a file of the run changes meanwhile.
    """
    if out.exists():
        raise StoreError(f"{out} exists already; choose another name with --out")
    aside = out.with_name(f".{out.name}.part")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            with zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as archive:
                _write(archive, export, progress)
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            aside.replace(out)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusal inside a `with` block into a `StoreError` that names the cure."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}; make room or choose another place"
        ) from error


def _write(archive: zipfile.ZipFile, export: Export, progress: Progress) -> None:
    description = export.description
    progress.begin("exporting", 0, len(description.files))
    metadata = description.to_bytes()
    with archive.open(_info(CRATE, len(metadata)), "w") as member:
        member.write(metadata)
    for done, (name, expected) in enumerate(sorted(description.files.items()), start=1):
        size = expected.size or 0
        digest = hashlib.sha256()
        with archive.open(_info(name, size), "w", force_zip64=size >= 2**31 - 1) as member:
            for chunk in _chunks(export, name):
                digest.update(chunk)
                member.write(chunk)
        if digest.hexdigest() != expected.sha256:
            raise StoreError(f"{export.folder / name} changed while it was exported; export again")
        progress.advance(done)


def _chunks(export: Export, name: str) -> Iterator[bytes]:
    if name in export.made:
        yield export.made[name]
        return
    with (export.folder / name).open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _info(name: str, size: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
    info.file_size = size
    return info


def _children(path: Path, prefix: str) -> Iterator[str]:
    """Return the folders of a run's children, and of theirs, relative to `path`, sorted."""
    for journal in sorted((path / prefix / "branches").glob("*/journal.jsonl")):
        inner = f"{prefix}branches/{journal.parent.name}/"
        yield inner
        yield from _children(path, inner)


def _held(folder: Folder, *, weights: bool) -> tuple[dict[str, Member], dict[str, Member]]:
    """Return the files of a run to write, and the snapshots to leave out."""
    if folder.files(Kind.RESULT):
        raise StoreError(
            f"{folder.path} holds results of 'conescope lazy', which no archive holds; copy the "
            f"folder instead"
        )
    entries = [e for kind in (*KERNEL_FOLDERS, Kind.ORIGIN) for e in folder.files(kind)]
    snapshots = folder.files(Kind.SNAPSHOT)
    left_out = [] if weights else snapshots
    held = {entry.values["file"]: _whole(folder, entry) for entry in entries}
    if weights:
        held |= {entry.values["file"]: _whole(folder, entry) for entry in snapshots}
    held["journal.jsonl"] = _measured(folder.path / "journal.jsonl")
    for pattern in _WITHOUT_CHECKSUM:
        for file in folder.path.glob(pattern):
            if file.is_symlink():
                raise StoreError(f"{file} is a link, which might lead to a secret; remove it")
            if file.is_file():
                held[file.relative_to(folder.path).as_posix()] = _measured(file)
    return held, {
        entry.values["file"]: Member(entry.values["sha256"], _size(folder.path, entry))
        for entry in left_out
    }


def _whole(folder: Folder, entry: Entry) -> Member:
    path = folder.path / entry.values["file"]
    if not path.is_file():
        raise StoreError(f"{path} is missing; run the command that made this folder again")
    found = _measured(path)
    if found.sha256 != entry.values["sha256"]:
        raise StoreError(f"{path} is damaged; run the command that made this folder again")
    return found


def _measured(path: Path) -> Member:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
            return Member(digest.hexdigest(), file.tell())
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}; mend that first") from error


def _member(data: bytes) -> Member:
    return Member(hashlib.sha256(data).hexdigest(), len(data))


def _size(path: Path, entry: Entry) -> int | None:
    file = path / entry.values["file"]
    return file.stat().st_size if file.is_file() else None


def _about(folder: Folder) -> str:
    begun = folder.entries(Kind.RUN)[0].values
    known = begun.get("recipe") or begun.get("source", {})
    return str(known.get("description") or known.get("name") or "a run")
