"""`conescope run`: carry out a recipe, then draw and print what came out."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from conescope.branches import branch_recipe
from conescope.cli.commands import Commands
from conescope.cli.stored import draw_figures, write_report
from conescope.cli.terminal import STDERR, STDOUT, print_table, say, stopping
from conescope.errors import RecipeError
from conescope.progress import ProgressBar
from conescope.recipe import Recipe
from conescope.recipes import load_recipe
from conescope.run import load_run


def add(commands: Commands) -> None:
    """Add the command."""
    run = commands.add_for_recipe(
        "run", _run, "train a recipe, follow its kernel, make figures and report", optional=True
    )
    run.add_argument(
        "--from",
        metavar="RUN",
        type=Path,
        dest="parent",
        help="instead of a recipe: branch from a snapshot of this run, with its recipe",
    )
    run.add_argument("--at", metavar="STEP", type=int, help="the snapshot's iteration")
    run.add_argument("--out", metavar="DIR", type=Path, help="the run's folder (default runs/ID)")


def _run(arguments: argparse.Namespace) -> int:
    from conescope.session import run_experiment

    recipe = _recipe(arguments)
    path = arguments.out or Path("runs") / recipe.id
    with stopping() as received, ProgressBar(STDERR) as bar:
        is_complete = run_experiment(
            recipe,
            path,
            command=shlex.join(["conescope", *arguments.words]),
            progress=bar,
            should_stop=lambda: bool(received),
        )
    if not is_complete:
        status = f"{bar.step:,} of {recipe.training.steps:,} iterations are in {path}"
        say("stopped", f"{status}; the same command goes on from there")
        return 128 + received[0]
    if not recipe.schedule("kernel.when", 1):
        STDOUT.print(f"run: {path} (no kernels, so no figures and no report)")
        return 0
    from conescope.summary import main_numbers

    run = load_run(path)
    draw_figures(run, path)
    report = write_report(run, path)
    print_table({"run": run.name, **main_numbers(run)})
    STDOUT.print(f"figures: {path / 'figures'}\nreport:  {report}")
    return 0


def _recipe(arguments: argparse.Namespace) -> Recipe:
    if arguments.parent is None and arguments.recipe is not None and arguments.at is None:
        return load_recipe(arguments.recipe, arguments.overrides)
    if arguments.parent is None or arguments.recipe is not None or arguments.at is None:
        raise RecipeError(
            "say what to run: either 'conescope run RECIPE', or a branch of another run by "
            "'conescope run --from RUN --at STEP'"
        )
    return branch_recipe(arguments.parent, arguments.at, arguments.overrides)
