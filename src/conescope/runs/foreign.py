"""What somebody else may have made: files of a bounded size, names to print, lines of a journal.

Only regular files are read. The fields of a journal's lines have the types that a writer gives
them: a checksum tells damage, not malice, since whoever changes a line can give it the right one.

It stands in this room because `runs` is the lowest one that reads files, and the rooms that open a
user's paths all import it.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from conescope.errors import ConescopeError
from conescope.runs.journal import LINES, Kind

MEGABYTE = 2**20
GIGABYTE = 2**30

_MOST_JSON = 64 * MEGABYTE  # indices of shards of the largest models have a few

_BIDIRECTIONAL = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_LINE_ENDS = frozenset("\u2028\u2029")


_MOST_STEPS = 10**18
"""The names of files have so many digits at most."""

_OWN_FILES = ("journal.jsonl", "lock")

_Test = Callable[[Any], bool]


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


def fits(kind: Kind, values: Mapping[str, Any]) -> bool:
    """Return whether a line has all that lines of its kind state, each of the right type.

    Args:
        kind: the line's kind.
        values: its other fields, JSON values; those that no line has are not looked at.
    """
    known = LINES[kind]
    has_all = all(name in values for name in known.fields if name not in known.optional)
    if kind == Kind.RUN:
        has_all = has_all and ("recipe" in values or "source" in values)
    return has_all and all(_TESTS[n](values[n]) for n in known.fields if n in values)


def is_inside(file: Any) -> bool:
    """Return whether a path names a file in the run folder that a line may name."""
    if not _is_text(file) or not file.isprintable() or file in _OWN_FILES:
        return False
    return not any(part in ("", ".", "..") for part in file.split("/"))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    """Return whether a value is a whole number from 0 on that may be an iteration."""
    return type(value) is int and 0 <= value < _MOST_STEPS


def _is_number(value: Any) -> bool:
    """Return whether a value is a finite number that float64 can hold."""
    return type(value) in (int, float) and abs(value) < 1e308 and math.isfinite(value)


def _is_time(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_class(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _is_length(value: Any) -> bool:
    """Return whether a value is a whole number, which is negative where a trainer knows no end."""
    return type(value) is int and abs(value) < _MOST_STEPS


def _is_source(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name), str) for name in ("name", "description")
    )


def _is_state(value: Any) -> bool:
    """Return whether a value is an optimiser's state by the number of its parameter."""
    return isinstance(value, dict) and all(
        re.fullmatch(r"\d{1,18}", number) and isinstance(slots, dict)
        for number, slots in value.items()
    )


def _is_at_least(least: int, value: Any) -> bool:
    return _is_count(value) and value >= least


def _is_shape(value: Any) -> bool:
    """Return whether a value is the shape of a matrix that is not empty."""
    return _is_list(partial(_is_at_least, 1), value) and len(value) == 2


def _is_none_or(test: _Test, value: Any) -> bool:
    return value is None or test(value)


def _is_list(test: _Test, value: Any) -> bool:
    return isinstance(value, list) and all(map(test, value))


_TESTS: Mapping[str, _Test] = MappingProxyType(
    {
        "recipe": lambda value: isinstance(value, dict),
        "source": _is_source,
        "command": _is_text,
        "total_steps": partial(_is_none_or, _is_length),
        "labels": partial(_is_list, _is_class),
        "texts": partial(_is_list, _is_text),
        "file": is_inside,
        "sha256": _is_text,
        "environment": lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
        "step": _is_count,
        "seconds": _is_time,
        **dict.fromkeys(LINES[Kind.EVALUATION].fields[2:], _is_number),
        "name": _is_text,
        "commit": _is_text,
        "stage": _is_text,
        "begins": _is_count,
        "config": partial(_is_none_or, _is_text),
        "outputs": lambda value: value in ("trace", "full", "sum") or _is_class(value),
        "weights": _is_text,
        "draws": partial(_is_at_least, 1),
        "groups": partial(_is_at_least, 2),
        "seed": lambda value: type(value) is int,
        "probe_outputs": _is_shape,
        "param_groups": partial(_is_list, lambda value: isinstance(value, dict)),
        "plain_slots": _is_state,
        "steps": partial(_is_list, _is_count),
        "budget": partial(_is_none_or, _is_number),
        "lost": partial(_is_list, _is_text),
        "kept": _is_text,
        "reason": _is_text,
    }
)
"""Name of a field, which means the same in every kind of line → whether a value may stand in it."""
