"""Read run folders together with their recipes, which `conescope.runs` does not know."""

from __future__ import annotations

from pathlib import Path

from conescope.argument_types import checked
from conescope.runs import reader
from conescope.runs.reader import Run, Status
from conescope.training.recipe import Recipe
from conescope.training.recipe_reading import recipe_from_dict


@checked
def load_run(path: str | Path) -> Run:
    """Read a run folder, finished or not.

    Raises:
        StoreError: if the folder holds no run or no kernel yet, or a kernel is damaged.
    """
    return reader.read_run(path, recipe_from_dict)


def read_status(path: str | Path) -> Status:
    """Read how far a run is.

    Raises:
        StoreError: if the folder holds no run.
    """
    return reader.read_status(path, recipe_from_dict)


def read_recipe(path: str | Path) -> Recipe:
    """Read the recipe of a run.

    Raises:
        StoreError: if the folder holds no run, or one that conescope did not train.
    """
    return reader.read_recipe(path, recipe_from_dict)
