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
from typing import Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from conescope.errors import DamageWarning, StoreError
from conescope.experiment import Experiment, reproducible
from conescope.recipe import Recipe
from conescope.recipes import recipe_from_dict
from conescope.record import begin_session
from conescope.run import is_finished, seconds_spent, write_kernel
from conescope.store import Entry, Folder
from conescope.training import Snapshot, train

_RESUMABLE = 2


class Progress(Protocol):
    """Who is told how far a run is."""

    def begin(self, name: str, step: int, total: int) -> None:
        """A run called `name` goes on at iteration `step` of `total`."""

    def advance(self, step: int) -> None:
        """Iteration `step` is done, with everything measured at it."""


class _Silent:
    def begin(self, name: str, step: int, total: int) -> None: ...

    def advance(self, step: int) -> None: ...


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
        ConescopeError: if something is wrong; what was stored before stays, and the same call
            goes on from there.
    """
    progress = progress or _Silent()
    folder = Folder(path)
    with folder.owned(), reproducible(recipe):
        _check_same_recipe(folder, recipe)
        experiment = Experiment(recipe)
        model, optimizer = experiment.fresh()
        _claim(folder, recipe, command)
        stored = _take_stock(folder)
        start = _restore(folder, experiment, stored, model, optimizer)
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
        )
        for snapshot in snapshots:
            recorder.look(snapshot)
            progress.advance(snapshot.step)
            if snapshot.step < recipe.training.steps and should_stop():
                recorder.store_snapshot(snapshot)
                return False
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
        if step in moments.kernel - self._stored.kernels:
            kernel = self._experiment.measure(snapshot)
            write_kernel(self._folder, step, kernel, self.seconds())
        if step in (moments.keep | moments.resume) - self._stored.snapshots.keys():
            self.store_snapshot(snapshot)

    def store_snapshot(self, snapshot: Snapshot) -> None:
        step = snapshot.step
        state = snapshot.optimizer.state_dict()
        tensors = {f"model.{name}": t for name, t in snapshot.model.state_dict().items()}
        for index, slots in state["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in slots.items()}
        self._folder.write_tensors(
            "snapshot",
            f"snapshots/{step:08d}.safetensors",
            tensors,
            step=step,
            seconds=self.seconds(),
            param_groups=state["param_groups"],
        )
        passing = [
            entry
            for entry in self._folder.files("snapshot")
            if entry.values["step"] not in self._experiment.moments.keep
        ]
        for entry in passing[:-_RESUMABLE]:
            self._folder.remove(entry)


@dataclass(frozen=True)
class _Stored:
    """What a run folder holds, by iteration; damaged files do not count."""

    evaluations: Set[int]
    kernels: Set[int]
    snapshots: Mapping[int, Entry]


def _take_stock(folder: Folder) -> _Stored:
    """Check every file; name each that is missing or damaged in a warning."""
    whole: dict[str, dict[int, Entry]] = {"kernel": {}, "snapshot": {}}
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
    return _Stored(evaluations, whole["kernel"].keys(), whole["snapshot"])


def _restore(
    folder: Folder, experiment: Experiment, stored: _Stored, model: nn.Module, optimizer: Optimizer
) -> int:
    """Load the newest snapshot before anything that is missing; return its iteration, or 0."""
    moments = experiment.moments
    missing = (
        (moments.evaluate - stored.evaluations)
        | (moments.kernel - stored.kernels)
        | (moments.keep - stored.snapshots.keys())
    )
    first = min(missing, default=experiment.recipe.training.steps)
    start = max((step for step in stored.snapshots if step <= first), default=0)
    if start > 0:
        _load_snapshot(folder, stored.snapshots[start], model, optimizer)
    return start


def _load_snapshot(folder: Folder, entry: Entry, model: nn.Module, optimizer: Optimizer) -> None:
    weights: dict[str, Tensor] = {}
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in folder.read_tensors(entry).items():
        part, _, rest = name.partition(".")
        if part == "model":
            weights[rest] = tensor
        else:
            index, _, key = rest.partition(".")
            state.setdefault(int(index), {})[key] = tensor
    model.load_state_dict(weights)
    optimizer.load_state_dict({"state": state, "param_groups": entry.values["param_groups"]})


def _check_same_recipe(folder: Folder, recipe: Recipe) -> None:
    begun = folder.entries("run")
    if not begun:
        return
    held = recipe_from_dict(begun[0].values["recipe"], str(folder.path))
    if held.id.rpartition("-")[2] != recipe.id.rpartition("-")[2]:
        raise StoreError(
            f"{folder.path} holds another run, {held.id}, and this one is {recipe.id}; choose "
            f"another folder with --out"
        )


def _claim(folder: Folder, recipe: Recipe, command: str) -> None:
    if not folder.entries("run"):
        folder.write_bytes("recipe.yaml", recipe.to_yaml().encode())
        folder.append("run", recipe=recipe.to_dict(), command=command)
    begin_session(folder, recipe.device)
