"""Parse commands: arguments by argparse, and the fields of a recipe beside them."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Collection, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from conescope.cli.command_help import (
    About,
    FieldFormatter,
    Formatter,
    OverviewParser,
    Parser,
)
from conescope.cli.completion import SHELLS, PrintCompletion
from conescope.errors import RecipeError
from conescope.experiments.branches import branch_recipe
from conescope.training.recipe import FIELDS, PARTS, Recipe
from conescope.training.recipe_reading import (
    field_parser,
    load_recipe,
    packaged_recipes,
    parts_of,
    recipe_from_dict,
    unknown_field,
)

Command = Callable[[argparse.Namespace], int]
"""From parsed arguments to the exit status."""


class Commands:
    """The commands of the program; each file of this package adds its own."""

    def __init__(self) -> None:
        self._parser = OverviewParser(
            prog="conescope",
            description="Follow a network's empirical neural tangent kernel through training.",
            epilog="'conescope COMMAND --help' shows the options of one, with examples.",
            formatter_class=Formatter,
        )
        self._parser.add_argument(
            "--version", action="version", version=f"conescope {version('conescope')}"
        )
        self._commands: dict[str, argparse.ArgumentParser] = {}
        self._parser.add_argument(
            "--print-completion",
            metavar="SHELL",
            choices=SHELLS,
            action=PrintCompletion,
            const=self._commands,
            help="print the script by which bash or zsh completes commands, and exit",
        )
        self._subparsers = self._parser.add_subparsers(
            metavar="COMMAND", required=True, parser_class=Parser
        )
        self.about: dict[str, About] = {}
        """Name of a command → what its help says."""

    def add(self, name: str, command: Command, about: About) -> argparse.ArgumentParser:
        """Add a command.

        Args:
            name: the word after `conescope`, or two words.
            command: what it does.
            about: what its help says.

        Returns:
            Its parser, to add arguments to.
        """
        parser = self._commands[name] = self._subparsers.add_parser(
            name,
            help=about.summary,
            description=about.summary[0].upper() + about.summary[1:] + ".",
            epilog=about.epilog,
            formatter_class=Formatter,
            allow_abbrev=False,
        )
        parser.set_defaults(command=command, takes_fields=False)
        self.about[name] = about
        self._parser.groups[name] = about.group
        return parser

    def parser(self, name: str) -> argparse.ArgumentParser:
        """Return the parser of a command that was added."""
        return self._commands[name]

    def add_with_fields(
        self, name: str, command: Command, about: About, takes: str
    ) -> argparse.ArgumentParser:
        """Add a command that takes values for a recipe's fields.

        The command finds them as `overrides`, and all its words as `words`.

        Args:
            name: the word after `conescope`.
            command: what it does.
            about: what its help says.
            takes: its other arguments, as the line of usage shows them.
        """
        parser = self.add(name, command, about)
        parser.usage = f"conescope {name} [options] {takes} [--FIELD VALUE …]"
        parser.set_defaults(takes_fields=True)
        return parser

    def add_for_recipe(self, name: str, command: Command, about: About) -> argparse.ArgumentParser:
        """Add a command that takes a recipe or a branch's start; `chosen_recipe` gives it.

        Args:
            name: the word after `conescope`.
            command: what it does.
            about: what its help says.
        """
        parser = self.add_with_fields(name, command, about, "RECIPE | --from RUN --at STEP")
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

    def add_for_run(self, name: str, command: Command, about: About) -> argparse.ArgumentParser:
        """Add a command that takes a run's folder, which it finds as `run`."""
        parser = self.add(name, command, about)
        parser.add_argument("run", metavar="RUN", type=Path, help="a run's folder")
        return parser

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse the words after `conescope`; exits, as argparse does, after help.

        Raises:
            RecipeError: if there is no such command, a word is wrong, or names no recipe field.
        """
        words = _joined(words, self._commands)
        if not words or words[0].startswith("-"):
            return self._parser.parse_args(words)
        parser = self._commands.get(words[0])
        if parser is None:
            raise self._unknown(words[0])
        self._check_second(words)
        if not parser.get_default("takes_fields"):
            return parser.parse_args(words[1:], argparse.Namespace(words=words))
        own_words, overrides = _split(words[1:], set(parser._option_string_actions))
        if not {"-h", "--help"}.isdisjoint(own_words):
            asked = [word for word in own_words if word not in ("-h", "--help")]
            parser.epilog = f"{_fields_help(parser, asked, overrides)}\n{parser.epilog}"
        arguments = parser.parse_args(own_words)
        arguments.overrides, arguments.words = overrides, words
        return arguments

    def _unknown(self, word: str) -> RecipeError:
        near = difflib.get_close_matches(word, self._commands, n=1)
        meant = f"did you mean {near[0]}?" if near else "'conescope --help' lists them"
        return RecipeError(f"there is no command {word}; {meant}")

    def _check_second(self, words: Sequence[str]) -> None:
        """Raise `RecipeError` if a word such as `stauts` in `sweep stauts` is meant as a command's.

        A packaged recipe's name, or a file's, is not.
        """
        first, second = [*words, ""][:2]
        known = {
            name.removeprefix(f"{first} "): name
            for name in self._commands
            if name.startswith(f"{first} ")
        }
        near = difflib.get_close_matches(second, known, n=1, cutoff=0.7)
        if near and second not in packaged_recipes() and not Path(second).exists():
            raise RecipeError(
                f"there is no command {first} {second}; did you mean {known[near[0]]}?"
            )


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
            if value is None or value.startswith("--"):
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
    fields = field_parser(options)
    fields.formatter_class = FieldFormatter
    for action in fields._actions:
        if action.metavar == "CONFIG":
            action.help = argparse.SUPPRESS
    lines = [line for line in fields.format_help().splitlines() if line.startswith("  ")]
    return "\n".join(["recipe fields:", *lines, ""])


def _part_names(overrides: Sequence[str]) -> Iterator[str]:
    """Yield the fields that name a part, of which a sweep may be given several."""
    words = iter(overrides)
    for word in words:
        name, equals, text = word.partition("=")
        text = text if equals else next(words, "")
        if name in {f"--{section}.name" for section in PARTS} and "," not in text:
            yield f"{name}={text}"
