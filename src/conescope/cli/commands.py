"""Parse commands: arguments by argparse, and the fields of a recipe beside them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from conescope.cli.terminal import STDERR, STDOUT
from conescope.errors import RecipeError
from conescope.experiments.branches import branch_recipe
from conescope.training.recipe import FIELDS, PARTS, Recipe
from conescope.training.recipe_reading import (
    field_parser,
    load_recipe,
    parts_of,
    recipe_from_dict,
    unknown_field,
)

Command = Callable[[argparse.Namespace], int]
"""From parsed arguments to the exit status."""


class _Parser(argparse.ArgumentParser):
    """A parser whose messages show control characters of the command line as escapes.

    A stream that it cannot write to is an error, and so is a wrong word: one line, as all errors.
    """

    def error(self, message: str) -> NoReturn:
        """Raise `RecipeError` in place of printing the usage."""
        raise RecipeError(f"{message}; see {self.prog} --help")

    def _print_message(self, message: str, file: Any = None) -> None:
        (STDOUT if file is sys.stdout else STDERR).out(message, end="")


class Commands:
    """The commands of the program; each file of this package adds its own."""

    def __init__(self) -> None:
        self._parser = _Parser(
            prog="conescope",
            description="Follow a network's empirical neural tangent kernel through training.",
        )
        self._subparsers = self._parser.add_subparsers(metavar="COMMAND", required=True)
        self._commands: dict[str, argparse.ArgumentParser] = {}

    def add(self, name: str, command: Command, summary: str) -> argparse.ArgumentParser:
        """Add a command.

        Args:
            name: the word after `conescope`.
            command: what it does.
            summary: one line of help.

        Returns:
            Its parser, to add arguments to.
        """
        self._commands[name] = self._subparsers.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._commands[name].set_defaults(command=command, takes_fields=False)
        return self._commands[name]

    @property
    def names(self) -> list[str]:
        """The words after `conescope` that stand for a command."""
        return [*self._commands]

    def parser(self, name: str) -> argparse.ArgumentParser:
        """Return the parser of a command that was added."""
        return self._commands[name]

    def add_with_fields(
        self, name: str, command: Command, summary: str, takes: str
    ) -> argparse.ArgumentParser:
        """Add a command that takes values for a recipe's fields.

        The command finds them as `overrides`, and all its words as `words`.

        Args:
            name: the word after `conescope`.
            command: what it does.
            summary: one line of help.
            takes: its other arguments, as the line of usage shows them.
        """
        parser = self.add(name, command, summary)
        parser.usage = f"conescope {name} [options] {takes} [--FIELD VALUE …]"
        parser.set_defaults(takes_fields=True)
        return parser

    def add_for_recipe(self, name: str, command: Command, summary: str) -> argparse.ArgumentParser:
        """Add a command that takes a recipe or a branch's start; `chosen_recipe` gives it.

        Args:
            name: the word after `conescope`.
            command: what it does.
            summary: one line of help.
        """
        parser = self.add_with_fields(name, command, summary, "RECIPE | --from RUN --at STEP")
        parser.add_argument(
            "recipe", metavar="RECIPE", nargs="?", help="a packaged recipe's name, or a YAML file"
        )
        parser.add_argument(
            "--from",
            metavar="RUN",
            type=Path,
            dest="parent",
            help="instead: branch from a snapshot of this run, with its recipe",
        )
        parser.add_argument("--at", metavar="STEP", type=int, help="the snapshot's iteration")
        parser.set_defaults(takes_recipe=True)
        return parser

    def add_for_run(self, name: str, command: Command, summary: str) -> argparse.ArgumentParser:
        """Add a command that takes a run's folder, which it finds as `run`."""
        parser = self.add(name, command, summary)
        parser.add_argument("run", metavar="RUN", type=Path, help="a run's folder")
        return parser

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse the words after `conescope`; exits, as argparse does, after help.

        Raises:
            RecipeError: if a word is wrong, or names no recipe field.
        """
        words = _joined(words, self._commands)
        parser = self._commands.get(words[0]) if words else None
        if parser is None or not parser.get_default("takes_fields"):
            return self._parser.parse_args(words, argparse.Namespace(words=words))
        own_words, overrides = _split(words[1:], set(parser._option_string_actions))
        if not {"-h", "--help"}.isdisjoint(own_words):
            asked = [word for word in own_words if word not in ("-h", "--help")]
            parser.epilog = _fields_help(parser, asked, overrides)
        arguments = parser.parse_args(own_words)
        arguments.overrides, arguments.words = overrides, words
        return arguments


def chosen_recipe(arguments: argparse.Namespace) -> Recipe:
    """The recipe, or the branch, that a command was given, with its fields' values.

    Raises:
        RecipeError: if there is none, or a field is unknown or has a wrong value.
        StoreError: if the branch's parent is no run.
    """
    recipe, parent, at = arguments.recipe, arguments.parent, arguments.at
    if recipe is not None and parent is None and at is None:
        return load_recipe(recipe, arguments.overrides)
    if recipe is None and parent is not None and at is not None:
        return branch_recipe(parent, at, arguments.overrides)
    raise RecipeError(
        "say what to carry out: either a RECIPE, or a branch of another run by --from RUN --at STEP"
    )


def _joined(words: Sequence[str], commands: Collection[str]) -> list[str]:
    """Return words with those of a command of two words, such as `sweep status`, in one."""
    both = " ".join(words[:2])
    return [both, *words[2:]] if both in commands else list(words)


def _split(words: Sequence[str], own: set[str]) -> tuple[list[str], list[str]]:
    """Separate a command's own words from recipe fields, each with its value."""
    known = list(FIELDS)
    own_words, overrides = [], []
    remaining = iter(words)
    for word in remaining:
        name, equals, _ = word.partition("=")
        if not word.startswith("--") or name in own:
            own_words.append(word)
            continue
        if name[2:] not in known and name[2:].partition(".")[0] not in PARTS:
            candidates = [*known, *(option[2:] for option in own if option.startswith("--"))]
            raise unknown_field(name[2:], candidates, "command line")
        overrides.append(word)
        if not equals:
            value = next(remaining, None)
            if value is None:
                raise RecipeError(f"command line: {name} needs a value; write {name} VALUE")
            overrides.append(value)
    return own_words, overrides


def _fields_help(
    parser: argparse.ArgumentParser, own_words: Sequence[str], overrides: Sequence[str]
) -> str:
    """List a recipe's fields, with the options of the network and so on that it names."""
    if own_words and parser.get_default("takes_recipe"):
        arguments = parser.parse_args(own_words)
        arguments.overrides = overrides
        recipe = chosen_recipe(arguments)
    else:
        recipe = recipe_from_dict({}, "command line", list(_part_names(overrides)))
    options = {section: part.options for section, part in parts_of(recipe).items()}
    lines = field_parser(options).format_help().splitlines()
    fields = [line for line in lines if line.startswith("  ") and " CONFIG " not in line]
    return "recipe fields:\n" + "\n".join(fields)


def _part_names(overrides: Sequence[str]) -> Iterator[str]:
    """Yield the fields that name a part, of which a sweep may be given several."""
    words = iter(overrides)
    for word in words:
        name, equals, text = word.partition("=")
        text = text if equals else next(words, "")
        if name in {f"--{section}.name" for section in PARTS} and "," not in text:
            yield f"{name}={text}"
