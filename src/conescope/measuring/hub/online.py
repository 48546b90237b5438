"""The repositories of the Hugging Face Hub, asked for by its own client."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from conescope.errors import CheckpointError
from conescope.measuring.hub.connection import explained, patiently
from conescope.measuring.hub.repositories import (
    InFolder,
    Kind,
    Listed,
    Ref,
    Repositories,
    is_whole,
    root_of,
)

_TRIES = 2


class OnHub(Repositories):
    """The repositories of the Hugging Face Hub, or of what `HF_ENDPOINT` names instead.

    Args:
        keep: whether files go to the client's own cache, to stay there.
    """

    def __init__(self, keep: bool = False) -> None:
        self._api, self._keep = HfApi(endpoint=constants.ENDPOINT), keep
        self._listed: dict[Ref, Mapping[str, Listed]] = {}  # a commit never changes

    def matching(self, pattern: str) -> list[str]:
        """See `Repositories.matching`; the Hub is asked for the models of the author."""
        author, _, name = pattern.partition("/")
        fixed = max(re.split(r"\[[^\]]*\]|[*?]", name), key=len)

        def ask() -> list[str]:
            return [m.id for m in self._api.list_models(author=author, search=fixed or None)]

        with explained(pattern):
            found = patiently(ask)
        return sorted(each for each in found if fnmatchcase(each, pattern))

    def refs(self, repository: str, kind: Kind = "model") -> dict[str, Ref]:
        """See `Repositories.refs`."""
        with explained(repository):
            listed = patiently(lambda: self._api.list_repo_refs(repository, repo_type=kind))
        return {
            info.name: Ref(repository, info.name, info.target_commit, kind)
            for info in (*listed.tags, *listed.branches)
        }

    def files(self, ref: Ref) -> Mapping[str, Listed]:
        """See `Repositories.files`."""

        def ask() -> dict[str, Listed]:
            tree = self._api.list_repo_tree(
                ref.repository, recursive=True, revision=ref.commit, repo_type=ref.kind
            )
            return {
                each.path: Listed(each.lfs.size, each.lfs.sha256)
                if each.lfs
                else Listed(each.size, None, each.blob_id)
                for each in tree
                if isinstance(each, RepoFile)
            }

        if ref not in self._listed:
            with explained(str(ref)):
                listed = patiently(ask)
            _refuse_outside(ref, listed)
            self._listed[ref] = listed
        return self._listed[ref]

    def fetch(self, ref: Ref, names: Collection[str], folder: Path) -> Path:
        """See `Repositories.fetch`; sizes and hashes are those that the Hub lists."""
        listed = self.files(ref)
        for name in names:
            if name not in listed:
                raise CheckpointError(f"{ref} has no {name}, which it names; leave it out")
        held = None if self._keep else _in_cache(ref, names)
        if held is not None and all(is_whole(held / name, listed[name]) for name in names):
            return held
        with explained(str(ref)), _without_progress_bars():
            roots = [root_of(self._file(ref, n, listed[n], folder), n) for n in names]
        return roots[0]

    def _file(self, ref: Ref, name: str, listed: Listed, folder: Path) -> Path:
        for attempt in range(_TRIES):
            path = Path(
                hf_hub_download(
                    ref.repository,
                    name,
                    repo_type=ref.kind,
                    revision=ref.revision if self._keep else ref.commit,
                    local_dir=None if self._keep else folder,
                    endpoint=self._api.endpoint,
                    force_download=attempt > 0,
                )
            )
            if is_whole(path, listed):
                return path
            path.resolve().unlink()  # the cache's own file, to which the path may be a link
            path.unlink(missing_ok=True)
        raise CheckpointError(
            f"{ref}: {name} does not have the hash that {self._api.endpoint} lists for it, "
            f"{_TRIES} times over; it was changed on the way, or the revision was while it was "
            f"fetched: run the command again, and if that does not help, tell its authors"
        )


def hub_or_cache(keep: bool = False) -> Repositories:
    """Return the Hub or, with `HF_HUB_OFFLINE` set, the client's cache of it.

    Args:
        keep: see `OnHub`.
    """
    return InFolder(Path(constants.HF_HUB_CACHE)) if constants.HF_HUB_OFFLINE else OnHub(keep)


def _refuse_outside(ref: Ref, names: Iterable[str]) -> None:
    """Refuse names of files that would be written outside the folder of a revision."""
    for name in names:
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise CheckpointError(
                f"{ref} lists a file {name!r}, which is outside of it; do not trust that Hub"
            )


def _in_cache(ref: Ref, names: Collection[str]) -> Path | None:
    """Return the folder of a revision in the client's cache, if all of the files are there."""
    snapshot = None
    for name in names:
        path = try_to_load_from_cache(ref.repository, name, revision=ref.commit, repo_type=ref.kind)
        if not isinstance(path, str):
            return None
        snapshot = root_of(Path(path), name)
    return snapshot


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Turn the client's progress bars off, which would mix with those of the command line."""
    were_off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            enable_progress_bars()
