"""Read a run folder: the run with its kernels, how far it is, its recipe."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from torch import Tensor

from conescope.errors import DamageWarning, StoreError
from conescope.kernel.matrix import Kernel
from conescope.kernel.notebook_card import card
from conescope.kernel.series import KernelSeries
from conescope.runs import contents
from conescope.runs.chain import shortened
from conescope.runs.journal import Entry, Kind
from conescope.runs.store import Folder

if TYPE_CHECKING:
    from conescope.training.recipe import Recipe

RecipeOf = Callable[[Mapping[str, Any], str], "Recipe"]
"""Makes a recipe of its fields as the journal holds them, and of the folder's name for messages."""


@dataclass(frozen=True)
class Run:
    """A training run and what was measured on the way.

    Attributes:
        path: its folder.
        name: its recipe's id, such as digits-1a2b3c4d, or the name of its source.
        recipe: what was trained and when it was measured; None if conescope did not train it.
        series: the kernels measured so far.
        scalars: "step" and each of `contents.SCALARS`, [E] each; losses in nats, accuracies in
            [0, 1].
        environment: versions and machine of its newest session; empty if its line is damaged.
        command: the shell command that made it.
        total_steps: its length in iterations; None if unknown.
        finished: whether it is complete.
        seconds: wall time spent on it, over all sessions.
        source: what was measured, where there is no recipe: "name", "description" and whatever
            else was noted of it; empty where there is a recipe.
        skipped: steps at which no kernel was measured, to keep to a share of the wall time.
        averaged: the kernels of the weights' exponential average; None if there are none.
        outputs: step → the network's outputs on the probe, [n, c], for each kernel with which
            they are stored; those of earlier versions have none.
        averaged_outputs: the same of the averaged weights.
        labels: [n], int64, the classes of the probe's samples; None if they are not stored.
        texts: how each text of the probe begins; None if it is not of texts.
        stages: the iteration at which each stage of the training began, by the stage's name;
            empty if there is one stage only.
        lost: what damage took from the run, each as a text; empty if all is there.
        head: the checksum of the newest line of its journal, and so of all that this was read
            from; "" if it was not read from a journal.
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
    skipped: tuple[int, ...] = ()
    averaged: KernelSeries | None = None
    outputs: Mapping[int, Tensor] = field(default_factory=dict)
    averaged_outputs: Mapping[int, Tensor] = field(default_factory=dict)
    labels: Tensor | None = None
    texts: tuple[str, ...] | None = None
    stages: Mapping[str, int] = field(default_factory=dict)
    lost: tuple[str, ...] = ()
    head: str = ""

    @property
    def estimates(self) -> dict[int, Kernel]:
        """The kernels that were estimated by random draws, by their step."""
        pairs = zip(self.series.steps, self.series.measured, strict=True)
        return {
            step: kernel
            for step, kernel in pairs
            if isinstance(kernel, Kernel) and kernel.draws is not None
        }

    @property
    def description(self) -> str:
        """One line of text that says what was trained or measured."""
        return self.recipe.description if self.recipe else self.source["description"]

    def __repr__(self) -> str:
        steps, state = self.series.steps, "finished" if self.finished else "unfinished"
        kernels = f"{len(steps):,} kernel{'' if len(steps) == 1 else 's'}"
        return f"Run({self.name!r}, {state}, {kernels}, steps {steps[0]:,} to {steps[-1]:,})"

    def _repr_html_(self) -> str:
        return card("run", self)

    @property
    def details(self) -> str:
        """Everything that is known of what was trained or measured, as YAML."""
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
        diverged: whether its training ended, since its loss was not finite.
        seconds: wall time spent on it, over all sessions.
        stages: as in `Run`.
        journal: the state of the journal, as text.
        lost: as in `Run`.
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
    stages: Mapping[str, int] = field(default_factory=dict)
    journal: str = ""
    lost: tuple[str, ...] = ()

    @property
    def extent(self) -> str:
        """How far it is, as text: "30 of 120 (25%)", or "30" if its length is unknown."""
        if self.total_steps is None or self.total_steps <= 0:
            return f"{self.step:,}"
        return f"{self.step:,} of {self.total_steps:,} ({self.step / self.total_steps:.0%})"


def read_run(path: str | Path | Folder, recipe_of: RecipeOf | None = None) -> Run:
    """Read a run folder, finished or not.

    Args:
        path: the folder; as a `Folder`, its journal is not read again.
        recipe_of: makes the recipe of a run that conescope trained; without it only runs of other
            trainings can be read.

    Raises:
        StoreError: if the folder holds no run or no kernel yet, or a kernel is damaged.
    """
    folder, begun = _open(path)
    recipe = _recipe(begun, folder.path, recipe_of)
    kernels = contents.by_step(folder, Kind.KERNEL)
    if not kernels:
        raise StoreError(
            f"{folder.path} holds no kernel yet that its journal.jsonl names; 'conescope status "
            f"{folder.path}' says how far it is"
        )
    series, outputs = contents.read_series(folder, kernels)
    averages = contents.by_step(folder, Kind.AVERAGED_KERNEL)
    averaged, averaged_outputs = contents.read_series(folder, averages) if averages else (None, {})
    labels, texts = contents.labels(folder), contents.texts(folder)
    status = _status(folder, begun, recipe)
    sessions = folder.entries(Kind.SESSION)
    return Run(
        path=folder.path,
        name=status.name,
        recipe=recipe,
        series=series,
        scalars=contents.scalars(folder),
        environment=sessions[-1].values["environment"] if sessions else {},
        command=begun.values["command"],
        total_steps=status.total_steps,
        finished=status.finished,
        seconds=status.seconds,
        source=begun.values.get("source", {}),
        skipped=contents.skipped_steps(folder),
        averaged=averaged,
        outputs=outputs,
        averaged_outputs=averaged_outputs,
        labels=None if labels is None else torch.tensor(labels),
        texts=None if texts is None else tuple(texts),
        stages=status.stages,
        lost=status.lost,
        head=folder.journal.head,
    )


def read_status(path: str | Path | Folder, recipe_of: RecipeOf | None = None) -> Status:
    """Read how far a run is.

    Args:
        path: as for `read_run`.
        recipe_of: as for `read_run`.

    Raises:
        StoreError: if the folder holds no run.
    """
    folder, begun = _open(path)
    return _status(folder, begun, _recipe(begun, folder.path, recipe_of))


def _status(folder: Folder, begun: Entry, recipe: Recipe | None) -> Status:
    return Status(
        name=recipe.id if recipe else begun.values["source"]["name"],
        step=contents.newest_step(folder),
        total_steps=recipe.training.steps if recipe else begun.values.get("total_steps"),
        kernels=len(contents.by_step(folder, Kind.KERNEL)),
        snapshots=tuple(contents.by_step(folder, Kind.SNAPSHOT)),
        finished=contents.is_finished(folder),
        running=folder.is_owned(),
        diverged=contents.why_diverged(folder) is not None,
        seconds=contents.seconds_spent(folder),
        stages=contents.stages(folder),
        journal=folder.journal.state,
        lost=contents.losses(folder),
    )


def read_recipe(path: str | Path | Folder, recipe_of: RecipeOf) -> Recipe:
    """Read the recipe of a run.

    Args:
        path: as for `read_run`.
        recipe_of: as for `read_run`.

    Raises:
        StoreError: if the folder holds no run, or one that conescope did not train.
    """
    folder, begun = _open(path)
    recipe = _recipe(begun, folder.path, recipe_of)
    if recipe is None:
        raise StoreError(
            f"{folder.path} holds kernels of a training that is not conescope's own; to measure "
            f"them anew, give the checkpoints, not the run"
        )
    return recipe


def read_scalars(path: str | Path | Folder) -> dict[str, np.ndarray]:
    """Read a run's evaluations: "step" and each of `contents.SCALARS`, [E] each.

    Raises:
        StoreError: if the folder holds no run.
    """
    return contents.scalars(_open(path)[0])


def _recipe(begun: Entry, path: Path, recipe_of: RecipeOf | None) -> Recipe | None:
    fields = begun.values.get("recipe")
    if fields is None:
        return None
    if recipe_of is None:
        raise StoreError(f"{path} holds the run of a recipe; read it with conescope.load_run")
    return recipe_of(fields, str(path))


def _open(path: str | Path | Folder) -> tuple[Folder, Entry]:
    folder = path if isinstance(path, Folder) else Folder(Path(path))
    begun = folder.entries(Kind.RUN)
    if not begun:
        lost = shortened(folder.journal.lost) or "it is missing or empty"
        raise StoreError(
            f"{folder.path} holds no run that its journal.jsonl names: {lost}; give a folder that "
            f"conescope made, or run the command that made this one again"
        )
    if unnamed := contents.unnamed_files(folder):
        warnings.warn(
            f"{folder.path}/journal.jsonl has lost its end: it names neither {unnamed[0]} nor "
            f"{unnamed[-1]}; run the command that made this folder again, to make anew what is "
            f"lost",
            DamageWarning,
            stacklevel=3,
        )
    for entry in folder.files(Kind.RECIPE):
        if not folder.is_whole(entry):
            warnings.warn(
                f"{folder.path / entry.values['file']} is missing or not what this run was made "
                f"from, which is in the journal; the command that made the run writes it anew",
                DamageWarning,
                stacklevel=3,
            )
    return folder, begun[0]
