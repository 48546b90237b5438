"""The chaos effect: children of a snapshot whose weights differ a little, and how far they get.

From each of several snapshots of a run, children are trained to the run's end, on its data and with
its optimiser's state, from weights moved by a step of one relative size in a random direction. A
child without this step would be the run itself, to the last bit. So what lies between them at the
end says how much the training amplifies a difference (arXiv:2505.13900).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from conescope.errors import RecipeError, StoreError
from conescope.experiments.branches import branch_recipe
from conescope.experiments.experiment import Experiment
from conescope.experiments.stored import read_recipe, read_status
from conescope.experiments.switch import Child, scalars_at
from conescope.kernel.distance import Float64Array
from conescope.kernel.series import KernelSeries
from conescope.runs.contents import by_step, read_kernel
from conescope.runs.foreign import read_bounded
from conescope.runs.journal import Kind
from conescope.runs.shared_files import write_result
from conescope.runs.snapshots import find_snapshot, read_snapshot
from conescope.runs.store import Folder
from conescope.training.recipe import Recipe

FOLDER = "perturbed"
"""Names of these children's folders, in the run's folder `branches`, begin with this."""

TABLE = "perturb.csv"
"""The table of the newest results, in the run's folder `figures`."""

QUANTITIES = (
    "weights", "kernels", "weights_between", "kernels_between", "test_accuracy", "test_loss",
)  # fmt: skip
"""`PerturbationResult` has these numbers of each child."""

_LARGEST = 2**24


@dataclass(frozen=True)
class Perturbation:
    """The plan: P snapshots of a run, R children of each.

    Attributes:
        parent: the run's folder.
        points: the P iterations t of the snapshots, rising.
        until: the iteration T at which all are compared.
        size: norm of the first difference, relative to that of the weights.
        children: [P][R], of seeds 0 … R − 1.
    """

    parent: Path
    points: tuple[int, ...]
    until: int
    size: float
    children: list[list[Child]]

    def to_do(self) -> list[Child]:
        """Return the children that are not done."""
        return [child for row in self.children for child in row if not child.is_done]


@dataclass(frozen=True)
class PerturbationResult:
    """Distances at iteration T, NaN where a child diverged.

    Attributes:
        points: the P iterations t.
        until: T.
        size: norm of the first difference, relative to that of the weights.
        weights: norm of the difference of the weights of child and run, relative to the run's;
            [P, R].
        kernels: kernel distance S of child and run, [P, R].
        weights_between: as `weights`, mean over the other children of the same snapshot; [P, R].
        kernels_between: as `kernels`, mean over the other children; [P, R].
        test_accuracy: of the children, [P, R].
        test_loss: of the children, [P, R].
    """

    points: tuple[int, ...]
    until: int
    size: float
    weights: Float64Array
    kernels: Float64Array
    weights_between: Float64Array
    kernels_between: Float64Array
    test_accuracy: Float64Array
    test_loss: Float64Array


def plan_perturbation(
    parent: Path, points: Sequence[int], size: float, seeds: int = 3, until: int | None = None
) -> Perturbation:
    """Plan the children; nothing is trained or written.

    Args:
        parent: the run's folder.
        points: the iterations t of its snapshots, rising.
        size: norm of the first difference, relative to that of the weights.
        seeds: number R of children of each snapshot, at least 1.
        until: the iteration T at which all are compared; None for the run's end.

    Raises:
        RecipeError: if a number is out of range, the points do not rise, the run is linearised, or
            its learning rates are others in a training that ends at T.
        StoreError: if the run lacks a snapshot at a point, or a snapshot or kernel at T.
    """
    if not 0 < size < math.inf:
        raise RecipeError(
            f"--size is {size:g}, and a perturbation is a finite number above 0, such as 1e-3; "
            f"children without one are the run itself"
        )
    if seeds < 1:
        raise RecipeError(f"--seeds is {seeds}; give at least 1")
    if not points or list(points) != sorted(set(points)):
        raise RecipeError("the iterations must rise, each named once; write --at 0,100,500")
    recipe, folder = read_recipe(parent), Folder(parent)
    if recipe.dynamics.kind == "linearised":
        raise RecipeError(
            f"{parent} is linearised, and its children would train the network itself; perturb a "
            f"run of standard training"
        )
    end = recipe.training.steps if until is None else until
    for point in (*points, end):
        find_snapshot(folder, point)
    kernels = by_step(folder, Kind.KERNEL)
    if end not in kernels:
        raise StoreError(
            f"{parent} holds no kernel at iteration {end:,}, where all are compared; measure one "
            f"there by kernel.when, or choose T with --until"
        )
    children = [[_child(parent, t, size, seed, end) for seed in range(seeds)] for t in points]
    _check_same_rates(recipe, children[0][0].recipe, points[0])
    return Perturbation(parent, tuple(points), end, size, children)


def _check_same_rates(recipe: Recipe, child: Recipe, start: int) -> None:
    """Refuse children that end earlier than the run, if its schedule depends on its length."""
    until = child.training.steps
    if until == recipe.training.steps:
        return
    own, childs = (Experiment(each).multiplier for each in (recipe, child))
    if any(own(step) != childs(step) for step in range(start, until)):
        raise RecipeError(
            f"--until {until}: {recipe.lr_schedule.name} depends on the length of a training, so "
            f"children that end there have other learning rates than the run; leave out --until"
        )


def _child(parent: Path, at: int, size: float, seed: int, until: int) -> Child:
    recipe = branch_recipe(
        parent,
        at,
        [
            "--branch.optimizer=restored",
            f"--branch.perturbation={size!r}",
            f"--branch.perturbation_seed={seed}",
            f"--training.steps={until}",
            "--kernel.when=end",
            "--training.evaluate=end",
            "--snapshots.keep=end",
        ],
    )
    digest = recipe.id.rpartition("-")[2]
    return Child(parent / "branches" / f"{FOLDER}-{at:08d}-{seed}-{digest}", recipe)


def read_perturbation(plan: Perturbation) -> PerturbationResult:
    """Read the results of children that are done.

    Raises:
        StoreError: if a child is not done, or is that of another run.
    """
    if plan.to_do():
        raise StoreError(f"{plan.to_do()[0].path} is not done; the same command goes on with it")
    model = Experiment(read_recipe(plan.parent)).begin()[0]
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    measured = [_measured(plan, names, children) for children in plan.children]
    return PerturbationResult(
        plan.points,
        plan.until,
        plan.size,
        *(np.stack(rows) for rows in zip(*measured, strict=True)),
    )


def _measured(
    plan: Perturbation, names: Sequence[str], children: Sequence[Child]
) -> tuple[Float64Array, ...]:
    """Return the quantities of `PerturbationResult`, [R] each, of the children of a snapshot."""
    found = np.full((6, len(children)), np.nan)
    for child in children:
        _check_is_child(plan.parent, child)
    kept = [c for c, child in enumerate(children) if not read_status(child.path).diverged]
    folders = [Folder(plan.parent), *(Folder(children[c].path) for c in kept)]
    kernels = [read_kernel(f, by_step(f, Kind.KERNEL)[plan.until]) for f in folders]
    moved = KernelSeries(range(len(folders)), kernels).distances()
    weights = [_weights(folder, plan.until, names) for folder in folders]
    apart = np.array([[float((a - b).norm()) for b in weights] for a in weights])
    apart /= float(weights[0].norm())
    for place, column in enumerate(kept, start=1):
        others = [other for other in range(1, len(folders)) if other != place]
        found[:2, column] = apart[0, place], moved[0, place]
        if others:
            found[2:4, column] = apart[place, others].mean(), moved[place, others].mean()
        ended = scalars_at(children[column].path, plan.until)
        found[4:, column] = ended["test_accuracy"], ended["test_loss"]
    return tuple(found)


def _weights(folder: Folder, step: int, names: Sequence[str]) -> Tensor:
    held = read_snapshot(folder, find_snapshot(folder, step)).weights
    return torch.cat([held[name].double().flatten() for name in names])


def _check_is_child(parent: Path, child: Child) -> None:
    held, wanted = read_recipe(child.path).branch.parent, read_recipe(parent).id
    if held != wanted:
        raise StoreError(
            f"{child.path} is a child of {held}, and {parent} holds {wanted}; children of "
            f"different runs are not compared: remove the folder, and run the same command"
        )


def write_table(plan: Perturbation, result: PerturbationResult, file: Path) -> Path:
    """Write the results as CSV, one line for each child.

    Raises:
        StoreError: if the file cannot be written.
    """
    run = read_recipe(plan.parent).id
    written = io.StringIO(newline="")
    table = csv.writer(written)
    table.writerow(["run", "at", "seed", "until", "size", *QUANTITIES])
    for row, point in enumerate(result.points):
        for seed in range(result.kernels.shape[1]):
            values = [getattr(result, name)[row, seed] for name in QUANTITIES]
            table.writerow([run, point, seed, result.until, result.size, *values])
    return write_result(file, written.getvalue().encode())


def read_table(run: str, file: Path) -> PerturbationResult:
    """Read what `write_table` wrote.

    Args:
        run: the id of the run.
        file: the table.

    Raises:
        StoreError: if the file is no such table, or of another run.
    """
    text = read_bounded(file, StoreError, _LARGEST).decode(errors="replace")
    try:
        rows = list(csv.DictReader(io.StringIO(text)))
        runs = {row["run"] for row in rows}
        points, seeds = (sorted({int(row[name]) for row in rows}) for name in ("at", "seed"))
        if [(int(r["at"]), int(r["seed"])) for r in rows] != list(product(points, seeds)):
            raise ValueError
        shape = len(points), len(seeds)
        values = {q: np.array([float(r[q]) for r in rows]).reshape(shape) for q in QUANTITIES}
        until, size = int(rows[0]["until"]), float(rows[0]["size"])
    except (KeyError, ValueError, TypeError, IndexError):
        raise StoreError(
            f"{file} is no table of perturbed children; 'conescope perturb' writes it anew"
        ) from None
    if runs != {run}:
        raise StoreError(
            f"{file} is of children of {', '.join(sorted(runs))}, and not of {run}; move it away, "
            f"and give 'conescope perturb' again"
        )
    return PerturbationResult(tuple(points), until, size, **values)
