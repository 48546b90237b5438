"""Run: what a run folder holds, as values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from torch import Tensor

from conescope.engine import KernelEstimate
from conescope.errors import StoreError
from conescope.kernel.matrix import Kernel
from conescope.kernel.series import KernelSeries
from conescope.runs.store import Entry, Folder

if TYPE_CHECKING:
    from conescope.training.recipe import Recipe

RecipeOf = Callable[[Mapping[str, Any], str], "Recipe"]
"""From a recipe's fields as the journal holds them, and the folder's name for messages, to it."""

SCALARS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate")

KERNEL_FOLDERS: Mapping[str, str] = MappingProxyType(
    {"kernel": "kernels", "averaged kernel": "averaged"}
)
"""Kind of kernel, of the weights or of their average → the folder of its files."""

_LAYER = "layer."


@dataclass(frozen=True)
class Run:
    """A training run and what was measured on the way.

    Attributes:
        path: its folder.
        name: its recipe's id, such as digits-1a2b3c4d, or the name that its source has.
        recipe: what was trained, and where it was looked at; None if conescope did not train it.
        series: the kernels measured so far.
        scalars: "step" and each of `SCALARS`, [E] each; losses in nats, accuracies in [0, 1].
        environment: versions and machine of its newest session.
        command: the shell command that makes it.
        total_steps: its length in iterations; None if unknown.
        finished: whether it is complete.
        seconds: wall time spent on it.
        source: what was measured, where there is no recipe: "name", "description" and whatever
            else its maker noted; empty where there is one.
        estimates: step → kernel with its random draws, for kernels that are estimates.
        skipped: moments at which no kernel was taken, to keep to a share of the wall time.
        averaged: the kernels of the weights' exponential average; None if there are none.
        labels: [n], int64, the classes of the probe's images; None if not stored.
    """

    path: Path
    name: str
    recipe: Recipe | None
    series: KernelSeries
    scalars: Mapping[str, np.ndarray]
    environment: Mapping[str, str]
    command: str
    total_steps: int | None
    finished: bool
    seconds: float
    source: Mapping[str, Any] = field(default_factory=dict)
    estimates: Mapping[int, KernelEstimate] = field(default_factory=dict)
    skipped: tuple[int, ...] = ()
    averaged: KernelSeries | None = None
    labels: Tensor | None = None

    @property
    def description(self) -> str:
        """What was trained or measured, in a line."""
        return self.recipe.description if self.recipe else self.source["description"]

    @property
    def details(self) -> str:
        """All that is known of what was trained or measured, as YAML."""
        if self.recipe:
            return self.recipe.to_yaml()
        return yaml.safe_dump(dict(self.source), sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
        name: the run's name.
        step: the newest iteration of which something is stored.
        total_steps: its length in iterations; None if unknown.
        kernels: number of kernels stored.
        snapshots: iterations of the snapshots stored, rising.
        finished: whether it is complete.
        running: whether a process works on it at this moment.
        diverged: whether its training came to a loss that is not finite.
        seconds: wall time spent on it, up to its newest entry.
    """

    name: str
    step: int
    total_steps: int | None
    kernels: int
    snapshots: tuple[int, ...]
    finished: bool
    running: bool
    diverged: bool
    seconds: float

    @property
    def extent(self) -> str:
        """How far it is, as text: "30 of 120 (25%)", or "30" if its length is unknown."""
        if self.total_steps is None:
            return f"{self.step:,}"
        return f"{self.step:,} of {self.total_steps:,} ({self.step / self.total_steps:.0%})"


def read_run(path: str | Path, recipe_of: RecipeOf | None = None) -> Run:
    """Read a run folder, finished or not.

    Args:
        path: the folder.
        recipe_of: reads the recipe of a run that conescope trained; without it, `Run.recipe` is
            None and only runs of other trainings can be read.

    Raises:
        StoreError: if the folder holds no run or no kernel yet, or a kernel is damaged.
    """
    folder, begun = _open(path)
    kernels = _by_step(folder, "kernel")
    if not kernels:
        raise StoreError(
            f"{path} holds no kernel yet; 'conescope status {path}' says how far it is"
        )
    averaged = _by_step(folder, "averaged kernel")
    drawn = [step for step, entry in kernels.items() if "draws" in entry.values]
    labels = stored_labels(folder)
    status = read_status(path, recipe_of)
    return Run(
        path=Path(path),
        name=status.name,
        recipe=_recipe(begun, path, recipe_of),
        series=_series(folder, kernels),
        scalars=read_scalars(path),
        environment=folder.entries("session")[-1].values["environment"],
        command=begun.values["command"],
        total_steps=status.total_steps,
        finished=status.finished,
        seconds=status.seconds,
        source=begun.values.get("source", {}),
        estimates={step: read_estimate(folder, kernels[step]) for step in drawn},
        skipped=skipped_steps(folder),
        averaged=_series(folder, averaged) if averaged else None,
        labels=None if labels is None else torch.tensor(labels),
    )


def read_status(path: str | Path, recipe_of: RecipeOf | None = None) -> Status:
    """Read how far a run is.

    Args:
        path: its folder.
        recipe_of: as for `read_run`.

    Raises:
        StoreError: if the folder holds no run.
    """
    folder, begun = _open(path)
    recipe = _recipe(begun, path, recipe_of)
    timed = folder.entries("kernel", "evaluation", "snapshot")
    return Status(
        name=recipe.id if recipe else begun.values["source"]["name"],
        step=max((entry.values["step"] for entry in timed), default=0),
        total_steps=recipe.training.steps if recipe else begun.values.get("total_steps"),
        kernels=len(folder.files("kernel")),
        snapshots=tuple(sorted(e.values["step"] for e in folder.files("snapshot"))),
        finished=is_finished(folder),
        running=folder.is_owned(),
        diverged=bool(folder.entries("diverged")),
        seconds=seconds_spent(folder),
    )


def read_recipe(path: str | Path, recipe_of: RecipeOf) -> Recipe:
    """Read what a run was to do.

    Raises:
        StoreError: if the folder holds no run, or one that conescope did not train.
    """
    recipe = _recipe(_open(path)[1], path, recipe_of)
    if recipe is None:
        raise StoreError(f"{path} holds kernels of a training that is not conescope's own")
    return recipe


def read_scalars(path: str | Path) -> dict[str, np.ndarray]:
    """Read a run's evaluations: "step" and each of `SCALARS`, [E] each.

    Raises:
        StoreError: if the folder holds no run.
    """
    folder, _ = _open(path)
    found = {entry.values["step"]: entry.values for entry in folder.entries("evaluation")}
    return {
        name: np.array([found[step][name] for step in sorted(found)]) for name in ("step", *SCALARS)
    }


def is_finished(folder: Folder) -> bool:
    """Whether the run in a folder is complete: no kernel came after it was said to be."""
    ends = folder.entries("finished", "kernel")
    return bool(ends) and ends[-1].kind == "finished"


def stored_labels(folder: Folder) -> list[int] | None:
    """The classes of the probe's samples, as last noted in a folder; None if they are not."""
    noted = [e.values["labels"] for e in folder.entries("run", "labels") if "labels" in e.values]
    return noted[-1] if noted else None


def skipped_steps(folder: Folder) -> tuple[int, ...]:
    """The moments that were skipped to save time and not measured since, rising."""
    skipped = {step for entry in folder.entries("skipped") for step in entry.values["steps"]}
    return tuple(sorted(skipped - {entry.values["step"] for entry in folder.files("kernel")}))


def seconds_spent(folder: Folder) -> float:
    """Wall time spent on the run in a folder, over all its sessions."""
    timed = folder.entries("kernel", "evaluation", "snapshot", "finished")
    return max((entry.values["seconds"] for entry in timed), default=0.0)


def write_kernel(
    folder: Folder,
    step: int,
    kernel: Kernel | KernelEstimate,
    seconds: float,
    *,
    weights: str | None = None,
    kind: str = "kernel",
) -> None:
    """Store the kernel of one step, with what it has of layers or random draws.

    Args:
        folder: a run folder that the caller owns.
        step: the iteration at which it was measured.
        kernel: exact, or estimated by random cotangents.
        seconds: wall time spent on the run so far.
        weights: a hash of the weights, by which a later session knows them again.
        kind: one of `KERNEL_FOLDERS`.

    Raises:
        StoreError: if it cannot be written.
    """
    exact = kernel.kernel if isinstance(kernel, KernelEstimate) else kernel
    tensors = {"values": exact.values}
    tensors |= {f"{_LAYER}{name}": part for name, part in exact.by_layer.items()}
    noted: dict[str, Any] = {"step": step, "outputs": exact.outputs, "seconds": seconds}
    if weights is not None:
        noted["weights"] = weights
    if isinstance(kernel, KernelEstimate):
        tensors["draws"], noted["draws"] = kernel.draws, len(kernel.draws)
    file = f"{KERNEL_FOLDERS[kind]}/{step:08d}.safetensors"
    folder.write_tensors(kind, file, tensors, **noted)


def read_kernel(folder: Folder, entry: Entry) -> Kernel:
    """Read the kernel that a journal entry names.

    Raises:
        StoreError: if its file is missing or damaged.
    """
    return _kernel(folder.read_tensors(entry), entry)


def read_estimate(folder: Folder, entry: Entry) -> KernelEstimate:
    """Read an estimated kernel with its draws; the entry says how many "draws" there are.

    Raises:
        StoreError: if its file is missing or damaged.
    """
    tensors = folder.read_tensors(entry)
    return KernelEstimate(_kernel(tensors, entry), tensors["draws"])


def _kernel(tensors: Mapping[str, Tensor], entry: Entry) -> Kernel:
    layers = {
        name.removeprefix(_LAYER): part for name, part in tensors.items() if name.startswith(_LAYER)
    }
    return Kernel(tensors["values"], entry.values["outputs"], layers)


def _by_step(folder: Folder, kind: str) -> dict[int, Entry]:
    """The kernels of a kind, in the order of their steps."""
    entries = {entry.values["step"]: entry for entry in folder.files(kind)}
    return {step: entries[step] for step in sorted(entries)}


def _series(folder: Folder, entries: Mapping[int, Entry]) -> KernelSeries:
    return KernelSeries(list(entries), [read_kernel(folder, e) for e in entries.values()])


def _recipe(begun: Entry, path: str | Path, recipe_of: RecipeOf | None) -> Recipe | None:
    fields = begun.values.get("recipe")
    if fields is None:
        return None
    if recipe_of is None:
        raise StoreError(f"{path} holds the run of a recipe; read it with conescope.load_run")
    return recipe_of(fields, str(path))


def _open(path: str | Path) -> tuple[Folder, Entry]:
    folder = Folder(Path(path))
    begun = folder.entries("run")
    if not begun:
        raise StoreError(f"{path} holds no run; give a folder that conescope made")
    return folder, begun[0]
