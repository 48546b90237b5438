"""`conescope recipes` and `conescope show`: the packaged recipes, and the fields of one recipe."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from conescope.cli.commands import Commands, chosen_recipe
from conescope.cli.terminal import STDOUT
from conescope.training.recipe_reading import packaged_recipes


def add(commands: Commands) -> None:
    """Add the commands."""
    commands.add("recipes", _recipes, "list the recipes that come with the package")
    commands.add_for_recipe("show", _show, "print all fields of a recipe as YAML, to save and edit")


def _recipes(_: argparse.Namespace) -> int:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for name, description in packaged_recipes().items():
        table.add_row(name, description)
    Console(highlight=False).print(table)
    return 0


def _show(arguments: argparse.Namespace) -> int:
    recipe = chosen_recipe(arguments)
    STDOUT.out(f"# run id: {recipe.id}\n{recipe.to_yaml()}", end="")
    return 0
