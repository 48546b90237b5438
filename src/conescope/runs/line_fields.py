"""The types of the fields of a journal's lines, by which a line that no writer writes is known.

A checksum tells damage, not malice: whoever changes a line can give it the right one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from conescope.runs.journal import LINES, Kind

_MOST_STEPS = 10**18
"""The names of files have so many digits at most."""

_OWN_FILES = ("journal.jsonl", "lock")

_Test = Callable[[Any], bool]


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
