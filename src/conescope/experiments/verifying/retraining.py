"""Retraining: a recipe's training from states that its run folder holds, and its results there."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from conescope.errors import KernelError, ModelError, StoreError, TrainingError
from conescope.experiments.experiment import Experiment
from conescope.experiments.verifying.results import (
    Result,
    kernel_result,
    noted,
    one_unit_off,
    stored_result,
)
from conescope.experiments.verifying.stretches import Stretch
from conescope.runs.contents import KERNEL_FOLDERS, SCALARS, by_step, check_same_data
from conescope.runs.journal import Entry, Kind
from conescope.runs.progress import Progress
from conescope.runs.snapshots import SnapshotState, read_snapshot
from conescope.runs.store import Folder
from conescope.training.loop import Snapshot
from conescope.training.recipe import Recipe

_STATE = ("step", "param_groups", "plain_slots")


class Retraining:
    """A recipe's training, made again from the states that its run folder holds.

    Args:
        folder: the run folder.
        recipe: its recipe.

    Attributes:
        experiment: the recipe made concrete.
        results: kind → iteration → the entry of each result that can be computed again.
        states: the iterations of the known states, rising: first the beginning, which follows from
            the seed or from a branch's origin, then the snapshots.

    Raises:
        ConescopeError: if the recipe cannot be carried out here.
        StoreError: if the data are others than those of the run, or a branch lacks its origin.
    """

    def __init__(self, folder: Folder, recipe: Recipe) -> None:
        self.folder, self.experiment = folder, Experiment(recipe)
        check_same_data(folder, self.experiment.data.digest)
        model, optimizer = self.experiment.begin(_origin(folder, recipe))
        average = self.experiment.average(model)
        self._live = Snapshot(recipe.branch.at, model, optimizer, average)
        self._start = copy.deepcopy(_state(self._live))
        self.results: dict[Kind, dict[int, Entry]] = {
            kind: {s: e for s, e in by_step(folder, kind).items() if folder.is_whole(e)}
            for kind in (*KERNEL_FOLDERS, Kind.SNAPSHOT)
        }
        if folder.is_owned():  # whoever works on the run may remove the other snapshots meanwhile
            kept = self.experiment.moments.keep
            snapshots = self.results[Kind.SNAPSHOT].items()
            self.results[Kind.SNAPSHOT] = {s: e for s, e in snapshots if s in kept}
        evaluations = {e.values["step"]: e for e in folder.entries(Kind.EVALUATION)}
        self.results[Kind.EVALUATION] = evaluations
        self.results[Kind.DIVERGED] = {
            e.values["step"]: e for e in folder.entries(Kind.DIVERGED)[:1]
        }
        begin = recipe.branch.at
        self.states = [begin, *(s for s in sorted(self.results[Kind.SNAPSHOT]) if s > begin)]
        if any(self.results[kind] for kind in KERNEL_FOLDERS):
            # As a session does: the engine chooses its routes once, by the first weights.
            for measured in self._networks(self._live).values():
                self.experiment.measure(measured)

    def follow(
        self, stretch: Stretch, progress: Progress, *, shaken: bool = False
    ) -> Iterator[tuple[Kind, int, Result]]:
        """Train a stretch, and yield kind, iteration and value of what the folder holds of it.

        Results at the stretch's start come only if it has no length.

        Args:
            stretch: from where to where.
            progress: what is told of each iteration.
            shaken: whether to begin with weights that differ by one rounding.

        Raises:
            ModelError: if the state at the start has no kernel.
            KernelError: if a kernel is not finite.
        """
        state = self._known(stretch.start)
        live = self._live
        (_shaken(state) if shaken else state).load_into(live.model, live.optimizer, live.average)
        step = stretch.start
        try:
            for snapshot in self.experiment.train(live, stretch.start, stretch.stop):
                step = snapshot.step
                progress.advance(step)
                if step > stretch.start or stretch.start == stretch.stop:
                    yield from self._results_at(snapshot, stretch)
        except TrainingError as error:
            yield Kind.DIVERGED, step, Result(texts={"reason": str(error)})

    def stored(self, kind: Kind, step: int) -> Result:
        """Return a result as the folder holds it.

        Raises:
            StoreError: if its file is missing or damaged.
        """
        values = self.results[kind][step].values
        if kind == Kind.EVALUATION:
            return noted({name: values[name] for name in SCALARS if name in values})
        if kind == Kind.DIVERGED:
            return Result(texts={"reason": str(values.get("reason"))})
        entry = self.results[kind][step]
        if kind == Kind.SNAPSHOT:
            return stored_result(self.folder, entry, _STATE)
        return stored_result(self.folder, entry)

    def _results_at(
        self, snapshot: Snapshot, stretch: Stretch
    ) -> Iterator[tuple[Kind, int, Result]]:
        step = snapshot.step
        if step in self.results[Kind.EVALUATION]:
            yield Kind.EVALUATION, step, noted(self.experiment.evaluate(snapshot))
        for kind, network in self._networks(snapshot).items():
            if step in self.results[kind]:
                yield kind, step, _measured(self.experiment, network, self.results[kind][step])
        is_loaded = step == stretch.start != self.states[0]
        if step in self.results[Kind.SNAPSHOT] and not is_loaded:
            state = _state(snapshot)
            yield Kind.SNAPSHOT, step, noted(state.plain_values(), state.tensors())

    def _known(self, step: int) -> SnapshotState:
        if step == self.states[0]:
            return copy.deepcopy(self._start)
        return read_snapshot(self.folder, self.results[Kind.SNAPSHOT][step])

    def _networks(self, snapshot: Snapshot) -> dict[Kind, nn.Module]:
        if snapshot.average is None:
            return {Kind.KERNEL: snapshot.model}
        return {Kind.KERNEL: snapshot.model, Kind.AVERAGED_KERNEL: snapshot.average.module}


def _origin(folder: Folder, recipe: Recipe) -> SnapshotState | None:
    if recipe.branch.run is None:
        return None
    held = folder.files(Kind.ORIGIN)
    if not held:
        raise StoreError(
            f"{folder.path} is a branch without a copy of the snapshot it starts from; run its "
            f"command again, which stores one"
        )
    return read_snapshot(folder, held[-1])


def _state(snapshot: Snapshot) -> SnapshotState:
    return SnapshotState.of(snapshot.step, snapshot.model, snapshot.optimizer, snapshot.average)


def _shaken(state: SnapshotState) -> SnapshotState:
    """Return a state whose weights differ, each by one unit in the last place, up or down."""
    generator = torch.Generator().manual_seed(0)

    def shake(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: one_unit_off(tensor, generator) for name, tensor in weights.items()}

    return replace(state, weights=shake(state.weights), average=shake(state.average))


def _measured(experiment: Experiment, network: nn.Module, entry: Entry) -> Result:
    """Return the kernel of a network as a result; one that cannot be measured has only a text."""
    try:
        return kernel_result(*experiment.measure_with_outputs(network), entry)
    except (KernelError, ModelError) as error:
        return Result(texts={"kernel": str(error)})
