"""The help of the commands: their groups, examples and exit statuses, on any width of terminal."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NoReturn, cast

from jsonargparse import DefaultHelpFormatter

from conescope.cli.terminal import STDERR, STDOUT
from conescope.errors import RecipeError

EXIT_STATUSES: Mapping[int, str] = MappingProxyType(
    {
        0: "done",
        1: "failed; one line on standard error says why, and what to do",
        2: "the command line or the recipe is wrong",
        130: "stopped by Ctrl-C; what was stored is intact",
        143: "stopped by SIGTERM; what was stored is intact",
    }
)
"""Exit status → what it says of any command."""


SNAPSHOTS = (
    "It works on snapshots, which a run keeps as it trains: "
    "conescope run RECIPE --snapshots.keep '0, 500, 2000, end'."
)
"""Says, in the help of commands that start from stored weights, how a run keeps these."""


class Group(StrEnum):
    """What commands are for; the overview lists them by group, in this order."""

    MAIN = "the main job"
    OWN = "your own models"
    MANY = "many runs"
    PAPER = "the paper"
    CARE = "results to check and to share"


@dataclass(frozen=True)
class About:
    """What the help of a command says beside its arguments.

    Attributes:
        group: what the command is for.
        summary: one line, without a capital and a full stop.
        examples: whole command lines.
        ends: exit statuses that say something else than in `EXIT_STATUSES`.
        needs: what must have been done before, as a sentence.
    """

    group: Group
    summary: str
    examples: Sequence[str]
    ends: Mapping[int, str] = field(default_factory=dict)
    needs: str = ""

    @property
    def epilog(self) -> str:
        """The text below the arguments."""
        ends = {**EXIT_STATUSES, **self.ends}
        lines = [self.needs, ""] if self.needs else []
        lines += ["examples:", *(f"  {example}" for example in self.examples)]
        lines += [
            "",
            "exit status:",
            *(f"  {code:<4} {text}" for code, text in sorted(ends.items())),
        ]
        return "\n".join(lines)


class Parser(argparse.ArgumentParser):
    """A parser whose messages show control characters of the command line as escapes.

    A stream that it cannot write to is an error, and so is a wrong word: one line, as all errors.
    """

    def error(self, message: str) -> NoReturn:
        """Raise `RecipeError` in place of printing the usage."""
        raise RecipeError(f"{message}; see {self.prog} --help")

    def _print_message(self, message: str, file: Any = None) -> None:
        (STDOUT if file is sys.stdout else STDERR).out(message, end="")


class OverviewParser(Parser):
    """The parser of the whole command line, whose help lists the commands by group."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.groups: dict[str, Group] = {}

    def format_help(self) -> str:
        """Return the help."""
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, [])
        formatter.add_text(self.description)
        options = [action for action in self._actions if action.option_strings]
        (commands,) = [action for action in self._actions if not action.option_strings]
        listed: Sequence[argparse.Action] = cast(Any, commands)._get_subactions()
        for group in Group:
            own = [line for line in listed if self.groups[line.dest] == group]
            _add_section(formatter, group, own)
        _add_section(formatter, "options", options)
        formatter.add_text(self.epilog)
        return formatter.format_help()


class _WholeWords(argparse.HelpFormatter):
    """A formatter that breaks no word, such as an address, between two lines."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(
            " ".join(text.split()), width, break_long_words=False, break_on_hyphens=False
        )


class Formatter(_WholeWords):
    """A formatter that wraps each line of a text by itself, and leaves examples whole."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(
            line if line.startswith("  conescope ") else _wrapped(indent + line, width)
            for line in text.splitlines()
        )


class FieldFormatter(_WholeWords, DefaultHelpFormatter):
    """A formatter of a recipe's fields, which says their types."""


def _add_section(
    formatter: argparse.HelpFormatter, title: str, actions: Sequence[argparse.Action]
) -> None:
    if actions:
        formatter.start_section(title)
        formatter.add_arguments(actions)
        formatter.end_section()


def _wrapped(line: str, width: int) -> str:
    """Return a line in lines of `width` letters; those below begin where its text begins."""
    begin = re.match(r"\s*(\d+\s+)?", line)
    assert begin is not None
    below = " " * len(begin[0])
    return textwrap.fill(
        line, width, subsequent_indent=below, break_long_words=False, break_on_hyphens=False
    )
