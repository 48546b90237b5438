"""Make the table of a sweep's recipes from its axes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from conescope.errors import RecipeError
from conescope.experiments.sweep.axes import Axes
from conescope.training.recipe import FIELDS, PARTS, Recipe
from conescope.training.recipe_reading import load_recipe, parts_of

_NUMBERS: Mapping[str, tuple[re.Pattern[str], Callable[[str], Any]]] = MappingProxyType(
    {
        "int": (re.compile(r"-?\d+"), int),
        "float": (re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"), float),
    }
)
"""Type of a field → the texts that need no parser of recipes, and what reads them."""


@dataclass(frozen=True)
class GridPoint:
    """One run of a sweep.

    Attributes:
        recipe: what to carry out.
        values: axis → its value in this run; `recipe` is an axis if there are several.
        source: the recipe, or the run, whose fields the axes change.
        path: the run's folder; None for one of its id in the sweep's folder of run folders.
    """

    recipe: Recipe
    values: Mapping[str, Any]
    source: str
    path: Path | None = None

    @property
    def id(self) -> str:
        """The recipe's id."""
        return f"{self.recipe.name}-{self.digest[:8]}"

    @property
    def digest(self) -> str:
        """The recipe's digest."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        """The recipe's digest, which takes longer to compute than all else here."""
        return self.recipe.digest

    @property
    def fields(self) -> dict[str, Any]:
        """All fields of the recipe as nested plain values."""
        return self.recipe.to_dict()


Load = Callable[[str, Sequence[str]], Recipe]
"""Returns the recipe of a source, with fields changed as on the command line."""


@dataclass(frozen=True)
class _Choice:
    """One value of an axis, or one combination of values of axes that are read together.

    Attributes:
        values: axis → value.
        changes: dotted field → value, or section → the whole section.
    """

    values: Mapping[str, Any]
    changes: Mapping[str, Any]


def make_grid(
    axes: Axes, load: Load = load_recipe, named: Mapping[str, Mapping[str, Any]] | None = None
) -> list[GridPoint]:
    """Return the runs of a sweep, the last axis running fastest, without those excluded.

    Args:
        axes: what was asked for.
        load: gives the recipe of one of `axes.recipes`.
        named: for each of `axes.recipes`, the axes that tell it from the others, with its values;
            by default `recipe`, if there are several.

    Raises:
        RecipeError: if a field is unknown, a value has the wrong type or is out of range, a value
            comes twice, nothing is left, or two different runs have the same id.
    """
    if named is None:
        several = len(axes.recipes) > 1
        named = {source: {"recipe": source} if several else {} for source in axes.recipes}
    points: dict[str, GridPoint] = {}
    checked: set[Any] = set()
    matched: set[int] = set()
    for source in axes.recipes:
        for point in _of_source(source, axes, matched, load, named[source]):
            _check_parts(point.recipe, checked)
            held = points.setdefault(point.id, point)
            if held is not point and held.recipe != point.recipe:
                raise RecipeError(
                    f"two different runs, {dict(held.values)} and {dict(point.values)}, have the "
                    f"same id {point.id}; make them in two sweeps, or exclude one"
                )
    for number, combination in enumerate(axes.exclude):
        if number not in matched:
            raise RecipeError(
                f"exclude {dict(combination)} matches no run of this sweep; name values of its axes"
            )
    if not points:
        raise RecipeError("all runs of this sweep are excluded; exclude fewer of them")
    return list(points.values())


def _of_source(
    source: str, axes: Axes, matched: set[int], load: Load, named: Mapping[str, Any]
) -> Iterator[GridPoint]:
    """Yield the runs of one recipe; add the places of the exclusions that match to `matched`."""

    def recipe_of(words: Sequence[str] = ()) -> Recipe:
        return load(source, [*(f"--{name}={text}" for name, text in axes.fixed.items()), *words])

    base = recipe_of()
    choices = [_choices(recipe_of, group) for group in _groups(axes)]
    excluded = [_excluded(recipe_of, one) for one in axes.exclude]
    for combination in itertools.product(*choices):
        values = dict(named)
        for choice in combination:
            values |= choice.values
        hits = {
            number
            for number, one in enumerate(excluded)
            if all(values.get(name) in held for name, held in one.items())
        }
        matched |= hits
        if hits:
            continue
        changes = {name: value for c in combination for name, value in c.changes.items()}
        yield GridPoint(_changed(base, changes), values, source)


def _groups(axes: Axes) -> list[dict[str, Sequence[str]]]:
    """Return the axes in groups that are read together: a part's name decides on its options."""
    named = [section for section in PARTS if f"{section}.name" in axes.axes]
    groups: dict[str, dict[str, Sequence[str]]] = {}
    for name, values in axes.axes.items():
        section = name.partition(".")[0]
        groups.setdefault(section if section in named else name, {})[name] = values
    return list(groups.values())


_RecipeOf = Callable[[Sequence[str]], Recipe]
"""Returns the recipe that the sweep starts from, with more fields changed."""


def _choices(recipe_of: _RecipeOf, group: Mapping[str, Sequence[str]]) -> list[_Choice]:
    if len(group) == 1 and not next(iter(group)).endswith(".name"):
        [(name, texts)] = group.items()
        found = [_typed(recipe_of, name, text) for text in texts]
        _check_distinct(name, found)
        return [_Choice({name: value}, {name: value}) for value in found]
    section = next(iter(group)).partition(".")[0]
    choices = []
    for texts in itertools.product(*group.values()):
        words = [f"--{name}={text}" for name, text in zip(group, texts, strict=True)]
        recipe = recipe_of(words)
        values = {name: _value(recipe, name) for name in group}
        choices.append(_Choice(values, {section: recipe.get(section)}))
    _check_distinct(", ".join(group), [choice.values for choice in choices])
    return choices


def _typed(recipe_of: _RecipeOf, name: str, text: str) -> Any:
    """Return the value of an axis of its text.

    Plain numbers are read here, since the parser of recipes takes milliseconds for each; their
    range is checked as each recipe is made.
    """
    kind = str(FIELDS[name].type) if name in FIELDS else ""
    if kind in _NUMBERS and _NUMBERS[kind][0].fullmatch(text):
        return _NUMBERS[kind][1](text)
    return _value(recipe_of([f"--{name}={text}"]), name)


def _value(recipe: Recipe, name: str) -> Any:
    """Return the value of a field or of a part's option."""
    section, _, inner = name.partition(".")
    return recipe.get(name) if name in FIELDS else recipe.get(section).options.get(inner)


def _check_distinct(name: str, values: Sequence[Any]) -> None:
    seen = set()
    for value in map(repr, values):
        if value in seen:
            raise RecipeError(f"the axis {name} has the value {value} twice; name each value once")
        seen.add(value)


def _excluded(
    recipe_of: _RecipeOf, combination: Mapping[str, Sequence[str]]
) -> dict[str, list[Any]]:
    """Return an excluded combination with typed values: axis → values."""
    found: dict[str, list[Any]] = {}
    for name, texts in combination.items():
        if name == "recipe" or name.endswith(".name"):
            found[name] = list(texts)
            continue
        found[name] = [_typed(recipe_of, name, text) for text in texts]
    return found


def _changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return a recipe with some fields, options of parts or whole sections changed."""
    sections: dict[str, Any] = {}
    for name, value in changes.items():
        section, _, inner = name.partition(".")
        if not inner:
            sections[name] = value
            continue
        held = sections.get(section, getattr(recipe, section))
        if name not in FIELDS:
            given = {**held.options, inner: value}
            options = {option: one for option, one in given.items() if one is not None}
            sections[section] = replace(held, options=options)
        else:
            sections[section] = replace(held, **{inner: value})
    return replace(recipe, **sections)


def _check_parts(recipe: Recipe, checked: set[Any]) -> None:
    """Check the fields that a recipe's parts take, unless the same parts were checked before."""
    sections = {recipe.get(section) for section in PARTS}
    if not sections <= checked:
        parts_of(recipe)
        checked |= sections
