"""Files that somebody else may have made: regular files only, of a bounded size, safe to print.

It stands in this room because `runs` is the lowest one that reads files, and the rooms that open a
user's paths all import it.
"""

from __future__ import annotations

import json
import os
import stat
import unicodedata
from pathlib import Path
from typing import Any

from conescope.errors import ConescopeError

MEGABYTE = 2**20
GIGABYTE = 2**30

_MOST_JSON = 64 * MEGABYTE  # indices of shards of the largest models have a few

_BIDIRECTIONAL = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_LINE_ENDS = frozenset("\u2028\u2029")


def check_regular(path: str | Path, error: type[ConescopeError], most: int | None = None) -> None:
    """Check that a path can be read to an end: a regular file, of at most `most` bytes.

    Use it before a library opens the path itself; a pipe would block, a device never ends.

    Raises:
        ConescopeError: of the kind `error`, if the path is missing, is no regular file, or is too
            large.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as problem:
        raise error(f"cannot read {path}: {_reason(problem)}; check the path") from None
    _check(path, found, error, most)


def read_bounded(path: str | Path, error: type[ConescopeError], most: int) -> bytes:
    """Read a regular file of at most `most` bytes.

    Raises:
        ConescopeError: of the kind `error`, as `check_regular`.
    """
    try:
        # A pipe is opened without waiting for its writer, and then refused.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            _check(path, os.fstat(descriptor), error, most)
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(most + 1)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as problem:
        raise error(f"cannot read {path}: {_reason(problem)}; check the path") from None
    if len(data) > most:  # files of /proc say that they hold nothing
        raise _too_large(path, error, most)
    return data


def read_json(path: str | Path, error: type[ConescopeError]) -> Any:
    """Read a JSON file of a bounded size.

    Raises:
        ConescopeError: of the kind `error`, as `check_regular`.
        ValueError: if it holds no JSON, or is nested too deep.
    """
    try:
        return json.loads(read_bounded(path, error, _MOST_JSON))
    except RecursionError:
        raise ValueError("nested too deep") from None


def shorten(text: str, most: int = 80) -> str:
    """Return a text of at most `most` letters, for a message: its start, if it is longer."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def printable(text: str) -> str:
    """Return a text with control characters as escapes; line breaks and tabs stay.

    Lone surrogates, which no terminal can encode, and signs that turn the direction of writing
    are escaped, too.
    """
    if text.isprintable():
        return text
    return "".join(
        letter
        if letter in "\n\t" or _is_shown(letter)
        else letter.encode("unicode_escape").decode()
        for letter in text
    )


def one_line(text: str) -> str:
    """Return a text as one line: with everything as an escape that is not printed as a sign."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _is_shown(letter: str) -> bool:
    is_control = unicodedata.category(letter) in ("Cc", "Cs")
    return not is_control and letter not in _BIDIRECTIONAL and letter not in _LINE_ENDS


def _check(
    path: str | Path, found: os.stat_result, error: type[ConescopeError], most: int | None
) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, a device or a socket"
        raise error(f"{path} is {kind}, not a file; give a regular file")
    if most is not None and found.st_size > most:
        raise _too_large(path, error, most)


def _too_large(path: str | Path, error: type[ConescopeError], most: int) -> ConescopeError:
    size = f"{most / MEGABYTE:,.0f} MB" if most >= MEGABYTE else f"{most:,} bytes"
    return error(f"{path} is larger than {size}, the most that is read; give a smaller file")


def _reason(problem: OSError | ValueError) -> str:
    return (problem.strerror if isinstance(problem, OSError) else None) or str(problem)
