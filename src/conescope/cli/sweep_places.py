"""The arguments that say where the runs of a sweep are carried out."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from conescope.errors import RecipeError

if TYPE_CHECKING:
    from conescope.experiments.sweep.carrying_out import Backend
    from conescope.experiments.sweep.single_run import RunTask
    from conescope.experiments.sweep.sweep_folder import Sweep, SweepRun

_PRELOADED = ("conescope.cli", "conescope.report.run_numbers")
"""Modules that the processes of runs on this machine share, loaded once for all of them."""


def add_places(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    option = parser.add_argument_group("where the runs are carried out").add_argument
    option(
        "--on",
        choices=("local", "ray", "slurm"),
        default="local",
        help="processes of this machine (default), a Ray cluster, or jobs of SLURM",
    )
    option("--slots", type=int, metavar="N", help="local: runs at a time (default: cores)")
    option("--threads", type=int, metavar="N", help="CPU threads of a run (default: cores / slots)")
    option("--gpus", type=float, metavar="N", help="ray, slurm: GPUs of a run (default 0)")
    option("--address", metavar="HOST:PORT", help="ray: the head of a running cluster")
    option(
        "--copy",
        action="store_true",
        help="ray: send run folders to the nodes and back, which do not share a file system",
    )
    option("--partition", metavar="NAME", help="slurm: the partition")
    option("--time", type=int, metavar="MINUTES", help="slurm: a job's limit (default 60)")


_OF_SOME: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "slots": ("local",),
        "gpus": ("ray", "slurm"),
        "address": ("ray",),
        "copy": ("ray",),
        "partition": ("slurm",),
        "time": ("slurm",),
    }
)
"""Arguments that only some values of --on have a use for."""

_MINUTES = 60


@dataclass(frozen=True)
class Places:
    """Where runs are carried out, as the command line says it."""

    on: str
    slots: int
    threads: int
    gpus: float
    address: str | None
    copies: bool
    partition: str | None
    minutes: int

    def backend(self, sweep: Sweep) -> Backend:
        """Return what carries out the runs of a sweep, and is waited for."""
        if self.on == "ray":
            from conescope.experiments.sweep.ray_cluster import RayCluster

            return RayCluster(self.address, self.threads, self.gpus, copies=self.copies)
        from conescope.experiments.sweep.slots import Slots

        data = sweep.runs[0].recipe.data if sweep.kind == "training" else None
        return Slots(self.slots, self.threads, _PRELOADED, data)

    def task(self, sweep: Sweep, run: SweepRun) -> RunTask:
        """Return all that a worker needs to carry out a run."""
        from conescope.cli.sweep_measure import measure_run
        from conescope.experiments.sweep.single_run import RunTask, train
        from conescope.report.run_numbers import store_run_numbers

        work = train if sweep.kind == "training" else measure_run
        return RunTask.of(run, sweep.command, store_run_numbers, self.threads, work)


def places_of(arguments: argparse.Namespace, sweep: Sweep) -> Places:
    """Return where to carry out the runs, by default a process for each core of this machine.

    Raises:
        RecipeError: if a number is out of range, or an argument is for another value of --on.
    """
    for name, places in _OF_SOME.items():
        if getattr(arguments, name) and arguments.on not in places:
            raise RecipeError(
                f"--{name} is for --on {' or '.join(places)}; with --on {arguments.on} leave it out"
            )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    on_cpu = sweep.runs[0].fields["device"] in ("cpu", None)
    slots = arguments.slots if arguments.slots is not None else cores if on_cpu else 1
    threads = arguments.threads
    if threads is None:
        threads = max(1, cores // max(slots, 1)) if arguments.on == "local" else 1
    minutes = _MINUTES if arguments.time is None else arguments.time
    gpus = arguments.gpus or 0.0
    least = {"--slots": slots, "--threads": threads, "--time": minutes}
    for name, value in least.items():
        if value < 1:
            raise RecipeError(f"{name} is at least 1, not {value}")
    if not 0 <= gpus < float("inf"):
        raise RecipeError(f"--gpus is a number from 0 on, not {gpus:g}")
    if arguments.on == "slurm" and gpus % 1:
        raise RecipeError(
            f"SLURM gives whole GPUs to a job, not {gpus:g}; give --gpus a whole number"
        )
    if arguments.copy:
        _check_copies(sweep)
    return Places(
        on=arguments.on,
        slots=slots,
        threads=threads,
        gpus=gpus,
        address=arguments.address,
        copies=arguments.copy,
        partition=arguments.partition,
        minutes=minutes,
    )


def _check_copies(sweep: Sweep) -> None:
    """Raise `RecipeError` unless the runs of a sweep can be carried out on copies."""
    if sweep.kind == "measurement" or any(run.base["branch"]["run"] for run in sweep.runs):
        raise RecipeError(
            "--copy sends only a run's own folder, and these runs read other runs or weights too; "
            "put all of them on a file system that the nodes share, and leave --copy out"
        )
