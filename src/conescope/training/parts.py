"""Parts: the network, data set, optimiser and learning-rate schedule that a recipe names.

A part is a class or a function. Some of its arguments are filled in by the training (`shape`,
`classes`) or by fields that the recipe has for every part (`model.width`, `optimizer.lr`); all
others are the part's own options, which stand in the recipe beside these fields.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from conescope.errors import RecipeError
from conescope.runs.user_code import import_object
from conescope.training.recipe import FIELDS

REQUIRED = inspect.Parameter.empty
"""Default of an option that has none."""

_ANY_OPTIONS = inspect.Parameter.VAR_KEYWORD


@dataclass(frozen=True)
class Option:
    """An argument of a part that a recipe may set.

    Attributes:
        kind: its type, as far as a recipe can be checked for it; `Any` for other types.
        default: what the part itself takes without it; `REQUIRED` if it needs a value.
        meaning: the part's own documentation of it; may be empty.
    """

    kind: Any
    default: Any = None
    meaning: str = ""


Options = Mapping[str, Mapping[str, Option]]
"""A recipe's section → name of an option → the option."""


@dataclass(frozen=True)
class Part:
    """A class or function that a recipe names.

    Attributes:
        section: the recipe's section that names it, such as model.
        name: its name there.
        call: the class or function.
        filled: names of the arguments that are no options.
        positional: how many of its first arguments are no options either, whatever their names.
    """

    section: str
    name: str
    call: Callable[..., Any]
    filled: frozenset[str]
    positional: int = 0

    @cached_property
    def _arguments(self) -> dict[str, inspect.Parameter]:
        try:
            found = list(inspect.signature(self.call).parameters.values())[self.positional :]
        except (TypeError, ValueError):
            raise RecipeError(
                f"{self.section}.name: {self.name} is no class or function whose arguments "
                f"Python can tell; name a function that calls it"
            ) from None
        for p in found:
            if p.kind is p.POSITIONAL_ONLY and p.default is p.empty:
                raise RecipeError(
                    f"{self.section}.name: {self.name} takes {p.name} by position only; options "
                    f"are passed by name"
                )
        return {p.name: p for p in found if p.kind not in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY)}

    @cached_property
    def takes_any(self) -> bool:
        """Whether it has `**options`, so that every name is one of its options."""
        return any(p.kind is _ANY_OPTIONS for p in self._arguments.values())

    def takes(self, name: str) -> bool:
        """Whether it names an argument so; `**options` take no field of the recipe."""
        return name in self._arguments and self._arguments[name].kind is not _ANY_OPTIONS

    @cached_property
    def options(self) -> dict[str, Option]:
        """Its options, by name."""
        return {
            name: Option(_kind(self.call, p), p.default, _meaning(self.call, name))
            for name, p in self._arguments.items()
            if name not in self.filled and p.kind is not _ANY_OPTIONS
        }

    def check(self, given: Mapping[str, Any]) -> None:
        """Check the names of options.

        Raises:
            RecipeError: if there is no such option, or one without a default is not given; the
                message lists the part's options.
        """
        for name in given:
            if not self.takes_any and name not in self.options:
                raise self.unknown(name)
        for name, option in self.options.items():
            if option.default is REQUIRED and name not in given:
                raise RecipeError(
                    f"{self.section}.{name}: {self.name} needs a value for it; set it"
                )

    def check_fields(self, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        """Check that a field which the part does not take has its default.

        Args:
            values: the recipe's fields that fill arguments of parts, by name.
            defaults: their defaults.

        Raises:
            RecipeError: if such a field is set to another value.
        """
        for name, value in values.items():
            if value != defaults[name] and not self.takes(name):
                raise RecipeError(
                    f"{self.section}.{name} is {value}, and {self.name} takes none; set it to "
                    f"{defaults[name]}"
                )

    def __call__(
        self, *first: object, available: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Any:
        """Call it with its first arguments, what it takes of `available`, and its options.

        Raises:
            RecipeError: as `check`, or if the part exits Python. What it raises otherwise comes
                through as it is.
        """
        self.check(options)
        own = {name: value for name, value in available.items() if self.takes(name)}
        try:
            return self.call(*first, **own, **options)
        except SystemExit:
            raise RecipeError(
                f"{self.section}.name: {self.name} exits Python (sys.exit) instead of returning; "
                f"let it return what it builds"
            ) from None

    def unknown(self, name: str, where: str = "") -> RecipeError:
        """Return the error for an option that the part does not have."""
        fields = [field.partition(".") for field in FIELDS]
        candidates = [
            *self.options,
            *(inner for section, _, inner in fields if section == self.section),
        ]
        near = difflib.get_close_matches(name, candidates, n=1)
        meant = f"did you mean {self.section}.{near[0]}? " if near else ""
        has = f"has the options {', '.join(self.options)}" if self.options else "has no options"
        return RecipeError(f"{where}unknown field {self.section}.{name}; {meant}{self.name} {has}")


def find_part(
    section: str,
    name: str,
    table: Mapping[str, str],
    *,
    filled: frozenset[str],
    positional: int = 0,
) -> Part:
    """Find the part that a recipe names.

    Args:
        section: the recipe's section, such as model.
        name: one of the table's names, or `package.module:name` for a user's own code, which is
            imported.
        table: name → where it is, as `package.module:name`.
        filled: see `Part`.
        positional: see `Part`.

    Raises:
        RecipeError: if there is no such part; the message lists those that there are.
    """
    if ":" in name:
        call = import_object(name, f"{section}.name", RecipeError)
    elif name.lower() in table:
        module, _, attribute = table[name.lower()].partition(":")
        call = getattr(importlib.import_module(module), attribute)
    else:
        near = difflib.get_close_matches(name, table, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        choices = " or ".join([*table, "package.module:name"])
        raise RecipeError(f"{section}.name takes {choices}, not {name!r}{meant}")
    if not callable(call):
        raise RecipeError(
            f"{section}.name: {name} is a {type(call).__name__}, no class or function; name one"
        )
    return Part(section, name, call, filled, positional)


def _kind(call: Callable[..., Any], argument: inspect.Parameter) -> Any:
    """Return the type of an argument as far as a recipe can be checked for it."""
    if argument.annotation is inspect.Parameter.empty:
        default = type(argument.default)
        return {bool: bool, int: int | float, float: float, str: str}.get(default, Any)
    function = call.__init__ if inspect.isclass(call) else call
    names = getattr(inspect.unwrap(function), "__globals__", {})
    holder = SimpleNamespace(__annotations__={"it": argument.annotation})
    try:
        return _plain(get_type_hints(holder, names)["it"])
    except (NameError, AttributeError, TypeError, SyntaxError):
        return Any  # names a type that is imported for type checkers only


def _plain(kind: Any) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if kind in (bool, int, float, str, NoneType, list, tuple, dict) or origin is Literal:
        return kind
    if origin in (Union, UnionType):
        known = [found for found in map(_plain, inner) if found is not Any]
        return Union[tuple(known)] if set(known) - {NoneType} else Any  # noqa: UP007
    if origin in (list, tuple):
        parts = tuple(found if found is Ellipsis else _plain(found) for found in inner)
        if Any in parts:
            return Any
        return tuple[parts] if origin is tuple else list[parts[0]]
    return Any


def _meaning(call: Callable[..., Any], name: str) -> str:
    """Return what the docstring says of an argument, in one line."""
    text = inspect.getdoc(call) or ""
    if inspect.isclass(call) and "Args:" not in text:
        text = inspect.getdoc(call.__init__) or ""
    entry = rf"^(?P<indent> +){name}(?: \(.*?\))?: (?P<first>.+(?:\n(?P=indent) +\S.*)*)"
    found = re.search(entry, text, re.MULTILINE)
    text = " ".join(found["first"].split()) if found else ""
    return re.sub(r" *\(default: (\([^)]*\)|[^()]*)\)", "", text)  # which help says anyway
