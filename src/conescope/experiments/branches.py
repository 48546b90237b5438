"""Branches: runs that start from a snapshot of another run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from conescope.errors import RecipeError
from conescope.experiments.stored import read_recipe
from conescope.training.recipe import Recipe
from conescope.training.recipe_reading import recipe_from_dict


def branch_recipe(parent: Path, at: int, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a branch: its parent's, from iteration `at` on.

    Args:
        parent: the parent's folder.
        at: the iteration of the parent's snapshot to start from.
        overrides: fields to change, as on the command line; without them a branch is standard
            training whatever its parent is.

    Raises:
        StoreError: if the folder holds no run.
        RecipeError: if a field is unknown or has a wrong value, nothing is left to train, or the
            parent's momentum is another optimiser's.
    """
    recipe = read_recipe(parent)
    values = recipe.to_dict() | {"dynamics": {}}
    values["branch"] = {"run": str(parent), "parent": recipe.id, "at": at}
    branch = recipe_from_dict(values, str(parent), overrides)
    before, now = recipe.optimizer.name, branch.optimizer.name
    if branch.branch.optimizer == "restored" and now != before:
        raise RecipeError(
            f"branch.optimizer: {now} cannot go on with the momentum of {before}; keep "
            f"optimizer.name at {before}, or branch.optimizer at fresh"
        )
    return branch
