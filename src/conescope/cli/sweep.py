"""`conescope sweep`: carry out many recipes; its status, and what it says."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from conescope.cli.commands import Commands
from conescope.cli.terminal import STDERR, duration, print_table, say, stopping
from conescope.errors import RecipeError

if TYPE_CHECKING:
    from conescope.experiments.sweep.carrying_out import Backend
    from conescope.experiments.sweep.single_run import RunTask
    from conescope.experiments.sweep.sweep_folder import State, Sweep, SweepRun

_MANY = 10_000
"""Number of runs above which a sweep is begun only after a question."""


def add(commands: Commands) -> None:
    """Add the commands."""
    summary = "carry out a grid of recipes: a field with several values is an axis"
    sweep = commands.add_with_fields("sweep", _sweep, summary, "RECIPE… | AXES.yaml --out DIR")
    sweep.add_argument(
        "recipes",
        metavar="RECIPE",
        nargs="+",
        help="packaged recipes or YAML files; or one YAML file with axes",
    )
    sweep.add_argument("--out", metavar="DIR", type=Path, required=True, help="the sweep's folder")
    sweep.add_argument(
        "--runs",
        metavar="DIR",
        type=Path,
        help="the folder of the run folders, which sweeps may share (default OUT/runs)",
    )
    _add_places(sweep)
    sweep.add_argument("--dry-run", action="store_true", help="show the plan, and begin nothing")
    sweep.add_argument("--yes", action="store_true", help=f"begin more than {_MANY:,} runs unasked")


def _add_places(sweep: argparse.ArgumentParser) -> None:
    """Add the arguments that say where the runs are carried out."""
    sweep.add_argument(
        "--on",
        choices=("local", "ray", "slurm"),
        default="local",
        help="where: processes of this machine, a Ray cluster, or jobs of SLURM",
    )
    sweep.add_argument(
        "--slots", type=int, metavar="N", help="local: runs at a time (default: cores)"
    )
    sweep.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads of a run (default: cores / slots)"
    )
    sweep.add_argument(
        "--gpus", type=float, metavar="N", default=0.0, help="ray, slurm: GPUs of a run (default 0)"
    )
    sweep.add_argument("--address", metavar="HOST:PORT", help="ray: the head of a running cluster")
    sweep.add_argument("--partition", metavar="NAME", help="slurm: the partition")
    sweep.add_argument(
        "--time", type=int, metavar="MINUTES", default=60, help="slurm: a job's limit (default 60)"
    )


def _sweep(arguments: argparse.Namespace) -> int:
    from conescope.experiments.sweep.axes import read_axes
    from conescope.experiments.sweep.grid import make_grid
    from conescope.experiments.sweep.sweep_folder import ENDED, plan_sweep, store_sweep

    axes = read_axes(arguments.recipes, arguments.overrides)
    if not _agreed(axes.size, arguments.yes):
        return 1
    command = shlex.join(["conescope", *arguments.words])
    sweep = plan_sweep(make_grid(axes), arguments.out, command, arguments.runs)
    places = _places(arguments, sweep)
    left = [run for run in sweep.runs if run.state() not in ENDED]
    _show_plan(sweep, left, places)
    if arguments.dry_run:
        return 0
    store_sweep(sweep)
    if not left:
        return 0
    return _submit(sweep, left, places) if places.on == "slurm" else _carry_out(sweep, left, places)


@dataclass(frozen=True)
class _Places:
    """Where runs are carried out, as the command line says it."""

    on: str
    slots: int
    threads: int
    gpus: float
    address: str | None
    partition: str | None
    minutes: int

    def backend(self) -> Backend:
        if self.on == "ray":
            from conescope.experiments.sweep.ray_cluster import RayCluster

            return RayCluster(self.address, self.threads, self.gpus)
        from conescope.experiments.sweep.slots import Slots

        return Slots(self.slots, self.threads, ["conescope.report.run_numbers", "sklearn.datasets"])

    def task(self, sweep: Sweep, run: SweepRun) -> RunTask:
        from conescope.experiments.sweep.single_run import RunTask
        from conescope.report.run_numbers import store_run_numbers

        return RunTask.of(run, sweep.command, store_run_numbers, self.threads)


def _submit(sweep: Sweep, left: list[SweepRun], places: _Places) -> int:
    """Submit the runs that are left as jobs of SLURM; return the exit status."""
    from conescope.experiments.sweep.slurm_jobs import SlurmOptions, submit_jobs

    options = SlurmOptions(places.partition, places.minutes, int(places.gpus), places.threads)
    tasks = [places.task(sweep, run) for run in left]
    jobs = submit_jobs(tasks, sweep.path / "slurm", options)
    say("submitted", f"{len(jobs):,} jobs; 'conescope sweep status {sweep.path}' says how far")
    return 0


def _carry_out(sweep: Sweep, left: list[SweepRun], places: _Places) -> int:
    """Carry out the runs that are left; return the exit status."""
    from conescope.experiments.sweep.carrying_out import carry_out_sweep

    ends: dict[str, tuple[SweepRun, State]] = {}

    def tell(run: SweepRun, state: State) -> None:
        ends[run.id] = run, state
        say("run", f"{len(ends):,} of {len(left):,}, {run.id}: {state}{_why(run, state)}")

    with stopping() as received:
        is_through = carry_out_sweep(
            sweep,
            places.backend(),
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


def _agreed(size: int, said_yes: bool) -> bool:
    """Return whether so many runs are wanted; asks at a terminal.

    Raises:
        RecipeError: if nobody is there to be asked.
    """
    if size <= _MANY or said_yes:
        return True
    if not sys.stdin.isatty():
        raise RecipeError(f"this grid has {size:,} runs; say --yes if that is meant")
    return STDERR.input(f"This grid has {size:,} runs. Go on? [y/N] ").strip().lower() == "y"


def _places(arguments: argparse.Namespace, sweep: Sweep) -> _Places:
    """Return where to carry out the runs, by default a process for each core of this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    on_cpu = sweep.runs[0].recipe.device == "cpu"
    slots = arguments.slots if arguments.slots is not None else cores if on_cpu else 1
    threads = arguments.threads
    if threads is None:
        threads = max(1, cores // max(slots, 1)) if arguments.on == "local" else 1
    least = {"--slots": slots, "--threads": threads, "--time": arguments.time}
    for name, value in least.items():
        if value < 1:
            raise RecipeError(f"{name} is at least 1, not {value}")
    if arguments.gpus < 0:
        raise RecipeError(f"--gpus is at least 0, not {arguments.gpus:g}")
    if arguments.on == "slurm" and arguments.gpus % 1:
        raise RecipeError(f"SLURM gives whole GPUs to a job, not {arguments.gpus:g}")
    return _Places(
        on=arguments.on,
        slots=slots,
        threads=threads,
        gpus=arguments.gpus,
        address=arguments.address,
        partition=arguments.partition,
        minutes=arguments.time,
    )


def _show_plan(sweep: Sweep, left: list[SweepRun], places: _Places) -> None:
    """Print what a sweep consists of, and what it will cost."""
    lengths = ", ".join(f"{name} ({count})" for name, count in sweep.lengths.items())
    rows = {
        "runs": f"{len(sweep.runs):,}, of which {len(left):,} are to do",
        "axes": lengths or "none",
        "folder": str(sweep.path),
    }
    if left and places.on == "slurm":
        rows["time"] = f"not tried on a login node; a job may take {places.minutes:,} min at a time"
    elif left and places.on == "ray" and left[0].recipe.device != "cpu":
        rows["time"] = f"not tried: {left[0].recipe.device} is a device of the cluster"
    elif left:
        rows |= _costs(sweep, left, places)
    print_table(rows)


def _costs(sweep: Sweep, left: list[SweepRun], places: _Places) -> dict[str, str]:
    """Return what runs will cost, as text, by trials on this machine."""
    from conescope.experiments.sweep.sweep_cost import forecast_sweep

    cost = forecast_sweep(left)
    if not cost.timed:
        return {"time": "unknown: the trials of it diverge"}
    part = "" if cost.timed == cost.kinds else f" (from {cost.timed} of {cost.kinds} kinds)"
    each = "" if cost.longest < 1.5 * cost.shortest else f"{duration(cost.shortest)} to "
    in_all = {"time of all, one after the other": duration(cost.seconds)}
    if places.on == "local":
        in_all = {"time": f"{duration(cost.wall_seconds(places.slots))} on {places.slots} slots"}
    return {
        "time of a run": f"{each}{duration(cost.longest)}{part}",
        **in_all,
        "memory of a kernel": f"{cost.memory / 1e6:,.0f} MB in each run beside its network",
        "disk": f"{cost.stored_bytes / 1e6:,.0f} MB, of {_free(sweep.path):,.0f} MB that are free",
    }


def _free(path: Path) -> float:
    """Return the free space of a folder that need not exist yet, in MB."""
    there = next(part for part in (path.absolute(), *path.absolute().parents) if part.exists())
    return shutil.disk_usage(there).free / 1e6
