"""Error messages about the values of a recipe's fields, in one line."""

from __future__ import annotations

import difflib
import re
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from conescope.runs.foreign import shorten
from conescope.training.parts import Options
from conescope.training.recipe import Recipe


def explain(message: str, options: Options) -> str:
    """Return jsonargparse's message about a value as one line: field, types, value.

    Args:
        message: the message.
        options: the options of parts that the parser knows beside the fields.
    """
    match = re.match(r'Parser key "(.+?)":.*(?:Got|Given) value: (.*)', message, re.DOTALL)
    if not match:
        return " ".join(message.split())
    name, value = match[1], shorten(" ".join(match[2].split()))
    section, _, inner = name.partition(".")
    option = options.get(section, {}).get(inner)
    kind = option.kind | None if option else _type_of(name)
    near = difflib.get_close_matches(value, _words(kind), n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"{name} takes {_accepted(kind)}, not {value!r}{meant}"


def _type_of(name: str) -> Any:
    kind: Any = Recipe
    for part in name.split("."):
        kind = get_type_hints(kind)[part]
    return kind


def _words(kind: Any) -> list[str]:
    """Return the words that a type allows."""
    if get_origin(kind) is Literal:
        return [str(word) for word in get_args(kind)]
    if get_origin(kind) in (Union, UnionType):
        return [word for inner in get_args(kind) for word in _words(inner)]
    return []


def _accepted(kind: Any) -> str:
    """Say what a type takes."""
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false",
             NoneType: "null", list: "a list", tuple: "a list", dict: "a mapping"}  # fmt: skip
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return " or ".join(map(str, inner))
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_accepted, inner))
    if get_origin(kind) in (list, tuple):
        return f"[{', '.join('…' if i is Ellipsis else _accepted(i) for i in inner)}]"
    return names.get(kind, "another value")
