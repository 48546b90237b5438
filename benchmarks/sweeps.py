"""Sweeps under kills, and what a sweep costs beside its runs: `python -m benchmarks.sweeps`.

    python -m benchmarks.sweeps kills --runs 200 --kills 30      # the same bits as undisturbed?
    python -m benchmarks.sweeps kills --on ray --runs 50 --kills 10         # --copy: on copies
    python -m benchmarks.sweeps overhead --runs 200 --seconds 5  # wall time over that of the runs

The runs are tiny trainings of the digits in a temporary folder. A kill is SIGKILL to a process at
work on a run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.machine import describe
from conescope.experiments.stored import read_status
from conescope.experiments.sweep.axes import read_axes
from conescope.experiments.sweep.carrying_out import Backend, Ended, carry_out_sweep
from conescope.experiments.sweep.grid import make_grid
from conescope.experiments.sweep.single_run import RunTask
from conescope.experiments.sweep.slots import Slots
from conescope.experiments.sweep.sweep_folder import Sweep, SweepRun, store_sweep
from conescope.experiments.sweep.sweep_planning import plan_sweep
from conescope.report.run_numbers import store_run_numbers
from conescope.runs.journal import Kind
from conescope.runs.store import Folder

PRELOAD = ("conescope.report.run_numbers", "conescope.experiments.sweep.grid")

_FIELDS = (
    "--model.name=mlp", "--model.width=0.2", "--training.batch_size=8", "--probe.size=10",
    "--training.evaluate=0, every 50",
)  # fmt: skip

_RESUME = "--snapshots.resume=every 7"
"""Of runs that are to be killed: so that they go on at odd places."""

_STEPS = 240
"""Iterations of a run that is to be killed: enough for most kills to hit its training."""

_TRIAL_STEPS = 1000

_PART_OF_OTHERS = 4
"""At most one kill in so many may hit no training, but what comes before or after it."""

_MOST_KILLS = 3
"""Kills of a run at the same place; the fifth would have it given up."""


class Killing:
    """A backend whose processes are killed by chance.

    Args:
        backend: where the runs are carried out.
        pids: returns the processes at work, by the id of the run.
        kills: how many to kill.
        on_copies: whether the processes work on copies of the run folders, on this machine.

    Attributes:
        left: how many are left.
        hits: how many of the kills hit a training, neither its begin nor what follows its end.
    """

    def __init__(
        self,
        backend: Backend,
        pids: Callable[[], Mapping[str, int]],
        kills: int,
        *,
        on_copies: bool = False,
    ) -> None:
        self._on_copies = on_copies
        self.left, self.hits = kills, 0
        self._others = kills // _PART_OF_OTHERS
        self._backend, self._pids = backend, pids
        self._chance = random.Random(1)
        self._folders: dict[str, Path] = {}
        self._killed: Counter[tuple[str, int]] = Counter()
        self.has_room, self.stop, self.close = backend.has_room, backend.stop, backend.close

    def submit(self, task: RunTask) -> None:
        """Begin a task."""
        self._folders[task.run.id] = task.folder
        self._backend.submit(task)

    def wait(self, seconds: float) -> list[Ended]:
        """Return the tasks that have ended, then kill one of the others, or none."""
        ended = self._backend.wait(self._chance.uniform(0.0, 1.5 * seconds))
        pids = self._pids()
        training = [name for name in sorted(pids) if self._is_training(name)]
        chance = 0.7 if training else 0.1 if self._others else 0.0
        if self.left and pids and self._chance.random() < chance:
            name = self._chance.choice(training or sorted(pids))
            place = name, len(Folder(self._folders[name]).entries(Kind.KERNEL, Kind.SNAPSHOT))
            if self._killed[place] < _MOST_KILLS:
                with suppress(ProcessLookupError):
                    os.kill(pids[name], signal.SIGKILL)
                    self._killed[place] += 1
                    self.left -= 1
                    self.hits += name in training
                    self._others -= name not in training
        return ended

    def _is_training(self, name: str) -> bool:
        places = copies_of(name) if self._on_copies else [self._folders[name]]
        return any(is_training(Folder(place)) for place in places)


def is_training(folder: Folder) -> bool:
    """Return whether a process trains in a folder."""
    has_begun = folder.is_owned() and bool(folder.entries(Kind.SNAPSHOT))
    return has_begun and not folder.entries(Kind.FINISHED)


def copies_of(name: str) -> list[Path]:
    """Return the copies of a run's folder on this machine; those of killed processes stay."""
    return [*Path(tempfile.gettempdir()).glob(f"conescope-*/{name}")]


def killing_slots(slots: int, kills: int) -> Killing:
    """Return slots of this machine whose processes are killed."""
    backend = Slots(slots, 1, PRELOAD)
    return Killing(backend, lambda: {n: p.pid or 0 for n, p in backend._processes.items()}, kills)


def killing_ray(names: set[str], kills: int, *, copies: bool) -> Killing:
    """Return a Ray cluster whose workers on this machine are killed while they have these runs."""
    from conescope.experiments.sweep.ray_cluster import RayCluster

    backend = RayCluster(copies=copies)
    return Killing(backend, lambda: ray_workers(names), kills, on_copies=copies)


def ray_workers(names: set[str]) -> dict[str, int]:
    """Return the process of each of these runs that a worker of Ray has, by its title."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            title = (folder / "cmdline").read_bytes().decode(errors="replace").strip("\0")
            if (name := title.removeprefix("ray::")) in names:
                found[name] = int(folder.name)
    return found


def planned(path: Path, runs: int, steps: int, *fields: str) -> Sweep:
    """Return a stored sweep of that many seeds."""
    words = [*fields, f"--training.steps={steps}", f"--kernel.when=0, every {max(1, steps // 6)}"]
    words += [f"--snapshots.keep=0, every {max(1, steps // 2)}", f"--seed=0..{runs - 1}"]
    sweep = plan_sweep(make_grid(read_axes(["digits"], [*_FIELDS, *words])), path, "benchmark")
    store_sweep(sweep)
    return sweep


def carry_out(sweep: Sweep, backend: Backend) -> float:
    """Carry out a sweep; return the seconds it took."""

    def task_of(run: SweepRun) -> RunTask:
        return RunTask.of(run, sweep.command, store_run_numbers, 1)

    begun = time.monotonic()
    carry_out_sweep(sweep, backend, task_of)
    return time.monotonic() - begun


def outcome(run: SweepRun) -> tuple[dict[str, str], list[Mapping[str, object]]]:
    """Return the checksums of a run's kernels and snapshots by file, and its evaluations."""
    folder = Folder(run.path)
    files = {
        entry.values["file"]: entry.values["sha256"]
        for kind in (Kind.KERNEL, Kind.SNAPSHOT)
        for entry in folder.files(kind)
    }
    evaluations = {
        entry.values["step"]: {n: v for n, v in entry.values.items() if n != "seconds"}
        for entry in folder.entries(Kind.EVALUATION)
    }
    return files, [evaluations[step] for step in sorted(evaluations)]


def faults(disturbed: Sequence[SweepRun], alone: Sequence[SweepRun]) -> dict[str, list[str]]:
    """Return the ids of runs that are lost, came to their end twice, or have other bits."""
    found: dict[str, list[str]] = {"lost": [], "ended twice": [], "other bits": []}
    for run, other in zip(disturbed, alone, strict=True):
        ends = len(Folder(run.path).entries(Kind.FINISHED))
        if ends == 0 or not (run.path / "row.json").exists():
            found["lost"].append(run.id)
        if ends > 1:
            found["ended twice"].append(run.id)
        if outcome(run) != outcome(other):
            found["other bits"].append(run.id)
    return found


def survive(
    folder: Path, runs: int, kills: int, slots: int, on: str, *, copies: bool
) -> dict[str, object]:
    """Carry out a sweep undisturbed and another one under kills, and compare them."""
    alone = planned(folder / "alone", runs, _STEPS, _RESUME)
    undisturbed = carry_out(alone, Slots(slots, 1, PRELOAD))
    sweep = planned(folder / "killed", runs, _STEPS, _RESUME)
    names = {run.id for run in sweep.runs}
    on_ray = on == "ray"
    killing = killing_ray(names, kills, copies=copies) if on_ray else killing_slots(slots, kills)
    seconds = carry_out(sweep, killing)
    for left in (place for name in names for place in copies_of(name)):
        shutil.rmtree(left.parent, ignore_errors=True)
    return {
        "runs": runs,
        "kills": kills - killing.left,
        "kills of a training": killing.hits,
        **faults(sweep.runs, alone.runs),
        "sessions": sum(len(Folder(run.path).entries(Kind.SESSION)) for run in sweep.runs),
        "seconds": round(seconds, 1),
        "seconds undisturbed, local": round(undisturbed, 1),
    }


def overhead(folder: Path, runs: int, seconds: float, slots: int) -> dict[str, object]:
    """Compare the wall time of a sweep with that of its runs, summed over the slots.

    The time of a run is that from the begin of its session, after its data are loaded, to its end;
    or that of the command `conescope run` for it alone, which has to load torch and the data first,
    and draws figures and a report in the end.
    """
    trial = planned(folder / "trial", slots, steps=_TRIAL_STEPS)
    data = trial.runs[0].recipe.data  # given first, as one server serves all of a process
    carry_out(trial, Slots(slots, 1, PRELOAD, data))
    each = max(read_status(run.path).seconds for run in trial.runs)
    sweep = planned(folder / "sweep", runs, steps=max(60, int(_TRIAL_STEPS * seconds / each)))
    wall = carry_out(sweep, Slots(slots, 1, PRELOAD, data))
    times = [read_status(run.path).seconds for run in sweep.runs]
    alone = seconds_alone(sweep.runs[0], folder)
    return {
        "runs": runs,
        "slots": slots,
        "seconds of a run": round(sum(times) / runs, 2),
        "sum over slots": round(sum(times) / slots, 1),
        "wall": round(wall, 1),
        "overhead": f"{wall / (sum(times) / slots) - 1:.1%}",
        "seconds of a command": round(alone, 2),
        "overhead over commands": f"{wall / (alone * runs / slots) - 1:.1%}",
    }


def seconds_alone(run: SweepRun, folder: Path) -> float:
    """Return the time of `conescope run` for a run of a sweep, alone on this machine."""
    recipe = folder / "alone.yaml"
    recipe.write_text(run.recipe.to_yaml(), encoding="utf-8")
    words = [sys.executable, "-m", "conescope", "run", str(recipe), "--out", str(folder / "alone")]
    begun = time.monotonic()
    subprocess.run(words, check=True, capture_output=True)
    return time.monotonic() - begun


def main() -> int:
    """Measure, and print a line of JSON; return 1 if kills have left a trace."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweeps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("kills", "overhead"))
    parser.add_argument("--runs", type=int, default=20, help="(20)")
    parser.add_argument("--kills", type=int, default=10, help="(10)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a run, for overhead (5)")
    parser.add_argument("--slots", type=int, default=2, help="runs at a time (2)")
    parser.add_argument("--on", choices=("local", "ray"), default="local", help="for kills")
    parser.add_argument("--copy", action="store_true", help="for --on ray: on copies of folders")
    arguments = parser.parse_args()
    if arguments.copy and arguments.on != "ray":
        parser.error("--copy is for --on ray")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        if arguments.what == "overhead":
            found = overhead(path, arguments.runs, arguments.seconds, arguments.slots)
        else:
            found = survive(
                path, arguments.runs, arguments.kills, arguments.slots, arguments.on,
                copies=arguments.copy,
            )  # fmt: skip
    print(json.dumps(found | {"machine": describe(1)}))
    return int(any(found.get(name) for name in ("lost", "ended twice", "other bits")))


if __name__ == "__main__":
    sys.exit(main())
