"""Reading recipes: packaged, from a user's YAML file, changed on the command line.

Values come from the defaults, the file and the command line, in this order; jsonargparse checks
their types.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from conescope.errors import RecipeError
from conescope.training.recipe import Recipe, field_names


def packaged_recipes() -> dict[str, str]:
    """Name → description of the recipes that come with the package."""
    found = {}
    for file in sorted(_packaged().iterdir(), key=lambda f: f.name):
        if file.name.endswith(".yaml"):
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
            found[file.name.removesuffix(".yaml")] = values["description"]
    return found


def recipe_from_dict(
    values: Mapping[str, Any], source: str, overrides: Sequence[str] = ()
) -> Recipe:
    """Build a recipe from nested plain values; what is absent keeps its default.

    Args:
        values: the fields.
        source: where they come from, for error messages.
        overrides: fields to change, as on the command line.

    Raises:
        RecipeError: if a field is unknown or has the wrong type.
    """
    return _parse(values, overrides, source)


def load_recipe(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and change fields of it.

    Args:
        source: the name of a packaged recipe, or the path of a YAML file.
        overrides: as on the command line, e.g. `["--optimizer.lr", "0.03", "--seed=1"]`.

    Raises:
        RecipeError: if there is no such recipe, or a field is unknown or has a wrong value.
    """
    text = _read(source)
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split())
        raise RecipeError(f"{source} is no YAML file: {detail}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{source} holds no fields; write lines such as 'seed: 1'")
    return _parse({"name": Path(source).stem, **values}, overrides, source)


def unknown_field(name: str, candidates: Sequence[str], source: str) -> RecipeError:
    """The error for a field that does not exist, with what may have been meant."""
    near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    if not near:
        near = [known for known in candidates if known.split(".")[-1] == name.split(".")[-1]][:1]
    cure = f"did you mean {near[0]}?" if near else "'conescope show RECIPE' lists the fields"
    return RecipeError(f"{source}: unknown field {name}; {cure}")


def field_parser() -> ArgumentParser:
    """The parser of a recipe's fields; its help lists them."""
    parser = ArgumentParser(exit_on_error=False, add_help=False, usage="")
    parser.add_class_arguments(Recipe)
    return parser


def _packaged() -> Traversable:
    return resources.files("conescope.training") / "recipes"


def _read(source: str) -> str:
    if source.endswith((".yaml", ".yml")):
        try:
            return Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise RecipeError(f"cannot read the recipe {source}: {reason}") from None
    names = list(packaged_recipes())
    if source not in names:
        near = difflib.get_close_matches(source, names, n=1)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        raise RecipeError(f"unknown recipe {source}; {meant} (a file of your own ends in .yaml)")
    return _packaged().joinpath(f"{source}.yaml").read_text(encoding="utf-8")


def _parse(values: Mapping[str, Any], overrides: Sequence[str], source: str) -> Recipe:
    known = field_names()
    for name in _given_names(values):
        if name not in known:
            raise unknown_field(name, known, source)
    for token in overrides:
        name = token.removeprefix("--").partition("=")[0]
        if token.startswith("--") and name not in known:
            raise unknown_field(name, known, "command line")
    parser = field_parser()
    try:
        given = parser.parse_object(dict(values))
        instances = parser.instantiate(parser.parse_args(list(overrides), namespace=given))
    except ArgumentError as error:
        raise RecipeError(f"{source}: {_explain(str(error))}") from None
    return Recipe(**{f.name: instances[f.name] for f in fields(Recipe)})


def _explain(message: str) -> str:
    """Jsonargparse's message about a value, in one line that names field, type and value."""
    match = re.match(r'Parser key "(.+?)":.*?(?:Got|Given) value: (.*)', message, re.DOTALL)
    if not match:
        return " ".join(message.split())
    name, value = match[1], match[2].strip()
    choices, kinds = _accepted(name)
    near = difflib.get_close_matches(value, choices, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"{name} takes {' or '.join([*choices, *kinds])}, not {value!r}{meant}"


def _accepted(name: str) -> tuple[list[str], list[str]]:
    """What a field takes: the words, and the types."""
    kind: Any = Recipe
    for part in name.split("."):
        kind = get_type_hints(kind)[part]
    options = [kind] if get_origin(kind) is Literal or not get_args(kind) else get_args(kind)
    words = [str(w) for o in options if get_origin(o) is Literal for w in get_args(o)]
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    types = [names.get(o, "null") for o in options if get_origin(o) is not Literal]
    return words, types


def _given_names(values: Mapping[str, Any]) -> Iterator[str]:
    groups = {f.name for f in fields(Recipe) if is_dataclass(getattr(Recipe(), f.name))}
    for name, value in values.items():
        if name in groups and not isinstance(value, Mapping):
            raise RecipeError(f"{name} is a group of fields; write for example '{name}: {{…}}'")
        if name in groups:
            yield from (f"{name}.{inner}" for inner in value)
        else:
            yield str(name)
