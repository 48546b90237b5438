"""`conescope run`: carry out a recipe, then draw and print what came out."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from conescope.cli.commands import Commands
from conescope.cli.stored import draw_figures, write_report
from conescope.cli.terminal import STDERR, STDOUT, print_table, say, stopping
from conescope.progress import ProgressBar
from conescope.recipes import load_recipe
from conescope.run import load_run


def add(commands: Commands) -> None:
    """Add the command."""
    run = commands.add_for_recipe(
        "run", _run, "train a recipe, follow its kernel, make figures and report"
    )
    run.add_argument("--out", metavar="DIR", type=Path, help="the run's folder (default runs/ID)")


def _run(arguments: argparse.Namespace) -> int:
    from conescope.session import run_experiment

    recipe = load_recipe(arguments.recipe, arguments.overrides)
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
