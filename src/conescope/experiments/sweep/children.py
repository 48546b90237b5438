"""Make the table of a sweep of branches: runs that start from snapshots of other runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from conescope.errors import RecipeError
from conescope.experiments.branches import branch_recipe
from conescope.experiments.stored import read_recipe
from conescope.experiments.sweep.axes import Axes, read_axes
from conescope.experiments.sweep.grid import GridPoint, make_grid
from conescope.experiments.switch import CHILD_FIELDS, DYNAMICS, child_path, scalars_at
from conescope.runs.snapshots import find_snapshot
from conescope.runs.store import Folder
from conescope.training.recipe import FIELDS, Recipe
from conescope.training.recipe_fields import PLACE

_AT = "branch.at"


def branch_axes(parents: Sequence[Path], at: str, overrides: Sequence[str] = ()) -> Axes:
    """Read what a sweep of branches consists of.

    Args:
        parents: the folders of the runs to branch from.
        at: the iterations of their snapshots to start from, such as "500,1000".
        overrides: fields as on the command line; those with several values are axes.

    Raises:
        RecipeError: if a run is named twice, a field is unknown or says what RUN and `at` say, or
            an axis has no values.
    """
    _check_free(
        overrides,
        ("--branch.at", "--branch.run", "--branch.parent"),
        "is what RUN and --at say",
    )
    if len({parent.resolve() for parent in parents}) < len(parents):
        raise RecipeError("a run is named twice; name each run once")
    return read_axes([str(parent) for parent in parents], [f"--{_AT}={at}", *overrides])


def switch_axes(parents: Sequence[Path], at: str, overrides: Sequence[str] = ()) -> Axes:
    """Read what a sweep of switch points consists of: branches, linearised and not.

    Args:
        parents: the folders of the runs to branch from.
        at: the switch points, such as "0,500,2000".
        overrides: as for `branch_axes`.

    Raises:
        RecipeError: as `branch_axes`, and if a field is one that the experiment itself sets.
    """
    kinds = f"--dynamics.kind={','.join(DYNAMICS)}"
    set_here = [word.partition("=")[0] for word in (kinds, *CHILD_FIELDS)]
    _check_free(
        overrides, set_here, "is given by the switch experiment itself, and free in "
        "'conescope sweep branch'",
    )  # fmt: skip
    return branch_axes(parents, at, [kinds, *overrides, *CHILD_FIELDS])


def branch_grid(axes: Axes) -> list[GridPoint]:
    """Return the branches of a sweep, which `branch_axes` has read.

    Raises:
        StoreError: if a parent is no run, or has no snapshot at one of the iterations.
        RecipeError: as `make_grid`, and if nothing is left to train.
    """
    points = make_grid(axes, _branch, _named(axes))
    for parent, at in dict.fromkeys((p.source, p.recipe.branch.at) for p in points):
        find_snapshot(Folder(Path(parent)), at)
    return points


def switch_grid(axes: Axes) -> list[GridPoint]:
    """Return the children of a switch experiment, in the folders that `plan_switch` gives them.

    Raises:
        StoreError: as `branch_grid`, and if a parent was not evaluated where its children end.
        RecipeError: as `branch_grid`.
    """
    points = branch_grid(axes)
    for parent, end in dict.fromkeys((p.source, p.recipe.training.steps) for p in points):
        scalars_at(Path(parent), end)
    return [replace(p, path=child_path(Path(p.source), p.recipe)) for p in points]


def _check_free(overrides: Sequence[str], names: Sequence[str], why: str) -> None:
    """Raise `RecipeError` if one of these fields is given."""
    for word in overrides:
        name = word.partition("=")[0]
        if name in names:
            raise RecipeError(f"{name} {why}; leave it out")


def _branch(parent: str, words: Sequence[str]) -> Recipe:
    return branch_recipe(Path(parent), 0, words)


def _named(axes: Axes) -> Mapping[str, Mapping[str, Any]]:
    """Return the values that tell the parents apart: of the fields in which they differ.

    Where these do not tell them apart, the axis is `run`, their folders.
    """
    recipes = {parent: read_recipe(Path(parent)) for parent in axes.recipes}
    names = [
        name
        for name, field in FIELDS.items()
        if field.metadata != PLACE
        and name.partition(".")[0] not in ("branch", "dynamics")
        and name not in axes.axes
        and name not in axes.fixed
        and len({repr(recipe.get(name)) for recipe in recipes.values()}) > 1
    ]
    named = {parent: {n: recipe.get(n) for n in names} for parent, recipe in recipes.items()}
    if len({repr(values) for values in named.values()}) == len(named):
        return named
    return {parent: {"run": parent} for parent in axes.recipes}
