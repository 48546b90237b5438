"""The command line: parse, call, print."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from conescope.errors import ConescopeError, RecipeError
from conescope.progress import ProgressBar
from conescope.recipes import (
    field_names,
    field_parser,
    load_recipe,
    packaged_recipes,
    unknown_field,
)
from conescope.run import Run, load_run, read_status

_STDOUT = Console(highlight=False, soft_wrap=True)
_STDERR = Console(stderr=True, highlight=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `conescope`; those of the process by default.

    Returns:
        The exit status: 0 for success, 1 for an error, 2 for unusable arguments, 128 + n when
        stopped by signal n.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = _parse(words)
        with _one_line_warnings():
            return arguments.command(arguments)
    except ConescopeError as error:
        _say("error", str(error))
        return 2 if isinstance(error, RecipeError) else 1
    except KeyboardInterrupt:
        _say("stopped", "what was stored is intact; the same command goes on from there")
        return 128 + signal.SIGINT


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser, commands = _parsers(explain_fields=not {"-h", "--help"}.isdisjoint(words))
    command = words[0] if words else ""
    if command not in commands or not commands[command].get_default("takes_fields"):
        return parser.parse_args(words)
    own = set(commands[command]._option_string_actions)
    own_words, overrides = _split(words[1:], own)
    arguments = commands[command].parse_args(own_words)
    arguments.overrides = overrides
    arguments.words = words
    return arguments


def _split(words: Sequence[str], own: set[str]) -> tuple[list[str], list[str]]:
    """Part a command's own words from recipe fields, each with its value."""
    known = field_names()
    own_words, overrides = [], []
    remaining = iter(words)
    for word in remaining:
        name, equals, _ = word.partition("=")
        if not word.startswith("--") or name in own:
            own_words.append(word)
            continue
        if name[2:] not in known:
            candidates = [*known, *(option[2:] for option in own if option.startswith("--"))]
            raise unknown_field(name[2:], candidates, "command line")
        overrides.append(word)
        if not equals:
            value = next(remaining, None)
            if value is None:
                raise RecipeError(f"command line: {name} needs a value; write {name} VALUE")
            overrides.append(value)
    return own_words, overrides


def _parsers(
    explain_fields: bool,
) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        prog="conescope",
        description="Follow a network's empirical neural tangent kernel through training.",
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    commands: dict[str, argparse.ArgumentParser] = {}

    def add(
        name: str, command: Callable[[argparse.Namespace], int], summary: str, takes: str = ""
    ) -> argparse.ArgumentParser:
        is_recipe = takes == "RECIPE"
        commands[name] = subparsers.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=_fields_help() if is_recipe and explain_fields else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            usage=f"conescope {name} [options] RECIPE [--FIELD VALUE …]" if is_recipe else None,
            allow_abbrev=False,
        )
        commands[name].set_defaults(command=command, takes_fields=is_recipe)
        if is_recipe:
            commands[name].add_argument(
                "recipe", metavar="RECIPE", help="a packaged recipe's name, or a YAML file"
            )
        elif takes:
            commands[name].add_argument("run", metavar="RUN", type=Path, help="a run's folder")
        return commands[name]

    run = add("run", _run, "train a recipe, follow its kernel, make figures and report", "RECIPE")
    run.add_argument("--out", metavar="DIR", type=Path, help="the run's folder (default runs/ID)")
    add("plan", _plan, "say what a recipe will cost, before it is carried out", "RECIPE")
    add("recipes", _recipes, "list the packaged recipes")
    add("show", _show, "print a whole recipe as YAML", "RECIPE")
    add("status", _status, "say how far a run is", "RUN")
    add("figures", _figures, "draw a run's figures again from what is stored", "RUN")
    add("report", _report, "write a run's report again from what is stored", "RUN")
    return parser, commands


def _fields_help() -> str:
    lines = field_parser().format_help().splitlines()
    fields = [line for line in lines if line.startswith("  ") and " CONFIG " not in line]
    return "recipe fields:\n" + "\n".join(fields)


def _run(arguments: argparse.Namespace) -> int:
    from conescope.session import run_experiment

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    path = arguments.out or Path("runs") / recipe.id
    with _stopping() as received, ProgressBar(_STDERR) as bar:
        is_complete = run_experiment(
            recipe,
            path,
            command=shlex.join(["conescope", *arguments.words]),
            progress=bar,
            should_stop=lambda: bool(received),
        )
    if not is_complete:
        status = f"{bar.step:,} of {recipe.training.steps:,} iterations are in {path}"
        _say("stopped", f"{status}; the same command goes on from there")
        return 128 + received[0]
    if not recipe.schedule("kernel.when", 1):
        _STDOUT.print(f"run: {path} (no kernels, so no figures and no report)")
        return 0
    run = load_run(path)
    _draw_figures(run, path)
    report = _write_report(run, path)
    _print_numbers(run)
    _STDOUT.print(f"figures: {path / 'figures'}\nreport:  {report}")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from conescope.forecast import forecast

    cost = forecast(load_recipe(arguments.recipe, arguments.overrides))
    _STDOUT.print(f"one kernel:\n{cost.kernel}\n")
    _print_table(
        {
            "training": f"{cost.iterations:,} × {cost.iteration_seconds * 1e3:.3g} ms",
            "evaluations": f"{cost.evaluations:,} × {cost.evaluation_seconds:.3g} s",
            "kernels": f"{cost.kernels:,} × {cost.kernel.seconds:.3g} s",
            "in all": f"{cost.seconds:,.0f} s, {cost.stored_bytes / 1e6:,.0f} MB on disk",
        }
    )
    return 0


def _recipes(_: argparse.Namespace) -> int:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for name, description in packaged_recipes().items():
        table.add_row(name, description)
    Console(highlight=False).print(table)
    return 0


def _show(arguments: argparse.Namespace) -> int:
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    _STDOUT.out(f"# run id: {recipe.id}\n{recipe.to_yaml()}", end="")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    status = read_status(arguments.run)
    state = "finished" if status.finished else "running" if status.running else "stopped"
    rows = {
        "run": status.name,
        "state": state,
        "iterations": status.extent,
        "kernels": f"{status.kernels:,}",
        "snapshots": ", ".join(f"{step:,}" for step in status.snapshots) or "none",
        "time": f"{status.seconds:,.0f} s",
    }
    _print_table(rows)
    return 0


def _figures(arguments: argparse.Namespace) -> int:
    for file in _draw_figures(load_run(arguments.run), arguments.run):
        _STDOUT.print(str(file))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    _STDOUT.print(str(_write_report(load_run(arguments.run), arguments.run)))
    return 0


def _draw_figures(run: Run, path: Path) -> list[Path]:
    from conescope.figures import save_figures

    return save_figures(run, path / "figures")


def _write_report(run: Run, path: Path) -> Path:
    from conescope.report import write_report

    return write_report(run, path / "report.html")


def _print_numbers(run: Run) -> None:
    from conescope.summary import main_numbers

    _print_table({"run": run.name, **main_numbers(run)})


def _print_table(rows: dict[str, str]) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))
    _STDOUT.print(table)


@contextmanager
def _stopping() -> Iterator[list[int]]:
    """Note the first Ctrl-C or SIGTERM instead of dying of it; the second one interrupts."""
    received: list[int] = []

    def note(number: int, _: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        _say("stopping", "storing the state of this iteration; once more to stop without")

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, *_: _say("warning", str(message))
        yield


def _say(what: str, text: str) -> None:
    _STDERR.print(Text(f"conescope: {what}: {text}"))
