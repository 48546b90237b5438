"""Repositories of the Hugging Face Hub, and those in a folder of the same layout.

The client's cache, and any folder like it, holds a repository `org/name` in `models--org--name`:
`refs/NAME` names the commit of a branch or tag, and `snapshots/COMMIT` has its files.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from conescope.errors import CheckpointError

Kind = Literal["model", "dataset"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9A-Za-z_-]+")
_CHUNK = 2**22


@dataclass(frozen=True)
class Ref:
    """A revision of a repository: a branch or a tag, and the commit that it stood for when listed.

    Attributes:
        repository: its id, such as EleutherAI/pythia-160m.
        revision: the name of the branch or tag.
        commit: the hash of the commit.
        kind: what the repository holds.

    Raises:
        CheckpointError: if the commit is no hash, but may be a path, or is empty.
    """

    repository: str
    revision: str
    commit: str
    kind: Kind = "model"

    def __post_init__(self) -> None:
        """Check the commit, after which folders are named."""
        if not _COMMIT.fullmatch(self.commit):
            raise CheckpointError(
                f"the commit of {self} is noted as {self.commit!r}, which is no hash; download "
                f"that revision again, or delete it"
            )

    def __str__(self) -> str:
        """Return its name in messages, such as EleutherAI/pythia-160m@step1000."""
        return f"{self.repository}@{self.revision}"


@dataclass(frozen=True)
class Listed:
    """A file as a repository lists it: its size in bytes, and its SHA-256 or git's SHA-1 of it."""

    size: int
    sha256: str | None = None
    git_sha1: str | None = None


class Repositories(ABC):
    """A place that holds repositories.

    Attributes:
        commits_last: whether a file cannot change unless its commit does, and the other way round.
    """

    commits_last = True

    @abstractmethod
    def matching(self, pattern: str) -> list[str]:
        """Return the ids of the models that a pattern with `*` or `?` in its name matches."""

    @abstractmethod
    def refs(self, repository: str, kind: Kind = "model") -> dict[str, Ref]:
        """Return all branches and tags of a repository, by name.

        Raises:
            CheckpointError: if there is no such repository, or it may not be read.
        """

    @abstractmethod
    def files(self, ref: Ref) -> Mapping[str, Listed]:
        """Return the files of a revision, by their paths in it.

        Raises:
            CheckpointError: as `refs`.
        """

    @abstractmethod
    def fetch(self, ref: Ref, names: Collection[str], folder: Path) -> Path:
        """Bring files of a revision to this machine, and return the folder that holds them.

        Args:
            ref: the revision.
            names: the paths of the files in it.
            folder: where files go that are not on this machine yet.

        Raises:
            CheckpointError: if a file cannot be had whole; what is whole stays.
        """


class InFolder(Repositories):
    """The repositories in a folder of the Hub's layout, such as the client's cache; no network.

    Args:
        folder: what holds `models--org--name` and the like.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def matching(self, pattern: str) -> list[str]:
        """See `Repositories.matching`."""
        found = self._folder.glob("models--*") if self._folder.is_dir() else ()
        names = (each.name.removeprefix("models--").replace("--", "/", 1) for each in found)
        return sorted(name for name in names if fnmatchcase(name, pattern))

    def refs(self, repository: str, kind: Kind = "model") -> dict[str, Ref]:
        """See `Repositories.refs`."""
        refs = self._home(repository, kind) / "refs"
        files = [path for path in refs.rglob("*") if path.is_file()] if refs.is_dir() else []
        if not files:
            raise CheckpointError(
                f"{repository} is not in {self._folder}: there is no revision in {refs}; download "
                f"it where there is a network, or look for a typing mistake"
            )
        names = [path.relative_to(refs).as_posix() for path in files]
        commits = [path.read_text(encoding="utf-8", errors="replace").strip() for path in files]
        return {
            name: Ref(repository, name, commit, kind)
            for name, commit in zip(names, commits, strict=True)
        }

    def files(self, ref: Ref) -> Mapping[str, Listed]:
        """See `Repositories.files`."""
        snapshot = self._snapshot(ref)
        found = [path for path in snapshot.rglob("*") if path.is_file()]
        return {path.relative_to(snapshot).as_posix(): _by_name(path) for path in found}

    def fetch(self, ref: Ref, names: Collection[str], folder: Path) -> Path:  # noqa: ARG002
        """See `Repositories.fetch`; nothing is copied, and large files have to be whole."""
        snapshot, listed = self._snapshot(ref), self.files(ref)
        for name in names:
            if name not in listed:
                raise CheckpointError(
                    f"{ref} has no {name} in {snapshot}; download the whole revision, or leave it "
                    f"out"
                )
            if not is_whole(snapshot / name, listed[name]):
                raise CheckpointError(
                    f"{snapshot / name} is damaged: its SHA-256 is not the one by which the cache "
                    f"names it; delete it, and download it again"
                )
        return snapshot

    def _home(self, repository: str, kind: Kind) -> Path:
        return self._folder / f"{kind}s--{repository.replace('/', '--')}"

    def _snapshot(self, ref: Ref) -> Path:
        snapshot = self._home(ref.repository, ref.kind) / "snapshots" / ref.commit
        if not snapshot.is_dir():
            raise CheckpointError(
                f"{ref} has no files in {snapshot}; download it where there is a network"
            )
        return snapshot


def _by_name(path: Path) -> Listed:
    """Return what the cache says of a file: a large one is named by its SHA-256."""
    blob = path.resolve()
    is_hash = _SHA256.fullmatch(blob.name) is not None
    return Listed(blob.stat().st_size, blob.name if is_hash else None)


def root_of(path: Path, name: str) -> Path:
    """Return the folder in which a file has a name such as `folder/file`."""
    return path.parents[name.count("/")]


def is_whole(path: Path, listed: Listed) -> bool:
    """Return whether a file has the size and the hash that are listed."""
    size = path.stat().st_size
    if size != listed.size:
        return False
    if listed.sha256 is not None:
        return _digest(path, hashlib.sha256()) == listed.sha256
    if listed.git_sha1 is not None:
        begun = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        return _digest(path, begun) == listed.git_sha1
    return True


def _digest(path: Path, checksum: hashlib._Hash) -> str:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum.update(chunk)
    return checksum.hexdigest()
