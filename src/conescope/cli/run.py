"""`conescope run`: train by a recipe, measure the kernel, and write figures and a report."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from conescope.cli.command_help import About, Group
from conescope.cli.commands import Commands, chosen_recipe
from conescope.cli.json_output import add_json, print_json
from conescope.cli.progress import ProgressBar
from conescope.cli.stored import facts_of, show
from conescope.cli.terminal import STDERR, STDOUT, say, stopping
from conescope.runs.schedule import Schedule
from conescope.training.recipe import Recipe

_ABOUT = About(
    Group.MAIN,
    "train by a recipe, measure the kernel on the way, write figures and a report",
    (
        "conescope run digits",
        "conescope run lenet-mnist --data.path DIR --seed 1",
        "conescope run --from runs/mine --at 2000 --dynamics.kind linearised",
    ),
)


def add(commands: Commands) -> None:
    """Add the command."""
    run = commands.add_for_recipe("run", _run, _ABOUT)
    add_json(run)
    run.add_argument("--out", metavar="DIR", type=Path, help="the run's folder (default runs/ID)")


def carry_out(recipe: Recipe, path: Path, command: str) -> int:
    """Carry out a recipe in a folder; return 0, or the exit status if a signal stopped it."""
    from conescope.experiments.session import run_experiment

    with stopping() as received, ProgressBar(STDERR) as bar:
        is_complete = run_experiment(
            recipe, path, command=command, progress=bar, should_stop=lambda: bool(received)
        )
    if is_complete:
        return 0
    status = f"{bar.step:,} of {recipe.training.steps:,} iterations are in {path}"
    say("stopped", f"{status}; the same command goes on from there")
    return 128 + received[0]


def _run(arguments: argparse.Namespace) -> int:
    recipe = chosen_recipe(arguments)
    path = arguments.out or Path("runs") / recipe.id
    status = carry_out(recipe, path, shlex.join(["conescope", *arguments.words]))
    if status:
        return status
    if Schedule(recipe.kernel.when).is_never:
        _tell_folder(recipe, path, as_json=arguments.json)
        return 0
    show(path, as_json=arguments.json)
    return 0


def _tell_folder(recipe: Recipe, path: Path, *, as_json: bool) -> None:
    """Say where a run without kernels is."""
    if as_json:
        print_json(facts_of(path, recipe.id, figures=[], report=None))
    else:
        STDOUT.print(f"run: {path} (no kernels, so no figures and no report)")
