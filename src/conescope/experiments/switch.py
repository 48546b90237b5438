"""The switch experiment: linearised training from iteration t on against standard training.

From each switch point t two branches of a run, its children, are trained to the end: the Taylor
model of first order of the network at θ_t, and, as a control, the network itself by the same
procedure (arXiv:2503.16316, figure 2).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conescope.errors import RecipeError, StoreError, TrainingError
from conescope.experiments.branches import branch_recipe
from conescope.experiments.forecast import iteration_seconds
from conescope.experiments.session import run_experiment
from conescope.experiments.stored import read_recipe, read_status
from conescope.kernel.distance import Float64Array
from conescope.runs.contents import has_run
from conescope.runs.progress import Progress
from conescope.runs.reader import read_scalars
from conescope.runs.shared_files import write_result
from conescope.runs.snapshots import find_snapshot
from conescope.runs.store import Folder
from conescope.training.data import load_data
from conescope.training.losses import loss_of_guessing
from conescope.training.recipe import FIELDS, PARTS, Recipe
from conescope.training.recipe_fields import PLACE

DYNAMICS = ("linearised", "standard")
QUANTITIES = ("test_accuracy", "test_loss", "train_loss")

CHILD_FIELDS = ("--kernel.when=never", "--training.evaluate=end", "--snapshots.keep=end")
"""Fields of all children, as on the command line: only how they end is compared."""


@dataclass(frozen=True)
class Child:
    """A branch that the experiment trains.

    Attributes:
        path: its run folder.
        recipe: what it trains.
    """

    path: Path
    recipe: Recipe

    @property
    def is_done(self) -> bool:
        """Whether it has nothing more to do: finished, or diverged."""
        if not has_run(Folder(self.path)):
            return False
        status = read_status(self.path)
        return status.finished or status.diverged


@dataclass(frozen=True)
class Switch:
    """The plan of an experiment: R runs, P switch points, a child of each run, point and dynamics.

    Attributes:
        parents: the R runs' folders.
        points: the P switch points t, rising.
        until: the iteration T at which all are compared.
        children: dynamics → the children, [R][P].
    """

    parents: tuple[Path, ...]
    points: tuple[int, ...]
    until: int
    children: dict[str, list[list[Child]]]

    def to_do(self) -> list[Child]:
        """Return the children that are not done, run by run."""
        rows = [row for dynamics in DYNAMICS for row in self.children[dynamics]]
        return [child for row in rows for child in row if not child.is_done]


@dataclass(frozen=True)
class SwitchResult:
    """The results of a switch experiment.

    Attributes:
        points: the P switch points t.
        until: the iteration T at which all are compared.
        children: dynamics → quantity (`QUANTITIES`) → values at T, [R, P]; accuracies in [0, 1],
            losses in nats, NaN where the loss was not finite.
        parents: quantity → values of the R runs at T, [R].
        diverged: dynamics → whether the child's loss was no longer finite, or its training loss
            ended above that of guessing (ln c for cross-entropy); [R, P].
    """

    points: tuple[int, ...]
    until: int
    children: dict[str, dict[str, Float64Array]]
    parents: dict[str, Float64Array]
    diverged: dict[str, np.ndarray]


def plan_switch(
    parents: Sequence[Path], points: Sequence[int], overrides: Sequence[str] = ()
) -> Switch:
    """Plan a switch experiment; nothing is trained or written.

    Args:
        parents: folders of runs that differ in nothing but their seeds.
        points: the switch points t; each run holds a snapshot at each.
        overrides: fields in which the children differ from their parents, as on the command
            line, e.g. `["--optimizer.lr", "0.01"]`; `--training.steps` sets T.

    Raises:
        RecipeError: if the points do not rise, a run is named twice, two runs differ in more
            than their seeds, or a field is unknown or has a wrong value.
        StoreError: if a run lacks a snapshot at a point, or an evaluation at T.
    """
    rising = tuple(sorted(set(points)))
    if not rising or rising != tuple(points):
        raise RecipeError("the switch points must rise, each named once; write --at 0,500,1000")
    if len({parent.resolve() for parent in parents}) < len(parents):
        raise RecipeError("a run is named twice; name each once, so that it counts once")
    _check_alike(parents)
    for parent in parents:
        for point in rising:
            find_snapshot(Folder(parent), point)
    children = {
        dynamics: [[_child(parent, t, dynamics, overrides) for t in rising] for parent in parents]
        for dynamics in DYNAMICS
    }
    until = children["standard"][0][0].recipe.training.steps
    for parent in parents:
        scalars_at(parent, until)
    return Switch(tuple(parents), rising, until, children)


def switch_seconds(switch: Switch) -> float:
    """Estimate how long the children that are not done will take, in seconds, on this machine.

    Raises:
        ConescopeError: if they cannot be trained here.
    """
    to_do = switch.to_do()
    total = 0.0
    for dynamics in DYNAMICS:
        recipes = [child.recipe for child in to_do if child.recipe.dynamics.kind == dynamics]
        if recipes:
            left = sum(recipe.training.steps - recipe.branch.at for recipe in recipes)
            total += left * iteration_seconds(recipes[0])
    return total


def carry_out(
    child: Child,
    *,
    command: str,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train a child to its end, or until it diverges, which its folder notes.

    Args:
        child: the child.
        command: the shell command that makes it, for the record.
        progress: what is told how far it is.
        should_stop: asked after every iteration; on true the state is stored and the child left.

    Returns:
        Whether it is done.
    """
    try:
        return run_experiment(
            child.recipe, child.path, command=command, progress=progress, should_stop=should_stop
        )
    except TrainingError:
        return True


def read_switch(switch: Switch) -> SwitchResult:
    """Read the results of a switch experiment.

    Raises:
        StoreError: if a child is not done.
    """
    if switch.to_do():
        raise StoreError(f"{switch.to_do()[0].path} is not done; the same command goes on with it")
    shape = len(switch.parents), len(switch.points)
    children = {d: {q: np.full(shape, np.nan) for q in QUANTITIES} for d in DYNAMICS}
    for dynamics, rows in switch.children.items():
        for place in np.ndindex(shape):
            path = rows[place[0]][place[1]].path
            if not read_status(path).diverged:
                found = scalars_at(path, switch.until)
                for quantity in QUANTITIES:
                    children[dynamics][quantity][place] = found[quantity]
    ends = [scalars_at(parent, switch.until) for parent in switch.parents]
    recipe = switch.children["standard"][0][0].recipe
    guessing = loss_of_guessing(recipe.training.loss, load_data(recipe.data).classes)
    return SwitchResult(
        points=switch.points,
        until=switch.until,
        children=children,
        parents={q: np.array([end[q] for end in ends]) for q in QUANTITIES},
        diverged={d: ~(children[d]["train_loss"] <= guessing) for d in DYNAMICS},
    )


def write_table(switch: Switch, result: SwitchResult, file: Path) -> None:
    """Write the results as CSV, one line for each child and each parent.

    Raises:
        StoreError: if the file cannot be written.
    """
    names = ["run", "dynamics", "switch", "until", *QUANTITIES, "diverged"]
    written = io.StringIO(newline="")
    table = csv.writer(written)
    table.writerow(names)
    for row, parent in enumerate(switch.parents):
        values = [result.parents[q][row] for q in QUANTITIES]
        table.writerow([parent, "parent", "", result.until, *values, False])
        for dynamics in DYNAMICS:
            for column, point in enumerate(result.points):
                values = [result.children[dynamics][q][row, column] for q in QUANTITIES]
                diverged = result.diverged[dynamics][row, column]
                table.writerow([parent, dynamics, point, result.until, *values, diverged])
    write_result(file, written.getvalue().encode())


def child_path(parent: Path, recipe: Recipe) -> Path:
    """Return the run folder of a child of a run."""
    digest = recipe.id.rpartition("-")[2]
    return parent / "branches" / f"{recipe.dynamics.kind}-{recipe.branch.at:08d}-{digest}"


def _check_alike(parents: Sequence[Path]) -> None:
    """Raise `RecipeError` if runs differ in a field that changes numbers, other than the seed."""
    apart = {"seed", "device", "threads", "branch.parent"}
    compared = [name for name, field in FIELDS.items() if field.metadata != PLACE]
    compared = [name for name in compared if name not in apart]
    compared += [f"{section}.options" for section in PARTS]
    first, *others = (read_recipe(parent) for parent in parents)
    for parent, other in zip(parents[1:], others, strict=True):
        for name in compared:
            if first.get(name) != other.get(name):
                raise RecipeError(
                    f"{parents[0]} and {parent} are not seeds of one recipe: {name} is "
                    f"{first.get(name)!r} and {other.get(name)!r}; name runs that differ in their "
                    f"seeds only"
                )


def _child(parent: Path, point: int, dynamics: str, overrides: Sequence[str]) -> Child:
    recipe = branch_recipe(
        parent, point, [*overrides, f"--dynamics.kind={dynamics}", *CHILD_FIELDS]
    )
    return Child(child_path(parent, recipe), recipe)


def scalars_at(path: Path, step: int) -> dict[str, float]:
    """Return what a run was evaluated to at an iteration: quantity → value.

    Raises:
        StoreError: if it was not evaluated there; the nearest iterations are named.
    """
    scalars = read_scalars(path)
    places = np.flatnonzero(scalars["step"] == step)
    if not len(places):
        evaluated = scalars["step"]
        nearest = sorted(sorted(evaluated, key=lambda other: abs(other - step))[:2])
        raise StoreError(
            f"{path} was not evaluated at iteration {step:,}, where all are compared; nearest: "
            f"{', '.join(f'{other:,}' for other in nearest) or 'none'}; choose T with "
            f"--training.steps, or evaluate there by training.evaluate"
        )
    return {name: float(values[places[0]]) for name, values in scalars.items()}
