"""A session of work on a run folder: train, measure when the recipe says so, store.

A session may end at any moment; the next one goes on from the newest snapshot before anything
that is missing, and every number comes out as if there had been one session only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from conescope.errors import StoreError, TrainingError
from conescope.experiments.experiment import Experiment
from conescope.experiments.stored import read_recipe
from conescope.runs import contents
from conescope.runs.environment import reproducible
from conescope.runs.journal import Entry, Kind
from conescope.runs.progress import Progress
from conescope.runs.snapshots import SnapshotState, find_snapshot, read_snapshot
from conescope.runs.store import Folder
from conescope.runs.writer import RunWriter
from conescope.training.loop import Snapshot
from conescope.training.recipe import Recipe
from conescope.training.recipe_fields import BranchRecipe


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
        recipe: the recipe to carry out.
        path: the run folder; made if need be.
        command: the shell command that makes this run, for the record.
        progress: what is told how far it is.
        should_stop: asked after every iteration; on true the state is stored and the run left.

    Returns:
        Whether the run is complete.

    Raises:
        TrainingError: if the loss is no longer finite, in this session or in an earlier one.
        ConescopeError: if something else is wrong; what was stored before stays, and the same
            call goes on from there.
    """
    with RunWriter(path) as writer, reproducible(recipe.device, recipe.threads):
        begun_with = _check_same_recipe(writer, recipe)
        _check_not_diverged(writer)
        experiment = Experiment(recipe)
        _ = experiment.moments  # refuses schedules that fire too often, before anything is written
        origin = _read_origin(writer, recipe.branch, experiment.data.digest)
        model, optimizer = experiment.begin(origin)
        begun = Snapshot(recipe.branch.at, model, optimizer, experiment.average(model))
        fields, text = begun_with.to_dict(), begun_with.to_yaml()
        writer.begin_recipe(fields, text, command, experiment.probe_labels)
        writer.begin_session(recipe.device, experiment.code, experiment.data.digest)
        if origin is not None:
            writer.write_origin(origin)
        recorder = _Recorder(writer, experiment)
        start = recorder.restore(begun)
        if progress is not None:
            progress.begin(recipe.id, start, recipe.training.steps)
        return recorder.follow(begun, start, progress, should_stop)


@dataclass(frozen=True)
class _Stored:
    """The iterations of which a run folder holds something; damaged files do not count."""

    evaluations: Set[int]
    kernels: Mapping[Kind, Set[int]]
    snapshots: Mapping[int, Entry]


class _Recorder:
    """Stores what the recipe wants of a training, unless it is stored already."""

    def __init__(self, writer: RunWriter, experiment: Experiment) -> None:
        self._writer, self._experiment = writer, experiment
        self._stored = _Stored(
            evaluations=contents.evaluated_steps(writer.folder),
            kernels={kind: writer.whole(kind).keys() for kind in contents.KERNEL_FOLDERS},
            snapshots=writer.whole(Kind.SNAPSHOT),
        )

    def restore(self, begun: Snapshot) -> int:
        """Load the newest snapshot before anything that is missing, and return its iteration."""
        moments, stored = self._experiment.moments, self._stored
        missing = (moments.evaluate - stored.evaluations) | (moments.keep - stored.snapshots.keys())
        kernels = {
            moment for k in _measured(begun) for moment in moments.kernel - stored.kernels[k]
        }
        missing |= kernels
        first = min(missing, default=self._experiment.recipe.training.steps)
        start = max((step for step in stored.snapshots if step <= first), default=begun.step)
        if kernels and (start > begun.step or begun.step not in kernels):
            # The engine chooses its routes once: by the same weights in every session.
            for model in _measured(begun).values():
                self._experiment.measure(model)
        if start in stored.snapshots:
            state = read_snapshot(self._writer.folder, stored.snapshots[start])
            state.load_into(begun.model, begun.optimizer, begun.average)
        return start

    def follow(
        self,
        begun: Snapshot,
        start: int,
        progress: Progress | None,
        should_stop: Callable[[], bool],
    ) -> bool:
        """Train from iteration `start` on, and store; return whether the run is complete."""
        experiment, recipe = self._experiment, self._experiment.recipe
        step, snapshots = start, experiment.train(begun, start)
        try:
            for snapshot in snapshots:
                step = snapshot.step
                self._look(snapshot)
                if progress is not None:
                    progress.advance(step)
                if step < recipe.training.steps and should_stop():
                    self._store(snapshot)
                    return False
        except TrainingError as error:
            self._writer.diverge(step, str(error))
            raise
        self._writer.finish()
        return True

    def _look(self, snapshot: Snapshot) -> None:
        step, moments = snapshot.step, self._experiment.moments
        if step in moments.evaluate - self._stored.evaluations:
            self._writer.write_evaluation(step, self._experiment.evaluate(snapshot))
        for kind, model in _measured(snapshot).items():
            if step in moments.kernel - self._stored.kernels[kind]:
                measured = self._experiment.measure_with_outputs(model)
                self._writer.write_kernel(step, *measured, kind=kind)
        if step in (moments.keep | moments.resume) - self._stored.snapshots.keys():
            self._store(snapshot)

    def _store(self, snapshot: Snapshot) -> None:
        state = SnapshotState.of(
            snapshot.step, snapshot.model, snapshot.optimizer, snapshot.average
        )
        self._writer.write_snapshot(state, self._experiment.moments.keep)


def _measured(snapshot: Snapshot) -> dict[Kind, nn.Module]:
    """Return the networks whose kernels are taken, by the kind of kernel."""
    if snapshot.average is None:
        return {Kind.KERNEL: snapshot.model}
    return {Kind.KERNEL: snapshot.model, Kind.AVERAGED_KERNEL: snapshot.average.module}


def _read_origin(writer: RunWriter, branch: BranchRecipe, data: str | None) -> SnapshotState | None:
    """Read the snapshot that a branch starts from: the folder's own copy, or the parent's."""
    if branch.run is None:
        return None
    held = list(writer.whole(Kind.ORIGIN).values())
    if held:
        return read_snapshot(writer.folder, held[-1])
    parent = Folder(Path(branch.run))
    _check_is_parent(parent, branch)
    contents.check_same_data(parent, data)
    return read_snapshot(parent, find_snapshot(parent, branch.at)).without_linearization()


def _check_is_parent(parent: Folder, branch: BranchRecipe) -> None:
    held = read_recipe(parent.path).id
    if held != branch.parent:
        raise StoreError(
            f"{parent.path} holds the run {held}, but the branch's parent is {branch.parent}; "
            f"give the parent's folder with --from"
        )


def _check_same_recipe(writer: RunWriter, recipe: Recipe) -> Recipe:
    """Return the recipe that the run was begun with, which may have another name."""
    if not writer.has_begun:
        return recipe
    held = read_recipe(writer.path)
    if held.digest != recipe.digest:
        raise StoreError(
            f"{writer.path} holds another run, {held.id}, and this one is {recipe.id}; choose "
            f"another folder with --out"
        )
    return held


def _check_not_diverged(writer: RunWriter) -> None:
    if reason := contents.why_diverged(writer.folder):
        raise TrainingError(
            f"{writer.path} has diverged before: {reason}; change the recipe or the folder"
        )
