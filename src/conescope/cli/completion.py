"""Shell completion: the commands, options and recipe fields, as shtab writes them for a shell."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import shtab

from conescope.cli.terminal import STDOUT
from conescope.training.recipe_reading import field_parser, packaged_recipes

SHELLS = ("bash", "zsh")

_FILES = ("FILE", "SERIES", "AXES.yaml")


class PrintCompletion(argparse.Action):
    """Print the script for a shell, and exit; `const` has the commands."""

    def __call__(self, parser: argparse.ArgumentParser, _: Any, values: Any, *__: Any) -> None:
        """Do it; `values` is the shell."""
        STDOUT.out(completion(self.const, values), end="")
        parser.exit()


def completion(commands: Mapping[str, argparse.ArgumentParser], shell: str) -> str:
    """Return the script that completes the words of these commands.

    Args:
        commands: name of a command, of one word or two, → its parser.
        shell: one of `SHELLS`.
    """
    root = argparse.ArgumentParser(prog="conescope")
    places: dict[str, Any] = {"": root.add_subparsers()}
    for name, parser in commands.items():
        first, _, last = name.rpartition(" ")
        target = places[first].add_parser(last, help=parser.description, add_help=False)
        has_more = any(other.startswith(f"{name} ") for other in commands)
        if has_more:
            places[name] = target.add_subparsers()
        for action in parser._actions:
            if action.option_strings or not has_more:
                target._add_action(_completed(action))
        if parser.get_default("takes_fields"):
            _add_fields(target)
    return shtab.complete(root, shell)


def _completed(action: argparse.Action) -> argparse.Action:
    """Return an argument that is completed by what it stands for."""
    action = copy.copy(action)
    if action.metavar == "RECIPE":
        action.choices = list(packaged_recipes())
    elif action.choices:
        action.choices = list(action.choices)
    elif action.type is Path or action.metavar in _FILES:
        action.complete = shtab.FILE  # pyright: ignore[reportAttributeAccessIssue]
    return action


def _add_fields(target: argparse.ArgumentParser) -> None:
    """Add the fields of a recipe for which there is no option, with the values that have names."""
    own = set(target._option_string_actions)
    for field in field_parser({})._actions:
        if field.metavar == "CONFIG" or own.intersection(field.option_strings):
            continue
        named = str(field.metavar or "")
        values = named.strip("{}").split(",") if named.startswith("{") else []
        choices = [value for value in values if value != "…"] or None
        target.add_argument(*field.option_strings, help=field.help, choices=choices)
