"""Read recipes that come with the package or from a YAML file, with changes by the command line.

Values come from the defaults, the file and the command line, in this order; jsonargparse checks
their types. The options of the parts that a recipe names are declared by these parts.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from conescope.errors import RecipeError
from conescope.runs.foreign import read_bounded
from conescope.runs.plain_yaml import LARGEST, read_yaml
from conescope.training.data.dataset import DATASETS, find_dataset
from conescope.training.lr_schedules import LR_SCHEDULES, find_lr_schedule
from conescope.training.models import NETWORKS, find_network
from conescope.training.optimizers import TORCH, find_optimizer
from conescope.training.parts import REQUIRED, Option, Options, Part
from conescope.training.recipe import FIELDS, PARTS, SECTIONS, Recipe
from conescope.training.recipe_messages import explain

_FIND: Mapping[str, Callable[[Any], Part]] = {
    "data": find_dataset,
    "model": find_network,
    "optimizer": find_optimizer,
    "lr_schedule": find_lr_schedule,
}
_NAMES = {"data": DATASETS, "model": NETWORKS, "optimizer": TORCH, "lr_schedule": LR_SCHEDULES}


def packaged_recipes() -> dict[str, str]:
    """Return name → description of the recipes that come with the package."""
    found = {}
    for file in sorted(_packaged().iterdir(), key=lambda f: f.name):
        if file.name.endswith(".yaml"):
            values = read_yaml(file.read_bytes(), file.name, RecipeError)
            found[file.name.removesuffix(".yaml")] = values["description"]
    return found


def recipe_from_dict(
    values: Mapping[str, Any], source: str, overrides: Sequence[str] | None = None
) -> Recipe:
    """Build a recipe from nested plain values; what is absent keeps its default.

    Args:
        values: the fields, and the options of parts beside them; null for an option that is not
            given.
        source: where they come from, for error messages.
        overrides: fields to change, as on the command line. Without them the recipe is read as it
            was once stored: options are taken as they are, and no code of a user's is imported.

    Raises:
        RecipeError: if a field or an option is unknown or has the wrong type.
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
    values = read_yaml(_read(source), source, RecipeError) or {}
    if not isinstance(values, dict):
        raise RecipeError(f"{source} holds no fields; write lines such as 'seed: 1'")
    return _parse({"name": Path(source).stem, **values}, overrides, source)


def unknown_field(name: str, candidates: Sequence[str], source: str) -> RecipeError:
    """Return the error for a field that does not exist, with what may have been meant."""
    near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    if not near:
        near = [known for known in candidates if known.split(".")[-1] == name.split(".")[-1]][:1]
    cure = f"did you mean {near[0]}?" if near else "'conescope show RECIPE' lists the fields"
    return RecipeError(f"{source}: unknown field {name}; {cure}")


def parts_of(recipe: Recipe) -> dict[str, Part]:
    """Return the parts that a recipe names, by section.

    Raises:
        RecipeError: if a part does not exist, or a field is set that it does not take.
    """
    return {section: _FIND[section](recipe.get(section)) for section in PARTS}


def field_parser(options: Options) -> ArgumentParser:
    """Return the parser of a recipe's fields and of these options; its help lists them."""
    parser = ArgumentParser(exit_on_error=False, add_help=False, usage="")
    parser.add_class_arguments(Recipe, skip=set(SECTIONS))
    for section, kind in SECTIONS.items():
        parser.add_class_arguments(kind, section, skip={"options"} if section in PARTS else None)
        for name, option in options.get(section, {}).items():
            assert parser.groups is not None  # add_class_arguments has made one
            needed = " (required)" if option.default is REQUIRED else ""
            parser.groups[section].add_argument(
                f"--{section}.{name}",
                type=option.kind if option.kind is Any else option.kind | None,
                default=None if needed else option.default,
                help=(option.meaning + needed).strip() or None,
            )
    for action in parser._actions:
        section = action.dest.removesuffix(".name")
        if section in _NAMES and section != action.dest:
            action.metavar = f"{{{','.join(_NAMES[section])},…}}"
    return parser


@cache
def stored_recipe_parser() -> ArgumentParser:
    """Return the parser of stored recipes, which takes longer to build than to use."""
    return field_parser({})


def _packaged() -> Traversable:
    return resources.files("conescope.training") / "recipes"


def _read(source: str) -> bytes:
    if source.endswith((".yaml", ".yml")):
        return read_bounded(source, RecipeError, LARGEST)
    names = list(packaged_recipes())
    if source not in names:
        near = difflib.get_close_matches(source, names, n=1)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        raise RecipeError(f"unknown recipe {source}; {meant} (a file of your own ends in .yaml)")
    return _packaged().joinpath(f"{source}.yaml").read_bytes()


def _parse(values: Mapping[str, Any], overrides: Sequence[str] | None, source: str) -> Recipe:
    changes = _changes(overrides or ())
    given = {name: _given(name, value, changes) for name, value in values.items()}
    stored: Mapping[str, Mapping[str, Any]] = {}
    parts: Mapping[str, Part] = {}
    if overrides is None:
        given, stored = _apart(given)
    else:
        chosen = {s: str(given.get(s, {}).get("name", SECTIONS[s].name)) for s in PARTS}
        chosen |= {s: changes[f"{s}.name"] for s in PARTS if f"{s}.name" in changes}
        parts = {s: _FIND[s](SECTIONS[s](name=name)) for s, name in chosen.items()}
    names = [*_dotted(given), *changes]
    options = {section: _declared(part, names) for section, part in parts.items()}
    for name in names:
        section, _, inner = name.partition(".")
        if name not in FIELDS and inner not in options.get(section, {}):
            where = "command line" if name in changes else source
            if section in PARTS and inner:
                raise parts[section].unknown(inner, f"{where}: ")
            raise unknown_field(name, list(FIELDS), where)
    parser = field_parser(options) if any(options.values()) else stored_recipe_parser()
    try:
        parsed = parser.parse_object(given, defaults=False)
        words = [f"--{name}={text}" for name, text in changes.items()]
        parsed = parser.parse_args(words, namespace=parsed, defaults=False).as_dict()
    except ArgumentError as error:
        raise RecipeError(f"{source}: {explain(str(error), options)}") from None
    for section, held in stored.items():
        parsed[section] = {**(parsed.get(section) or {}), **held}
    recipe = _recipe(parsed)
    if overrides is not None:
        parts_of(recipe)  # which checks the fields that parts take
    return recipe


def _apart(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return a recipe's values in two: its fields, and the options of its parts."""
    fields, options = dict(given), {}
    for section in (s for s in PARTS if s in given):
        names = [name for name in given[section] if f"{section}.{name}" not in FIELDS]
        options[section] = {name: given[section][name] for name in names}
        fields[section] = {n: v for n, v in given[section].items() if n not in names}
    return fields, options


def _changes(overrides: Sequence[str]) -> dict[str, str]:
    """Return the fields of a command line: dotted name → text."""
    changes: dict[str, str] = {}
    words = iter(overrides)
    for word in words:
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            raise RecipeError(f"command line: {word!r} is no field; write --FIELD VALUE")
        value = text if equals else next(words, None)
        if value is None:
            raise RecipeError(f"command line: {word} needs a value; write {word} VALUE")
        changes[name] = value
    return changes


def _given(section: str, value: Any, changes: dict[str, str]) -> Any:
    """Leave out options that are null, which means not given, of a section and of `changes`."""
    if section not in SECTIONS:
        return value
    if not isinstance(value, Mapping):
        raise RecipeError(f"{section} is a group of fields; write for example '{section}: {{…}}'")
    if section not in PARTS:
        return dict(value)
    nulls = {
        name for name in value if value[name] is None or changes.get(f"{section}.{name}") == "null"
    }
    options = {name for name in nulls if f"{section}.{name}" not in FIELDS}
    for name in options:
        if changes.get(f"{section}.{name}") == "null":
            del changes[f"{section}.{name}"]
    return {name: inner for name, inner in value.items() if name not in options}


def _dotted(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if name in SECTIONS:
            yield from (f"{name}.{inner}" for inner in value)
        else:
            yield str(name)


def _declared(part: Part, names: Sequence[str]) -> dict[str, Option]:
    """Return the options of a part, with those of these names that it takes undeclared.

    Raises:
        RecipeError: if an option has the name of a field.
    """
    found = dict(part.options)
    for name in found:
        if f"{part.section}.{name}" in FIELDS:
            raise RecipeError(
                f"{part.section}.name: {part.name} has an argument {name}, which is the name of a "
                f"field of recipes; rename it"
            )
    for name in names if part.takes_any else ():
        section, _, option = name.partition(".")
        if section == part.section and name not in FIELDS and option.isidentifier():
            found.setdefault(option, Option(Any))
    return found


def _recipe(parsed: Mapping[str, Any]) -> Recipe:
    """Build the recipe of checked values; what is no field of a section is an option of its part.

    Names of torch's, which may be written in any case, get one spelling, so that ids are the same.
    """
    values = dict(parsed)
    for section, kind in SECTIONS.items():
        own, options = {}, {}
        for name, value in (values.get(section) or {}).items():
            if f"{section}.{name}" in FIELDS:
                own[name] = value
            elif value is not None:
                options[name] = _as_yaml(value, f"{section}.{name}")
        if section in PARTS:
            name = own.get("name", kind.name)
            own |= {"options": options, "name": name if ":" in name else name.lower()}
        values[section] = kind(**own)
    return Recipe(**values)


def _as_yaml(value: Any, name: str) -> Any:
    """Return an option's value with lists for tuples, if a run folder gives it back as it is."""
    if isinstance(value, tuple | list):
        return [_as_yaml(inner, name) for inner in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _as_yaml(inner, name) for key, inner in value.items()}
    is_finite = not isinstance(value, float) or math.isfinite(value)
    if not isinstance(value, str | int | float | None) or not is_finite:
        raise RecipeError(
            f"{name} cannot be {value!r}; an option is a finite number, text, true, false, null, "
            f"or a list or a mapping (of text) to these"
        )
    return value
