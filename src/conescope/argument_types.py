"""Hold the arguments of public functions against the types in their annotations."""

from __future__ import annotations

import inspect
import operator
import os
import reprlib
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache, wraps
from numbers import Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, Unpack, get_args, get_origin, get_type_hints

import numpy as np

from conescope.errors import ArgumentError

Public = TypeVar("Public", bound=Callable[..., Any])

_NAMES = {
    int: "a whole number", float: "a number", bool: "True or False", str: "a text",
    Path: "a path", NoneType: "None", Callable: "a function",
}  # fmt: skip


def checked(public: Public) -> Public:
    """Refuse arguments of a function, or of a class, that are missing or not of the types it says.

    The annotations are the one place where types are written. A number may be of any library, an
    array counts as a sequence, a list as a tuple, and a text as no sequence. What is a text or a
    number of the right type may still be out of range; the function itself says so.

    Raises:
        ArgumentError: in each call with such an argument, in one line.
    """
    if isinstance(public, type):
        public.__init__ = checked(public.__init__)
        return public  # pyright: ignore[reportReturnType]
    name = public.__qualname__.removesuffix(".__init__")
    signature = inspect.signature(public)
    hints = cache(lambda: get_type_hints(public))

    @wraps(public)
    def call(*args: Any, **named: Any) -> Any:
        try:
            given = signature.bind(*args, **named).arguments
        except TypeError as error:
            is_in_root = hasattr(sys.modules["conescope"], name.partition(".")[0])
            place = "conescope" if is_in_root else public.__module__
            raise ArgumentError(f"{name}: {error}; see help({place}.{name})") from None
        for parameter, value, kind in _typed(given, hints()):
            if not _fits(value, kind):
                raise ArgumentError(
                    f"{name}: expected {parameter} to be {_named(kind)}, got {_shown(value)}"
                )
        return public(*args, **named)

    return call  # pyright: ignore[reportReturnType]


def _typed(given: Mapping[str, Any], hints: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name, the value and the type of each argument, and of each of further options."""
    for parameter, value in given.items():
        kind = hints.get(parameter, Any)
        if get_origin(kind) is not Unpack:
            yield parameter, value, kind
            continue
        (options,) = get_args(kind)
        known = get_type_hints(options)
        for name, option in value.items():
            if name not in known:
                raise ArgumentError(
                    f"there is no option {name!r}; there are {', '.join(sorted(known))}"
                )
            yield name, option, known[name]


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a value is of a type."""
    plain, inner = get_origin(kind) or kind, get_args(kind)
    if plain is Any:
        return True
    if plain in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if plain is Literal:
        return type(value) in map(type, inner)
    if plain is Callable:
        return callable(value)
    if plain in (int, float):
        return not isinstance(value, bool | np.bool_) and _is_number(value, plain)
    if plain in (Sequence, Collection, Iterable):
        if hasattr(value, "__array__"):
            return getattr(value, "ndim", 1) > 0
        is_plain = isinstance(value, plain) and not isinstance(value, str | bytes)
        held = value if isinstance(value, list | tuple | set | frozenset | dict) else ()
        return is_plain and all(_fits(one, inner[0]) for one in held)
    if plain is Mapping and isinstance(value, dict):
        return all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if plain is tuple and isinstance(value, tuple | list):
        kinds = inner[:1] * len(value) if ... in inner else inner
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    return isinstance(value, {bool: bool | np.bool_, Path: os.PathLike}.get(plain, plain))


def _is_number(value: Any, kind: type) -> bool:
    try:
        operator.index(value)
    except TypeError:
        if kind is int or isinstance(value, Real):
            return kind is float
        if isinstance(value, np.ndarray | np.generic):
            return value.ndim == 0 and value.dtype.kind == "f"
        return getattr(value, "ndim", 1) == 0 and value.is_floating_point()  # a tensor
    return True


def _named(kind: Any) -> str:
    """Return what a type is called in a message."""
    *names, last = dict.fromkeys(_names(kind))
    return f"{', '.join(names)} or {last}" if names else last


def _names(kind: Any) -> Iterator[str]:
    """Yield what each of the types that a type stands for is called."""
    plain, inner = get_origin(kind) or kind, get_args(kind)
    if plain in (Union, UnionType):
        for one in inner:
            yield from _names(one)
    elif plain is Literal:
        yield from map(repr, inner)
    elif plain is tuple:
        yield "a tuple" if ... in inner else f"a tuple of {len(inner)}"
    elif plain in (Sequence, Collection, Iterable, Mapping):
        is_plain = plain is Mapping or inner[0] is Any
        yield f"a {plain.__name__.lower()}{'' if is_plain else f' (each {_named(inner[0])})'}"
    else:
        yield _NAMES.get(plain) or f"a {plain.__name__}"


def _shown(value: Any) -> str:
    """Return what was given, in one short line."""
    if value is None or isinstance(value, str | bytes | bool | int | float | complex):
        return reprlib.repr(value)
    name = type(value).__name__
    if isinstance(value, tuple | list | set | dict) and value:
        held = dict.fromkeys(type(one).__name__ for one in value)
        return f"{name} of {', '.join([*held][:3])}"
    return name
