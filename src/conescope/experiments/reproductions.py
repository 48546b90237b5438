"""Reproductions: the recipes that make the paper's figures at each scale, read from YAML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from conescope.errors import RecipeError
from conescope.runs.plain_yaml import read_yaml
from conescope.training.recipe import Recipe
from conescope.training.recipe_reading import load_recipe


@dataclass(frozen=True)
class Reproduction:
    """The recipe and the settings that make one network's figures at one scale.

    Attributes:
        recipe_name: the packaged recipe.
        overrides: fields of it that this scale changes, as on the command line.
        points: the switch points of figure 2.
        caption: what was trained, and how it differs from the paper's size.
    """

    recipe_name: str
    overrides: tuple[str, ...]
    points: tuple[int, ...]
    caption: str

    def recipe(self, seed: int, overrides: Sequence[str] = ()) -> Recipe:
        """Return the recipe of one seed.

        Args:
            seed: its seed.
            overrides: further fields to change, as on the command line.

        Raises:
            RecipeError: if a field is unknown or has a wrong value.
        """
        return load_recipe(self.recipe_name, [*self.overrides, f"--seed={seed}", *overrides])


def networks() -> list[str]:
    """Return the names of the paper's networks."""
    return list(_table())


def scales() -> list[str]:
    """Return the names of the scales at which each network can be reproduced."""
    return list(next(iter(_table().values()))["scales"])


def find_reproduction(network: str, scale: str) -> Reproduction:
    """Find the recipe and the settings that make a network's figures.

    Args:
        network: one of `networks()`.
        scale: one of `scales()`.
    """
    entry = _table()[network]
    chosen = entry["scales"][scale]
    return Reproduction(
        recipe_name=entry["recipe"],
        overrides=tuple(f"--{name}={value}" for name, value in chosen["fields"].items()),
        points=tuple(chosen.get("points", entry["points"])),
        caption=chosen["caption"],
    )


@cache
def _table() -> dict[str, Any]:
    file = resources.files("conescope.experiments") / "reproductions.yaml"
    return read_yaml(file.read_bytes(), file.name, RecipeError)
