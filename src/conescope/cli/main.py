"""The entry point of the command line: the list of commands, and the exit status of each."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from conescope.cli import (
    audit,
    cone,
    export,
    lazy,
    measure,
    plan,
    recipes,
    reproduce,
    run,
    serve,
    stored,
    sweep,
    sweep_children,
    sweep_measure,
    sweep_results,
    switch,
    verify,
)
from conescope.cli.commands import Commands
from conescope.cli.terminal import one_line_warnings, say
from conescope.errors import ConescopeError, RecipeError

_COMMANDS = (
    run, measure, audit, lazy, plan, recipes, stored, serve, switch, sweep, sweep_children,
    sweep_measure, sweep_results, reproduce, cone, verify, export,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `conescope`; by default those that the process was called with.

    Returns:
        The exit status: 0 for success, 1 for an error, 2 for wrong arguments or a wrong recipe,
        128 + n when stopped by signal n.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    commands = Commands()
    for module in _COMMANDS:
        module.add(commands)
    try:
        arguments = commands.parse(words)
        with one_line_warnings():
            return arguments.command(arguments)
    except ConescopeError as error:
        say("error", str(error))
        return 2 if isinstance(error, RecipeError) else 1
    except KeyboardInterrupt:
        say("stopped", "what was stored is intact; the same command goes on from there")
        return 128 + signal.SIGINT
