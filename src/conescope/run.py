"""Run: what a run folder holds, as values; reading only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conescope.errors import StoreError
from conescope.kernel import Kernel
from conescope.recipe import Recipe
from conescope.recipes import recipe_from_dict
from conescope.series import KernelSeries
from conescope.store import Entry, Folder

SCALARS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate")


@dataclass(frozen=True)
class Run:
    """A training run and what was measured on the way.

    Attributes:
        path: its folder.
        name: its recipe's id, such as digits-1a2b3c4d.
        recipe: what was trained, and where it was looked at.
        series: the kernels measured so far.
        scalars: "step" and each of `SCALARS`, [E] each; losses in nats, accuracies in [0, 1].
        environment: versions and machine of its newest session.
        command: the shell command that makes it.
        total_steps: its length in iterations.
        finished: whether it is complete.
        seconds: wall time spent on it.
    """

    path: Path
    name: str
    recipe: Recipe
    series: KernelSeries
    scalars: Mapping[str, np.ndarray]
    environment: Mapping[str, str]
    command: str
    total_steps: int
    finished: bool
    seconds: float


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
        name: the run's name.
        step: the newest iteration of which something is stored.
        total_steps: its length in iterations.
        kernels: number of kernels stored.
        snapshots: iterations of the snapshots stored, rising.
        finished: whether it is complete.
        running: whether a process works on it at this moment.
        seconds: wall time spent on it, up to its newest entry.
    """

    name: str
    step: int
    total_steps: int
    kernels: int
    snapshots: tuple[int, ...]
    finished: bool
    running: bool
    seconds: float


def load_run(path: str | Path) -> Run:
    """Read a run folder, finished or not.

    Raises:
        StoreError: if the folder holds no run or no kernel yet, or a kernel is damaged.
    """
    folder, begun = _open(path)
    recipe = recipe_from_dict(begun.values["recipe"], str(path))
    kernels = {entry.values["step"]: entry for entry in folder.files("kernel")}
    if not kernels:
        raise StoreError(
            f"{path} holds no kernel yet; 'conescope status {path}' says how far it is"
        )
    steps = sorted(kernels)
    evaluations = {entry.values["step"]: entry.values for entry in folder.entries("evaluation")}
    scalars = {
        name: np.array([evaluations[step][name] for step in sorted(evaluations)])
        for name in ("step", *SCALARS)
    }
    status = read_status(path)
    return Run(
        path=Path(path),
        name=recipe.id,
        recipe=recipe,
        series=KernelSeries(steps, [read_kernel(folder, kernels[step]) for step in steps]),
        scalars=scalars,
        environment=folder.entries("session")[-1].values["environment"],
        command=begun.values["command"],
        total_steps=recipe.training.steps,
        finished=status.finished,
        seconds=status.seconds,
    )


def read_status(path: str | Path) -> Status:
    """Read how far a run is.

    Raises:
        StoreError: if the folder holds no run.
    """
    folder, begun = _open(path)
    recipe = begun.values["recipe"]
    timed = [e for kind in ("kernel", "evaluation", "snapshot") for e in folder.entries(kind)]
    return Status(
        name=recipe_from_dict(recipe, str(path)).id,
        step=max((entry.values["step"] for entry in timed), default=0),
        total_steps=recipe["training"]["steps"],
        kernels=len(folder.files("kernel")),
        snapshots=tuple(sorted(e.values["step"] for e in folder.files("snapshot"))),
        finished=is_finished(folder),
        running=folder.is_owned(),
        seconds=seconds_spent(folder),
    )


def is_finished(folder: Folder) -> bool:
    """Whether the run in a folder is complete."""
    return bool(folder.entries("finished"))


def seconds_spent(folder: Folder) -> float:
    """Wall time spent on the run in a folder, over all its sessions."""
    spent = [
        entry.values["seconds"]
        for kind in ("kernel", "evaluation", "snapshot", "finished")
        for entry in folder.entries(kind)
    ]
    return max(spent, default=0.0)


def read_kernel(folder: Folder, entry: Entry) -> Kernel:
    """Read the kernel that a journal entry names.

    Raises:
        StoreError: if its file is missing or damaged.
    """
    return Kernel(folder.read_tensors(entry)["values"], outputs=entry.values["outputs"])


def _open(path: str | Path) -> tuple[Folder, Entry]:
    folder = Folder(Path(path))
    begun = folder.entries("run")
    if not begun:
        raise StoreError(f"{path} holds no run; give a folder that 'conescope run' made")
    return folder, begun[0]
