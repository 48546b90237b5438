"""Read run folders together with their recipes, which `conescope.runs` does not know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from conescope.argument_types import checked
from conescope.runs import reader
from conescope.runs.reader import Run, Status
from conescope.runs.store import Folder
from conescope.training.recipe import Recipe
from conescope.training.recipe_reading import recipe_from_dict


@checked
def load_run(path: str | Path) -> Run:
    """Read a run folder, finished or not.

    Raises:
        StoreError: if the folder holds no run or no kernel yet, or a kernel is damaged.
    """
    return read_run(path)


def read_run(path: str | Path | Folder) -> Run:
    """Read a run as `load_run` does; given a `Folder`, its journal is not read again."""
    return reader.read_run(path, _recipe_of)


def read_status(path: str | Path | Folder) -> Status:
    """Read how far a run is.

    Raises:
        StoreError: if the folder holds no run.
    """
    return reader.read_status(path, _recipe_of)


def read_recipe(path: str | Path | Folder) -> Recipe:
    """Read the recipe of a run.

    Raises:
        StoreError: if the folder holds no run, or one that conescope did not train.
    """
    return reader.read_recipe(path, _recipe_of)


def _recipe_of(fields: Mapping[str, Any], source: str) -> Recipe:
    return _recipe_of_text(json.dumps(fields), source)


@lru_cache(64)
def _recipe_of_text(text: str, source: str) -> Recipe:
    """Parse a recipe that a journal holds, which takes longer than all else of a run's state."""
    return recipe_from_dict(json.loads(text), source)
