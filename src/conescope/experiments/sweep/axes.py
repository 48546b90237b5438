"""Read the axes of a sweep: from the command line, or from a YAML file of axes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conescope.errors import RecipeError
from conescope.runs.foreign import read_bounded
from conescope.runs.plain_yaml import LARGEST, read_yaml
from conescope.training.recipe import FIELDS, PARTS, SECTIONS
from conescope.training.recipe_fields import PLACE
from conescope.training.recipe_reading import unknown_field

_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_VALUES = 1_000_000
_KEYS = ("recipe", "fields", "axes", "exclude")


@dataclass(frozen=True)
class Axes:
    """What a sweep was asked for.

    Attributes:
        recipes: the recipes to start from, packaged names or YAML files; an axis if several.
        fixed: dotted field → the text of the one value that all runs have.
        axes: dotted field → the texts of its values, at least two of them, or whole numbers.
        exclude: combinations to leave out: axis → the texts of the values that are excluded
            together with those of the other axes named.
    """

    recipes: Sequence[str]
    fixed: Mapping[str, str] = field(default_factory=dict)
    axes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    exclude: Sequence[Mapping[str, Sequence[str]]] = ()

    @property
    def size(self) -> int:
        """The number of runs, before any is excluded."""
        return len(self.recipes) * math.prod(len(values) for values in self.axes.values())


def read_axes(sources: Sequence[str], overrides: Sequence[str] = ()) -> Axes:
    """Read what a sweep consists of.

    Args:
        sources: names of packaged recipes or YAML files of recipes; or one YAML file that has the
            key `axes`.
        overrides: fields as on the command line, such as `["--optimizer.lr", "0.01,0.1"]`. They
            replace those of a file.

    Raises:
        RecipeError: if a file cannot be read, a field is unknown, or an axis has no values.
    """
    given: dict[str, Sequence[str]] = {}
    for name, text in _pairs(overrides):
        values = _split(name, text)
        if (len(values) > 1 and name in given) or len(given.get(name, ())) > 1:
            raise RecipeError(
                f"command line: --{name} is given twice; write all its values once, as A,B,C"
            )
        given[name] = values
    files = {source: written for source in sources if (written := _axes_file(source))}
    if not files:
        return _arranged(sources, given, ())
    if len(sources) > 1:
        raise RecipeError(
            f"{next(iter(files))} is a file of axes, which is given alone; name recipes in it, as "
            f"'recipe: [A, B]'"
        )
    recipes, fields, exclude = files[sources[0]]
    return _arranged(recipes, {**fields, **given}, exclude)


def _arranged(
    recipes: Sequence[str],
    fields: Mapping[str, Sequence[str]],
    exclude: Sequence[Mapping[str, Sequence[str]]],
) -> Axes:
    """Tell axes from fields with one value, and check what can be checked without a recipe."""
    if len(set(recipes)) < len(recipes):
        raise RecipeError(f"a recipe is named twice in {', '.join(recipes)}; name each once")
    for name, values in fields.items():
        if not len(values):
            raise RecipeError(f"the axis {name} has no values; write for example --{name} 1,2")
        if len(values) > 1 and _is_place(name):
            raise RecipeError(
                f"{name} changes no number of a run, so it cannot be an axis; give it one value"
            )
    axes = {name: values for name, values in fields.items() if len(values) > 1}
    for combination in exclude:
        for name in combination:
            if name not in axes and name != "recipe":
                raise RecipeError(
                    f"exclude names {name}, which is no axis of this sweep; its axes are "
                    f"{', '.join(axes) or 'none'}"
                )
    fixed = {name: values[0] for name, values in fields.items() if len(values) == 1}
    return Axes(recipes, fixed, axes, exclude)


def _is_place(name: str) -> bool:
    return name in FIELDS and FIELDS[name].metadata == PLACE


def _pairs(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the dotted fields of a command line with their texts."""
    words = iter(overrides)
    for word in words:
        name, equals, text = word.removeprefix("--").partition("=")
        value = text if equals else next(words, None)
        if not word.startswith("--") or value is None:
            raise RecipeError(f"command line: {word} is no field with a value; write --FIELD VALUE")
        yield name, value


def _split(name: str, text: str) -> Sequence[str]:
    """Split the text of a field into its values."""
    if _is_place(name):
        return [text]
    return split_values(name, text, bars=name in FIELDS and "schedule" in FIELDS[name].metadata)


def split_values(name: str, text: str, *, bars: bool) -> list[str]:
    """Split the text of an axis into its values.

    Commas separate values, but not within brackets. In schedules, which have commas themselves,
    a vertical bar does. `0..4` stands for 0, 1, 2, 3, 4.

    Args:
        name: the axis, for messages.
        text: the text.
        bars: whether bars separate values.

    Raises:
        RecipeError: if a span such as 4..0 has no values, or too many, or a value is empty.
    """
    parts = [part.strip() for part in (text.split("|") if bars else _outside_brackets(text))]
    if not all(parts) and any(parts):
        raise RecipeError(
            f"the axis {name} has an empty value in {text!r}; write each value, with one "
            f"{'bar' if bars else 'comma'} between two"
        )
    found: list[str] = []
    for part in filter(None, parts):
        spanned = _RANGE.fullmatch(part)
        if not spanned:
            found.append(part)
            continue
        first, last = int(spanned[1]), int(spanned[2])
        if last < first:
            raise RecipeError(
                f"the axis {name} has no values from {first} to {last}; write {last}..{first}"
            )
        if last - first >= _MOST_VALUES:
            raise RecipeError(
                f"the axis {name} has {last - first + 1:,} values; it may have up to "
                f"{_MOST_VALUES:,}"
            )
        found += map(str, range(first, last + 1))
    return found


def _outside_brackets(text: str) -> list[str]:
    """Split a text at the commas that lie outside of [] and {}."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _axes_file(
    source: str,
) -> tuple[list[str], dict[str, Sequence[str]], list[dict[str, Sequence[str]]]] | None:
    """Read a YAML file of axes: its recipes, fields with values, and exclusions.

    Returns None if the source is a recipe.
    """
    if not source.endswith((".yaml", ".yml")):
        return None
    written = read_yaml(read_bounded(source, RecipeError, LARGEST), source, RecipeError)
    if not isinstance(written, dict) or "axes" not in written:
        return None
    for key in written:
        if key not in _KEYS:
            raise RecipeError(f"{source}: unknown key {key}; a file of axes has {', '.join(_KEYS)}")
    recipes = written.get("recipe", "digits")
    recipes = [recipes] if isinstance(recipes, str) else recipes
    if not (isinstance(recipes, list) and recipes and all(isinstance(r, str) for r in recipes)):
        raise RecipeError(f"{source}: recipe takes a recipe's name or file, or a list of these")
    fields = {
        name: [_text(value)] for name, value in _flat(source, "fields", written.get("fields"))
    }
    axes = {n: _values(n, value) for n, value in _flat(source, "axes", written["axes"])}
    if not axes:
        raise RecipeError(f"{source}: axes is empty; write for example 'axes: {{seed: 0..4}}'")
    for name in fields.keys() & axes.keys():
        raise RecipeError(f"{source}: {name} is in fields and in axes; leave one of the two out")
    excluded = written.get("exclude") or []
    if not isinstance(excluded, list):
        raise RecipeError(f"{source}: exclude is a list of combinations, such as [{{seed: 1}}]")
    exclude = [
        {name: _values(name, value) for name, value in _flat(source, "exclude", combination)}
        for combination in excluded
    ]
    for combination in exclude:
        if "recipe" in combination:
            combination["recipe"] = [_beside(source, name) for name in combination["recipe"]]
    return [_beside(source, recipe) for recipe in recipes], fields | axes, exclude


def _beside(source: str, recipe: str) -> str:
    """Return the path of a recipe's file that is named relative to the file of axes."""
    return str(Path(source).parent / recipe) if recipe.endswith((".yaml", ".yml")) else recipe


def _values(name: str, value: Any) -> Sequence[str]:
    if isinstance(value, list):
        return [_text(inner) for inner in value]
    return _split(name, value) if isinstance(value, str) else [_text(value)]


def _text(value: Any) -> str:
    """Return the value of a field in a file as the command line has it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _flat(source: str, key: str, values: Any) -> Iterator[tuple[str, Any]]:
    """Yield dotted fields with their values, of groups too: `optimizer: {lr: 0.1}`."""
    if values is None:
        return
    if not isinstance(values, dict):
        raise RecipeError(f"{source}: {key} maps fields to values, such as 'seed: 0..4'")
    for name, value in values.items():
        if name in SECTIONS and isinstance(value, dict):
            yield from ((f"{name}.{inner}", held) for inner, held in value.items())
            continue
        if name == "recipe" and key != "exclude":
            raise RecipeError(
                f"{source}: write recipes as 'recipe: [A, B]' beside {key}, not within it"
            )
        section = str(name).partition(".")[0]
        if name not in FIELDS and section not in PARTS and name != "recipe":
            raise unknown_field(str(name), list(FIELDS), f"{source}, {key}")
        yield str(name), value
