"""Checkpoint folders on this machine that say themselves of which model they are.

Such a folder is one that transformers or peft saved: it has a config.json or an
adapter_config.json. The folders of a series are taken as the revisions of one repository, so they
are measured as revisions on the Hub are; the folder around them stands for the branch main, where
the Trainer of transformers puts the tokenizer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path

from conescope.errors import CheckpointError, RecipeError
from conescope.measuring.checkpoints.given_steps import Steps
from conescope.measuring.checkpoints.sources import find_checkpoints
from conescope.measuring.hub.online import hub_or_cache
from conescope.measuring.hub.pretrained import ADAPTER_CONFIG, CONFIG
from conescope.measuring.hub.repositories import Kind, Listed, Ref, Repositories
from conescope.measuring.hub.revisions import Revision, Series
from conescope.measuring.hub.stages import Placed

_MAIN = "main"


@dataclass(frozen=True)
class SavedRef(Ref):
    """A folder on this machine in place of a revision.

    Attributes:
        folder: its path; the commit is a hash of the sizes and times of its files.
    """

    folder: Path = Path()

    def __str__(self) -> str:
        """Return its name in messages, which is its path."""
        return str(self.folder)


class SavedFolders(Repositories):
    """Folders as the revisions of a repository; other repositories are those of the Hub.

    Args:
        around: the folder that stands for the branch main.
        elsewhere: where other repositories are.
    """

    commits_last = False

    def __init__(self, around: Path, elsewhere: Repositories) -> None:
        self._around, self._elsewhere = around, elsewhere

    def matching(self, pattern: str) -> list[str]:
        """See `Repositories.matching`."""
        return self._elsewhere.matching(pattern)

    def refs(self, repository: str, kind: Kind = "model") -> dict[str, Ref]:
        """See `Repositories.refs`."""
        if repository == str(self._around):
            return {_MAIN: saved_ref(self._around, self._around)}
        return self._elsewhere.refs(repository, kind)

    def files(self, ref: Ref) -> Mapping[str, Listed]:
        """See `Repositories.files`; folders inside are left alone."""
        if not isinstance(ref, SavedRef):
            return self._elsewhere.files(ref)
        return {p.name: Listed(p.stat().st_size) for p in _files(ref.folder)}

    def fetch(self, ref: Ref, names: Collection[str], folder: Path) -> Path:
        """See `Repositories.fetch`; nothing is copied."""
        if not isinstance(ref, SavedRef):
            return self._elsewhere.fetch(ref, names, folder)
        if lacking := [name for name in names if not (ref.folder / name).is_file()]:
            raise CheckpointError(f"{ref} has no {lacking[0]}; copy it again, or leave it out")
        return ref.folder


def saved_series(
    source: str | Path | Collection[str | Path],
    *,
    step_pattern: str | None = None,
    steps: Steps | None = None,
    keep: bool = False,
) -> Series:
    """Find the checkpoint folders of a training on this machine.

    Args:
        source: see `find_checkpoints`.
        step_pattern: see `find_checkpoints`.
        steps: see `find_checkpoints`.
        keep: whether a base model or a tokenizer on the Hub is fetched into the client's cache.

    Raises:
        CheckpointError: as `find_checkpoints`.
        RecipeError: if a checkpoint is no folder with its configuration.
    """
    found = find_checkpoints(source, step_pattern, steps)
    for each in found:
        if not any((each.path / name).is_file() for name in (CONFIG, ADAPTER_CONFIG)):
            raise RecipeError(
                f"checkpoints need --model, such as package.module:build, and --probe, or "
                f"--texts with --tokenizer: {each.path} has no {CONFIG} or "
                f"{ADAPTER_CONFIG} in it that says of which model it is"
            )
    around = Path(commonpath([each.path.absolute().parent for each in found]))
    revisions = (
        Revision(saved_ref(each.path, around), Placed(str(each.path), each.step, "", 0))
        for each in found
    )
    return Series(SavedFolders(around, hub_or_cache(keep)), str(around), tuple(revisions))


def saved_ref(folder: Path, around: Path) -> SavedRef:
    """Return a folder in place of a revision of the repository that is named by a folder."""
    states = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in _files(folder)]
    mark = hashlib.sha256(repr(states).encode()).hexdigest()[:40]
    return SavedRef(str(around), folder.name, mark, folder=folder)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())
