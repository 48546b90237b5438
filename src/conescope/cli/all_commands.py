"""The list of commands, and the exit status of each; `conescope.cli.main` loads it."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from conescope.cli import (
    audit,
    barrier,
    cone,
    export,
    lazy,
    measure,
    perturb,
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
    run, stored, cone, serve, plan, recipes, measure, audit, lazy, sweep, sweep_children,
    sweep_measure, sweep_results, switch, perturb, barrier, reproduce, verify, export,
)  # fmt: skip


def all_commands() -> Commands:
    """Return the commands, in the order of the overview."""
    commands = Commands()
    for module in _COMMANDS:
        module.add(commands)
    return commands


def carry_out(words: Sequence[str]) -> int:
    """Carry out one command; return the exit status, see `conescope.cli.main.main`."""
    try:
        arguments = all_commands().parse(words)
        with one_line_warnings():
            return arguments.command(arguments)
    except ConescopeError as error:
        say("error", str(error))
        return 2 if isinstance(error, RecipeError) else 1
    except KeyboardInterrupt:
        say("stopped", "what was stored is intact; the same command goes on from there")
        return 128 + signal.SIGINT
