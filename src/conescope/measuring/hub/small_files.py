"""Fetch the small files of a series: what describes the model, and its tokenizer.

They are those of the first revision or, if it has none, of the branch main.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from conescope.errors import CheckpointError
from conescope.measuring.hub import SCHEME
from conescope.measuring.hub.pretrained import CONFIG, TOKENIZER_FILES, VOCABULARIES, code_files
from conescope.measuring.hub.repositories import Ref, Repositories
from conescope.measuring.hub.revisions import Series

_MAIN = "main"


def model_folder(series: Series, folder: Path, *, trusts_code: bool) -> Path:
    """Fetch the config.json of a series, and the Python code beside it if that is trusted.

    Raises:
        CheckpointError: if there is none, or it cannot be fetched.
    """
    found = _with_any_of(series, [CONFIG])
    if found is None:
        raise CheckpointError(
            f"{series.revisions[0].ref} has no {CONFIG}, and neither has {_MAIN}; build the model "
            f"by --model package.module:build"
        )
    ref, names = found
    code = code_files(names) if trusts_code else []
    return series.repositories.fetch(ref, [CONFIG, *code], folder / "model")


def tokenizer_folder(given: str | None, base: str | None, series: Series, folder: Path) -> Path:
    """Fetch the tokenizer of a series, or another one.

    Args:
        given: the one that the user names, as a folder or repository; None for that of the series.
        base: the folder or repository that has it if the series has none; None if no other has it.
        series: the series.
        folder: where to put what is fetched.

    Raises:
        CheckpointError: if there is none, or it cannot be fetched.
    """
    found = _with_any_of(series, VOCABULARIES) if given is None else None
    if found is None:
        given = given or base
    if given is not None:
        return named_tokenizer(given, series.repositories, folder)
    if found is None:
        raise CheckpointError(
            f"{series.revisions[0].ref} has no tokenizer ({VOCABULARIES[0]} or another "
            f"vocabulary), and neither has {_MAIN}; name a folder or repository by --tokenizer"
        )
    return _tokenizer_of(*found, series.repositories, folder)


def named_tokenizer(given: str, where: Repositories, folder: Path) -> Path:
    """Return the folder of a tokenizer that the user names, or fetch it.

    Args:
        given: the folder, or a repository.
        where: where repositories are.
        folder: where to put what is fetched.

    Raises:
        CheckpointError: if there is none, or it cannot be fetched.
    """
    if Path(given).is_dir():
        return Path(given)
    repository = given.removeprefix(SCHEME)
    if given == repository and (given.count("/") > 1 or given.startswith((".", "/", "~"))):
        raise CheckpointError(
            f"the tokenizer {given} is no folder on this machine; look for a typing mistake"
        )
    try:
        refs = where.refs(repository)
    except CheckpointError as error:
        raise CheckpointError(f"the tokenizer is no folder here, and {error}") from error
    if _MAIN not in refs:
        raise CheckpointError(f"{repository} has no revision {_MAIN}; name another tokenizer")
    return _tokenizer_of(refs[_MAIN], [*where.files(refs[_MAIN])], where, folder)


def _tokenizer_of(ref: Ref, names: Sequence[str], where: Repositories, folder: Path) -> Path:
    """Fetch the files of a tokenizer, out of those of a revision."""
    files = [name for name in (CONFIG, *TOKENIZER_FILES) if name in names]
    return where.fetch(ref, files, folder / "tokenizer")


def _with_any_of(series: Series, wanted: Sequence[str]) -> tuple[Ref, list[str]] | None:
    """Return the first revision, or else main, and its files; None if both have none of some."""
    where, start = series.repositories, series.revisions[0].ref
    main = where.refs(start.repository).get(_MAIN, start)
    for ref in dict.fromkeys((start, main)):
        names = [*where.files(ref)]
        if any(name in names for name in wanted):
            return ref, names
    return None
