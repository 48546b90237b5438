"""Find a series of revisions, and fetch them one at a time, the next one while one is measured."""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from conescope.errors import CheckpointError, ConescopeError
from conescope.measuring.checkpoints.given_steps import Steps
from conescope.measuring.checkpoints.sources import WHOLE_FILES, Checkpoint, files_in
from conescope.measuring.checkpoints.translation import ADAPTER_FILES
from conescope.measuring.checkpoints.weight_files import some_of
from conescope.measuring.hub import SCHEME, is_wild
from conescope.measuring.hub.downloads import claim, clear
from conescope.measuring.hub.online import hub_or_cache
from conescope.measuring.hub.repositories import InFolder, Listed, Ref, Repositories
from conescope.measuring.hub.stages import Placed, placed

_MAIN = "main"
_WEIGHTS = [
    *(name for single in WHOLE_FILES for name in (single, f"{single}.index.json")), *ADAPTER_FILES
]  # fmt: skip
_SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.(safetensors|bin)$)")
_ID = re.compile(r"[\w.-]+/[][\w.*?!-]+", re.ASCII)
_FOREIGN = (".msgpack", ".h5", ".gguf", ".onnx", ".ot", ".pth", ".safetensors", ".bin")


@dataclass(frozen=True)
class Revision:
    """One revision of a series: its weights on the Hub, and its place in the training.

    Attributes:
        ref: the repository, the revision's name and its commit.
        place: its step and its stage.
    """

    ref: Ref
    place: Placed

    @property
    def path(self) -> Path:
        """Its name in messages, such as EleutherAI/pythia-160m@step1000."""
        return Path(str(self.ref))


@dataclass(frozen=True)
class Series:
    """The revisions of a training, in the order of their steps.

    Attributes:
        repositories: where they are.
        source: what they are revisions of, such as EleutherAI/pythia-160m.
        revisions: at least one.
    """

    repositories: Repositories
    source: str
    revisions: tuple[Revision, ...]

    @property
    def stages(self) -> Mapping[str, int]:
        """The iteration at which each stage begins, by name; one name, "" mostly, for one stage."""
        return {each.place.stage: each.place.begins for each in self.revisions}


def find_revisions(
    source: str | Path,
    patterns: Sequence[str] = (),
    *,
    step_pattern: str | None = None,
    steps: Steps | None = None,
    keep: bool = False,
) -> Series:
    r"""Find the revisions of a training, on the Hub or in a folder of its layout.

    With `HF_HUB_OFFLINE` set, `hf://` stands for the client's cache.

    Args:
        source: `hf://org/name`; `hf://org/name-step_*` for a repository a step; or a folder, or
            glob of folders, `…/models--org--name`.
        patterns: what the names of branches and tags have to match, such as `step*`: one pattern,
            or one for each stage, in the order of the stages. None for main, of repositories.
        step_pattern: a regular expression whose one group is the step.
        steps: the steps themselves, see `given_steps`.
        keep: whether files are fetched into the client's cache, to stay there.

    Raises:
        CheckpointError: if there is no such repository or revision, the Hub cannot be asked, or
            the steps cannot be told.
    """
    where, name = _opened(source, keep)
    if is_wild(name):
        if patterns:
            raise CheckpointError(
                f"{name} stands for a repository a step, whose {_MAIN} is measured; leave the "
                f"pattern of revisions out, or name one repository"
            )
        refs = _mains(where, name)
        chosen = [[*refs]]
    else:
        refs = where.refs(name)
        chosen = _matching(name, refs, patterns)
    places = placed(chosen, refs, step_pattern, steps)
    return Series(where, name, tuple(Revision(refs[each.name], each) for each in places))


def _mains(where: Repositories, pattern: str) -> dict[str, Ref]:
    """Return the main branch of each repository that a pattern matches, by the name of the latter.

    Raises:
        CheckpointError: if there is none.
    """
    found = {}
    for repository in where.matching(pattern):
        refs = where.refs(repository)
        if _MAIN not in refs:
            raise CheckpointError(f"{repository} has no revision {_MAIN}; it has {_some(refs)}")
        found[repository.partition("/")[2]] = refs[_MAIN]
    if not found:
        raise CheckpointError(
            f"no repository matches {pattern}; look for a typing mistake at its author's models"
        )
    return found


def _matching(repository: str, refs: Mapping[str, Ref], patterns: Sequence[str]) -> list[list[str]]:
    """Return the names of revisions that each pattern matches."""
    if not patterns:
        raise CheckpointError(
            f"say which revisions of {repository} to measure by a pattern, such as --revisions "
            f"'step*'; it has {_some(refs)}"
        )
    chosen = [[name for name in refs if fnmatchcase(name, pattern)] for pattern in patterns]
    for pattern, names in zip(patterns, chosen, strict=True):
        if not names:
            raise CheckpointError(
                f"no revision of {repository} matches {pattern!r}; it has {_some(refs)}"
            )
    return chosen


def _some(refs: Mapping[str, Ref]) -> str:
    return some_of(sorted(refs, key=_natural), 6) or "none"


def _opened(source: str | Path, keep: bool) -> tuple[Repositories, str]:
    """Return where the repositories of a source are, and the id or the pattern of their ids."""
    text = str(source)
    if text.startswith(SCHEME):
        name = text.removeprefix(SCHEME).strip("/")
        if not _ID.fullmatch(name):
            shown = text if text.isprintable() else repr(text)
            raise CheckpointError(
                f"{shown} names no repository; write {SCHEME}ORGANISATION/NAME, and the revisions "
                f"by a pattern of their own"
            )
        return hub_or_cache(keep), name
    folder = Path(text).absolute()
    kind, _, name = folder.name.partition("--")
    if kind != "models" or not name:
        raise CheckpointError(
            f"{source} is not named as the Hub's cache names a repository; name it "
            f"models--ORGANISATION--NAME"
        )
    return InFolder(folder.parent), name.replace("--", "/", 1)


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts step9 before step10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def weight_names(ref: Ref, listed: Mapping[str, Listed]) -> list[str]:
    """Return the names of the files that hold the weights of a revision, with their index.

    Raises:
        CheckpointError: if it has neither safetensors nor torch's own format.
    """
    for name in _WEIGHTS:
        if name in listed and not name.endswith(".json"):
            return [name]
        if name in listed:
            whole = name.removesuffix(".index.json")
            return [name, *(each for each in listed if _SHARD.sub("", each) == whole != each)]
    others = [each for each in listed if each.endswith(_FOREIGN)]
    has = f"; it has {some_of(others)}" if others else ""
    raise CheckpointError(
        f"{ref} holds neither {' nor '.join(WHOLE_FILES)}, whole or in shards{has}; convert its "
        f"weights by save_pretrained, or leave the revision out"
    )


class Fetcher:
    """Fetches the revisions of a series one at a time, the next one in a thread of its own.

    Args:
        series: the revisions.
        folder: where they are put, each until the next one is asked for, see `claim`; the
            client's cache is used, and left as it is, for revisions that it holds whole.
    """

    def __init__(self, series: Series, folder: Path) -> None:
        self._series, self._folder = series, folder.absolute()  # for threads that outlive a chdir
        self._next: tuple[Revision, Future[Checkpoint]] | None = None
        self._last: Revision | None = None

    def fetch(self, revision: Revision, following: Revision | None = None) -> Checkpoint:
        """Wait for a revision, delete the one before, and begin to fetch the one that follows.

        Raises:
            CheckpointError: if it cannot be fetched whole, or holds no weights that can be read.
        """
        if self._next is None or self._next[0] != revision:
            self._next = revision, self._begin(revision)
        future, self._next = self._next[1], None
        if self._last is not None:
            shutil.rmtree(self._home(self._last), ignore_errors=True)
        self._last = revision
        try:
            found = future.result()
        except CheckpointError as error:
            if getattr(error.__cause__, "errno", None) != errno.ENOSPC:
                raise
            found = self._begin(revision).result()  # in the room of the one before
        if following is not None:
            self._next = following, self._begin(following)
        return found

    def keep_only(self, revisions: Iterable[Revision]) -> None:
        """Delete what an earlier process left behind, but for whole files of some revisions."""
        kept = {self._home(each).name for each in revisions}
        for left in self._folder.iterdir() if self._folder.is_dir() else ():
            if left.name not in kept and left.is_dir():
                shutil.rmtree(left)
        for part in self._folder.rglob("*.incomplete"):
            part.unlink()

    def clear(self) -> None:
        """Delete all that was fetched into the folder."""
        clear(self._folder)

    def _begin(self, revision: Revision) -> Future[Checkpoint]:
        future: Future[Checkpoint] = Future()

        def work() -> None:
            try:
                future.set_result(self._fetched(revision))
            except ConescopeError as error:
                future.set_exception(error)
            finally:
                if not future.done():
                    future.set_exception(RuntimeError(f"{revision.path}: see the traceback above"))

        threading.Thread(target=work, daemon=True, name=f"fetch {revision.path}").start()
        return future

    def _fetched(self, revision: Revision) -> Checkpoint:
        where = self._series.repositories
        names = weight_names(revision.ref, where.files(revision.ref))
        folder = where.fetch(revision.ref, names, self._home(revision))
        return Checkpoint(revision.place.step, revision.path, files_in(folder))

    def _home(self, revision: Revision) -> Path:
        return self._folder / f"{revision.place.step}-{revision.ref.commit}"


@contextmanager
def fetched(series: Series, folder: Path | None = None) -> Iterator[Iterator[Checkpoint]]:
    """Go through a series as local checkpoints: each is there until the next one is asked for.

    Args:
        series: what `find_revisions` found.
        folder: where they are put; None for a temporary folder. It is deleted at the end.

    Yields:
        An iterator over the checkpoints, in the order of their steps; while one is worked on, the
        next one is fetched. It ends with a `CheckpointError` at one that cannot be fetched.
    """
    with tempfile.TemporaryDirectory(
        prefix="conescope-",
        ignore_cleanup_errors=True,  # one may still be on its way
    ) as temporary:
        folder = folder or Path(temporary) / "revisions"
        claim(folder)
        fetcher = Fetcher(series, folder)
        try:
            following = (*series.revisions[1:], None)
            yield (fetcher.fetch(*pair) for pair in zip(series.revisions, following, strict=True))
        finally:
            fetcher.clear()
