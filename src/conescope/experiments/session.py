"""Session: one sitting of work on a run folder: train, look when the recipe says so, store.

A session may end at any moment; the next one goes on from the newest snapshot before anything
that is missing, and every number comes out as if there had been one session only.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from conescope.errors import DamageWarning, StoreError, TrainingError
from conescope.experiments.experiment import Experiment, reproducible
from conescope.experiments.stored import read_recipe
from conescope.runs.progress import Progress, Silent
from conescope.runs.reader import KERNEL_FOLDERS, is_finished, seconds_spent, write_kernel
from conescope.runs.record import begin_session
from conescope.runs.snapshots import SnapshotState, find_snapshot, read_snapshot, write_snapshot
from conescope.runs.store import Entry, Folder
from conescope.training.loop import Snapshot, train
from conescope.training.recipe import Recipe
from conescope.training.recipe_fields import BranchRecipe

_RESUMABLE = 2


def run_experiment(
    recipe: Recipe,
    path: Path,
    *,
    command: str,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Carry out a recipe in a run folder, from where the folder's journal ends.

    Args:
        recipe: what to do.
        path: the run folder; made if need be.
        command: the shell command that makes this run, for the record.
        progress: who is told how far it is.
        should_stop: asked after every iteration; on true the state is stored and the run left.

    Returns:
        Whether the run is complete.

    Raises:
        TrainingError: if the loss is no longer finite, in this session or in an earlier one.
        ConescopeError: if something else is wrong; what was stored before stays, and the same
            call goes on from there.
    """
    progress = progress or Silent()
    folder = Folder(path)
    with folder.owned(), reproducible(recipe):
        _check_same_recipe(folder, recipe)
        _check_not_diverged(folder)
        experiment = Experiment(recipe)
        origin = _read_origin(folder, recipe.branch)
        model, optimizer = experiment.begin(origin)
        begun = Snapshot(recipe.branch.at, model, optimizer, experiment.average(model))
        _claim(folder, experiment, command)
        _keep_origin(folder, origin)
        stored = _take_stock(folder)
        start = _restore(folder, experiment, stored, begun)
        recorder = _Recorder(folder, experiment, stored)
        progress.begin(recipe.id, start, recipe.training.steps)
        snapshots = train(
            model,
            optimizer,
            experiment.batch,
            experiment.multiplier,
            start=start,
            stop=recipe.training.steps,
            seed=recipe.seed,
            average=begun.average,
        )
        step = start
        try:
            for snapshot in snapshots:
                step = snapshot.step
                recorder.look(snapshot)
                progress.advance(step)
                if step < recipe.training.steps and should_stop():
                    recorder.store_snapshot(snapshot)
                    return False
        except TrainingError as error:
            folder.append("diverged", step=step, reason=str(error), seconds=recorder.seconds())
            raise
        if not is_finished(folder):
            folder.append("finished", seconds=recorder.seconds())
        return True


class _Recorder:
    """Takes and stores what the recipe wants of a snapshot, unless it is stored already."""

    def __init__(self, folder: Folder, experiment: Experiment, stored: _Stored) -> None:
        self._folder, self._experiment, self._stored = folder, experiment, stored
        self._spent, self._begun = seconds_spent(folder), time.monotonic()

    def seconds(self) -> float:
        return round(self._spent + time.monotonic() - self._begun, 3)

    def look(self, snapshot: Snapshot) -> None:
        step, moments = snapshot.step, self._experiment.moments
        if step in moments.evaluate - self._stored.evaluations:
            values = self._experiment.evaluate(snapshot)
            self._folder.append("evaluation", step=step, seconds=self.seconds(), **values)
        for kind, model in _measured(snapshot).items():
            if step in moments.kernel - self._stored.kernels[kind]:
                kernel = self._experiment.measure(model)
                write_kernel(self._folder, step, kernel, self.seconds(), kind=kind)
        if step in (moments.keep | moments.resume) - self._stored.snapshots.keys():
            self.store_snapshot(snapshot)

    def store_snapshot(self, snapshot: Snapshot) -> None:
        file = f"snapshots/{snapshot.step:08d}.safetensors"
        state = SnapshotState.of(
            snapshot.step, snapshot.model, snapshot.optimizer, snapshot.average
        )
        write_snapshot(self._folder, "snapshot", file, state, seconds=self.seconds())
        passing = [
            entry
            for entry in self._folder.files("snapshot")
            if entry.values["step"] not in self._experiment.moments.keep
        ]
        for entry in sorted(passing, key=lambda entry: entry.values["step"])[:-_RESUMABLE]:
            self._folder.remove(entry)


@dataclass(frozen=True)
class _Stored:
    """What a run folder holds, by iteration; damaged files do not count."""

    evaluations: Set[int]
    kernels: Mapping[str, Set[int]]
    snapshots: Mapping[int, Entry]


def _measured(snapshot: Snapshot) -> dict[str, nn.Module]:
    """Kind of kernel → the network that it is of."""
    if snapshot.average is None:
        return {"kernel": snapshot.model}
    return {"kernel": snapshot.model, "averaged kernel": snapshot.average.module}


def _take_stock(folder: Folder) -> _Stored:
    """Check every file; name each that is missing or damaged in a warning."""
    whole: dict[str, dict[int, Entry]] = {kind: {} for kind in (*KERNEL_FOLDERS, "snapshot")}
    for kind, entries in whole.items():
        for entry in folder.files(kind):
            if folder.is_whole(entry):
                entries[entry.values["step"]] = entry
                continue
            file = folder.path / entry.values["file"]
            warnings.warn(
                f"{file} is missing or damaged; going back to before it",
                DamageWarning,
                stacklevel=3,
            )
    evaluations = {entry.values["step"] for entry in folder.entries("evaluation")}
    kernels = {kind: whole[kind].keys() for kind in KERNEL_FOLDERS}
    return _Stored(evaluations, kernels, whole["snapshot"])


def _restore(folder: Folder, experiment: Experiment, stored: _Stored, begun: Snapshot) -> int:
    """Load the newest snapshot before anything that is missing; return where training starts."""
    moments = experiment.moments
    missing = (moments.evaluate - stored.evaluations) | (moments.keep - stored.snapshots.keys())
    for kind in _measured(begun):
        missing |= moments.kernel - stored.kernels[kind]
    first = min(missing, default=experiment.recipe.training.steps)
    start = max((step for step in stored.snapshots if step <= first), default=begun.step)
    if start in stored.snapshots:
        state = read_snapshot(folder, stored.snapshots[start])
        state.load_into(begun.model, begun.optimizer, begun.average)
    return start


def _read_origin(folder: Folder, branch: BranchRecipe) -> SnapshotState | None:
    """The snapshot that a branch starts from: the folder's own copy of it, or the parent's."""
    if branch.run is None:
        return None
    held = [entry for entry in folder.files("origin") if folder.is_whole(entry)]
    if held:
        return read_snapshot(folder, held[-1])
    parent = Folder(Path(branch.run))
    _check_is_parent(parent, branch)
    return read_snapshot(parent, find_snapshot(parent, branch.at)).without_linearization()


def _keep_origin(folder: Folder, origin: SnapshotState | None) -> None:
    """Store the branch's own copy of its start: the parent may go."""
    if origin is not None and not any(map(folder.is_whole, folder.files("origin"))):
        write_snapshot(folder, "origin", "origin.safetensors", origin)


def _check_is_parent(parent: Folder, branch: BranchRecipe) -> None:
    held = read_recipe(parent.path).id
    if held != branch.parent:
        raise StoreError(
            f"{parent.path} holds the run {held}, but the branch's parent is {branch.parent}; "
            f"give the parent's folder with --from"
        )


def _check_same_recipe(folder: Folder, recipe: Recipe) -> None:
    if not folder.entries("run"):
        return
    held = read_recipe(folder.path)
    if held.id.rpartition("-")[2] != recipe.id.rpartition("-")[2]:
        raise StoreError(
            f"{folder.path} holds another run, {held.id}, and this one is {recipe.id}; choose "
            f"another folder with --out"
        )


def _check_not_diverged(folder: Folder) -> None:
    for entry in folder.entries("diverged"):
        raise TrainingError(f"{folder.path} has diverged before: {entry.values['reason']}")


def _claim(folder: Folder, experiment: Experiment, command: str) -> None:
    recipe = experiment.recipe
    if not folder.entries("run"):
        folder.write_bytes("recipe.yaml", recipe.to_yaml().encode())
        labels = experiment.probe_labels
        folder.append("run", recipe=recipe.to_dict(), command=command, labels=labels)
    begin_session(folder, recipe.device)
