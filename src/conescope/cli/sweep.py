"""`conescope sweep`: carry out many recipes, on this machine or on many."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conescope.cli.command_help import About, Group
from conescope.cli.commands import Commands
from conescope.cli.json_output import add_json
from conescope.cli.sweep_places import Places, add_places, places_of
from conescope.cli.sweep_plan import show_plan
from conescope.cli.terminal import STDERR, say, stopping
from conescope.errors import RecipeError

if TYPE_CHECKING:
    from conescope.experiments.sweep.sweep_folder import State, Sweep, SweepKind, SweepRun
    from conescope.experiments.sweep.sweep_planning import Planned

_MANY = 10_000
"""Number of runs above which a sweep is begun only after a question."""

ENDS_OF_A_SWEEP = {1: "a run failed, or nothing was begun; standard error says why"}
"""The exit statuses of a sweep that differ from those of other commands."""

_ABOUT = About(
    Group.MANY,
    "carry out a grid of recipes: a field with several values is an axis",
    (
        "conescope sweep digits --optimizer.lr 0.01,0.1 --seed 0..4 --out sweeps/mine",
        "conescope sweep axes.yaml --out sweeps/mine --dry-run",
    ),
    ENDS_OF_A_SWEEP,
)


def add(commands: Commands) -> None:
    """Add the command."""
    sweep = commands.add_with_fields("sweep", _sweep, _ABOUT, "RECIPE… | AXES.yaml --out DIR")
    sweep.description = (
        "Carry out a grid of recipes: a field with several values, such as --optimizer.lr 0.01,0.1 "
        "or --seed 0..4, is an axis. The same command goes on where an earlier one was stopped.\n"
        "Beside it: conescope sweep branch | switch | measure | status | report."
    )
    sweep.add_argument(
        "recipes",
        metavar="RECIPE",
        nargs="+",
        help="packaged recipes or YAML files; or one YAML file with axes",
    )
    add_sweep_arguments(sweep)


def add_sweep_arguments(sweep: argparse.ArgumentParser) -> None:
    """Add the arguments that all sweeps have."""
    sweep.add_argument("--out", metavar="DIR", type=Path, required=True, help="the sweep's folder")
    sweep.add_argument(
        "--runs",
        metavar="DIR",
        type=Path,
        help="the folder of the run folders, which sweeps may share (default OUT/runs)",
    )
    sweep.add_argument("--dry-run", action="store_true", help="show the plan, and begin nothing")
    sweep.add_argument("--yes", action="store_true", help=f"begin more than {_MANY:,} runs unasked")
    add_json(sweep)
    add_places(sweep)


def _sweep(arguments: argparse.Namespace) -> int:
    from conescope.experiments.sweep.axes import read_axes
    from conescope.experiments.sweep.grid import make_grid

    axes = read_axes(arguments.recipes, arguments.overrides)
    return carry_out(arguments, make_grid(axes)) if agreed(axes.size, arguments.yes) else 1


def agreed(size: int, said_yes: bool) -> bool:
    """Return whether so many runs are wanted; asks at a terminal.

    Raises:
        RecipeError: if nobody is there to be asked.
    """
    if size <= _MANY or said_yes:
        return True
    if not sys.stdin.isatty():
        raise RecipeError(f"this grid has {size:,} runs; say --yes if that is meant")
    return STDERR.input(f"This grid has {size:,} runs. Go on? [y/N] ").strip().lower() == "y"


def carry_out(
    arguments: argparse.Namespace, points: Sequence[Planned], kind: SweepKind = "training"
) -> int:
    """Show the plan of a sweep, then carry out what has not ended; return the exit status."""
    from conescope.experiments.sweep.sweep_folder import store_sweep, stored_numbers
    from conescope.experiments.sweep.sweep_planning import check_same_runs, plan_sweep

    for option, folder in (("--out", arguments.out), ("--runs", arguments.runs)):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise RecipeError(f"{option} {folder} is a file; name a folder, which need not exist")
        if folder is not None and (folder / "journal.jsonl").exists():
            raise RecipeError(f"{option} {folder} is the folder of a run; name one of the sweep's")
    command = shlex.join(["conescope", *arguments.words[0].split(" "), *arguments.words[1:]])
    sweep = plan_sweep(points, arguments.out, command, arguments.runs, kind)
    check_same_runs(points, sweep)
    places = places_of(arguments, sweep)
    left = [run for run in sweep.runs if stored_numbers(run.path) is None]
    show_plan(sweep, left, places, as_json=arguments.json)
    if arguments.dry_run:
        return 0
    store_sweep(sweep)
    if not left:
        return 0
    return _submit(sweep, left, places) if places.on == "slurm" else _wait_for(sweep, left, places)


def _submit(sweep: Sweep, left: list[SweepRun], places: Places) -> int:
    """Submit the runs that are left as jobs of SLURM; return the exit status."""
    from conescope.experiments.sweep.slurm_jobs import SlurmOptions, submit_jobs

    options = SlurmOptions(places.partition, places.minutes, int(places.gpus), places.threads)
    tasks = [places.task(sweep, run) for run in left]
    jobs = submit_jobs(tasks, sweep.path / "slurm", options)
    waiting = len(left) - len(jobs)
    number = f"{len(jobs):,} {'job' if len(jobs) == 1 else 'jobs'}" if jobs else "nothing"
    queued = f", {waiting:,} submitted before" if waiting else ""
    say("submitted", f"{number}{queued}; 'conescope sweep status {sweep.path}' says how far")
    return 0


def _wait_for(sweep: Sweep, left: list[SweepRun], places: Places) -> int:
    """Carry out the runs that are left, and wait for them; return the exit status."""
    from conescope.experiments.sweep.carrying_out import carry_out_sweep

    ends: dict[str, tuple[SweepRun, State]] = {}

    def tell(run: SweepRun, state: State) -> None:
        ends[run.id] = run, state
        say("run", f"{len(ends):,} of {len(left):,}, {run.id}: {state}{_why(run, state)}")

    with stopping("letting the runs store their state") as received:
        is_through = carry_out_sweep(
            sweep,
            places.backend(sweep),
            lambda run: places.task(sweep, run),
            told=tell,
            should_stop=lambda: bool(received),
        )
    if not is_through:
        say("stopped", f"{sweep.path} is intact; the same command goes on from there")
        return 128 + received[0]
    failed = [run for run, state in ends.values() if state == "failed"]
    for run in failed:
        say("given up", f"{run.path}: {run.error}; its output is in {run.path / 'log.txt'}")
    return 1 if failed else 0


def _why(run: SweepRun, state: State) -> str:
    return f" ({run.error})" if state == "failed" else ""
