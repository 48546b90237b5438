"""`conescope recipes` and `conescope show`: the packaged recipes, and the fields of one recipe."""

from __future__ import annotations

import argparse

from rich.table import Table

from conescope.cli.command_help import About, Group
from conescope.cli.commands import Commands, chosen_recipe
from conescope.cli.json_output import add_json, print_json
from conescope.cli.terminal import STDOUT, Terminal
from conescope.training.parts import REQUIRED
from conescope.training.recipe_reading import packaged_recipes, parts_of

_ABOUT_RECIPES = About(
    Group.MAIN,
    "list the recipes that come with the package",
    ("conescope recipes",),
)

_ABOUT_SHOW = About(
    Group.MAIN,
    "print all fields of a recipe as YAML, to save and edit",
    (
        "conescope show lenet-mnist > mine.yaml",
        "conescope show digits --optimizer.lr 0.03",
    ),
)


def add(commands: Commands) -> None:
    """Add the commands."""
    add_json(commands.add("recipes", _recipes, _ABOUT_RECIPES))
    add_json(commands.add_for_recipe("show", _show, _ABOUT_SHOW))


def _recipes(arguments: argparse.Namespace) -> int:
    if arguments.json:
        print_json({"recipes": packaged_recipes()})
        return 0
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for name, description in packaged_recipes().items():
        table.add_row(name, description)
    Terminal(highlight=False).print(table)
    return 0


def _show(arguments: argparse.Namespace) -> int:
    recipe = chosen_recipe(arguments)
    if arguments.json:
        print_json({"id": recipe.id, "recipe": recipe.to_dict()})
        return 0
    lines = [f"# run id: {recipe.id}"]
    for section, part in parts_of(recipe).items():
        defaults = [
            name if option.default is REQUIRED else f"{name} ({option.default})"
            for name, option in part.options.items()
        ]
        if defaults:
            lines.append(f"# {section} {part.name} also takes: {', '.join(defaults)}")
    STDOUT.out("\n".join([*lines, recipe.to_yaml()]), end="")
    return 0
