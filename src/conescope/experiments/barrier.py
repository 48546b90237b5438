"""The barrier between trained networks: loss and error on the straight line between their weights.

Two networks are linearly connected if neither loss nor error rises on the line between them
(Frankle et al., arXiv:1912.05671). The barrier is the most by which a value on the line exceeds the
line between its ends (Entezari et al., arXiv:2110.06296). A network with BatchNorm is evaluated
twice: with the means and variances on the line between those of its ends, and with those that
training data have at that point, since they differ there (Jordan et al., arXiv:2211.08403).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from conescope.errors import RecipeError, TrainingError
from conescope.experiments.experiment import Experiment
from conescope.experiments.stored import read_recipe
from conescope.kernel.distance import Float64Array
from conescope.measuring.undisturbed import EVALUATION_BATCH, evaluation_mode, recalibrated
from conescope.runs.contents import check_same_data
from conescope.runs.shared_files import write_result
from conescope.runs.snapshots import find_snapshot, read_snapshot
from conescope.runs.store import Folder
from conescope.training.models import logits_for, returning
from conescope.training.recipe import Recipe

QUANTITIES = ("train_loss", "test_loss", "train_error", "test_error")
"""What is told of each point: mean losses, and shares of samples that are classified wrongly."""


@dataclass(frozen=True)
class Line:
    """The straight line between the weights of two networks.

    Attributes:
        runs: names of the two runs; the line begins at the first one's weights.
        steps: iterations of their snapshots.
        distance: norm of the difference of the parameters, relative to the mean of their norms.
        disagreement: share of the test samples to which the ends give different classes.
        function_distance: mean over the test samples of the Euclidean distance of the ends'
            class probabilities, in [0, √2].
        fractions: [A], the share α of the second one's weights, from 0 to 1.
        values: statistics of BatchNorm ("interpolated"; "estimated" if the network has any) →
            quantity → [A].
    """

    runs: tuple[str, str]
    steps: tuple[int, int]
    distance: float
    disagreement: float
    function_distance: float
    fractions: Float64Array
    values: Mapping[str, Mapping[str, Float64Array]]

    def barrier(self, quantity: str, statistics: str = "interpolated") -> float:
        """Return the most by which a quantity exceeds the line between its ends; at least 0."""
        found = self.values[statistics][quantity]
        ends = (1 - self.fractions) * found[0] + self.fractions * found[-1]
        return float((found - ends).max())


def lines_between(runs: Sequence[Path], at: int | None = None, points: int = 11) -> list[Line]:
    """Evaluate the networks on the straight lines between all pairs of runs.

    Args:
        runs: two or more folders of runs with one network and one data set, of which each two are
            of one parent, or a parent and its child, or both without a parent.
        at: iteration of the snapshots; None for the end of each run.
        points: number A of points on a line, both ends included; at least 3.

    Raises:
        RecipeError: if the runs cannot be compared, or a number is out of range.
        StoreError: if a folder holds no run, or no snapshot there.
        TrainingError: if a loss at an end is NaN or infinite.
    """
    if points < 3:
        raise RecipeError(f"--points is {points}; a line has its two ends and a point between")
    if len({path.resolve() for path in runs}) < max(len(runs), 2):
        raise RecipeError("a barrier lies between two or more different runs; name their folders")
    recipes = [read_recipe(path) for path in runs]
    for first, second in combinations(zip(runs, recipes, strict=True), 2):
        _check_comparable(*first, *second)
    experiment = Experiment(recipes[0])
    network = experiment.begin()[0]
    ends = []
    names = [path.resolve().name for path in runs]
    if len(set(names)) < len(names):
        names = [str(path) for path in runs]
    for name, path, recipe in zip(names, runs, recipes, strict=True):
        check_same_data(Folder(path), experiment.data.digest)
        step = recipe.training.steps if at is None else at
        state = read_snapshot(Folder(path), find_snapshot(Folder(path), step))
        state.load_weights(network)  # it says what does not fit
        ends.append((name, step, {n: w.clone() for n, w in state.weights.items()}))
    fractions = np.linspace(0.0, 1.0, points)
    return [_line(experiment, network, *pair, fractions) for pair in combinations(ends, 2)]


def _check_comparable(first: Path, recipe: Recipe, path: Path, other: Recipe) -> None:
    """Refuse runs whose networks are not on one line, or whose losses are of different data."""
    own, others = (
        {"model": each.model, "data": replace(each.data, path=None)} for each in (recipe, other)
    )
    for section in own:
        if own[section] != others[section]:
            raise RecipeError(
                f"{first} and {path} differ in {section}; a barrier lies between networks of one "
                f"kind on one data set (see 'conescope compare {first} {path}')"
            )
    chosen = recipe.data.label_noise or recipe.data.train_size
    if chosen and recipe.seed != other.seed:
        raise RecipeError(
            f"{first} and {path} have different training data, since their seeds choose samples "
            f"or labels; give runs of one seed"
        )
    for each, held in ((first, recipe), (path, other)):
        if held.dynamics.kind == "linearised":
            raise RecipeError(
                f"{each} is linearised, and has a tangent model of its own start; a barrier lies "
                f"between standard trainings"
            )
    if recipe.training.loss != other.training.loss:
        raise RecipeError(f"{first} and {path} are trained by different losses; give one loss")
    kin = {recipe.id, recipe.branch.parent} & {other.id, other.branch.parent}
    if not kin:
        parents = recipe.branch.parent, other.branch.parent
        raise RecipeError(
            f"{first} and {path} are not of one parent, but of {parents[0] or 'none'} and of "
            f"{parents[1] or 'none'}; give children of one run, or runs without parents"
        )


def _line(
    experiment: Experiment,
    network: nn.Module,
    first: tuple[str, int, Mapping[str, Tensor]],
    second: tuple[str, int, Mapping[str, Tensor]],
    fractions: Float64Array,
) -> Line:
    (name, step, start), (other, until, end) = first, second
    trained = [n for n, p in network.named_parameters() if p.requires_grad]
    a, b = (torch.cat([w[n].double().flatten() for n in trained]) for w in (start, end))
    kinds = ["interpolated"]
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()):
        kinds.append("estimated")
    values = {kind: {q: np.full(len(fractions), np.nan) for q in QUANTITIES} for kind in kinds}
    for place, fraction in enumerate(fractions):
        network.load_state_dict(_between(start, end, float(fraction)))
        for kind in kinds:
            model = network
            if kind == "estimated":
                model = recalibrated(network, experiment.calibration)
            for quantity, value in _evaluated(experiment, model).items():
                values[kind][quantity][place] = value
    if not all(np.isfinite(found[[0, -1]]).all() for found in values["interpolated"].values()):
        raise TrainingError(
            f"the loss of {name} or of {other} is not finite at its end; choose an earlier "
            f"snapshot by --at"
        )
    p, q = (_probabilities(experiment, network, weights) for weights in (start, end))
    return Line(
        (name, other),
        (step, until),
        float((a - b).norm() / (0.5 * (a.norm() + b.norm()))),
        float((p.argmax(dim=1) != q.argmax(dim=1)).double().mean()),
        float((p - q).norm(dim=1).mean()),
        fractions,
        values,
    )


def _between(
    start: Mapping[str, Tensor], end: Mapping[str, Tensor], fraction: float
) -> dict[str, Tensor]:
    """Return the state dict on the line; counts, such as those of batches, are the first one's."""
    return {
        name: torch.lerp(tensor.double(), end[name].double(), fraction).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in start.items()
    }


def _evaluated(experiment: Experiment, model: nn.Module) -> dict[str, float]:
    found = experiment.evaluate_network(model)
    losses = {name: value for name, value in found.items() if name.endswith("loss")}
    return losses | {
        f"{split}_error": 1 - found[f"{split}_accuracy"] for split in ("train", "test")
    }


@torch.no_grad()
def _probabilities(
    experiment: Experiment, network: nn.Module, weights: Mapping[str, Tensor]
) -> Tensor:
    """Return the class probabilities of the test samples, [N, c] or [N, c, T], in float64."""
    network.load_state_dict(weights)
    split = experiment.data.test
    parts = split.inputs.split(EVALUATION_BATCH)
    with evaluation_mode(network), returning(partial(logits_for, split.labels), network):
        found = [network(experiment.normalize(part)).double().softmax(dim=1) for part in parts]
    return torch.cat(found)


def write_lines(lines: Sequence[Line], file: Path) -> Path:
    """Write the values as CSV, a row for each point of each line and each kind of statistics.

    Raises:
        StoreError: if the file cannot be written.
    """
    written = io.StringIO(newline="")
    table = csv.writer(written)
    ends = ("first", "second", "first_step", "second_step")
    table.writerow([*ends, "batchnorm", "fraction", *QUANTITIES])
    for line in lines:
        for kind, found in line.values.items():
            for place, fraction in enumerate(line.fractions):
                values = [found[quantity][place] for quantity in QUANTITIES]
                table.writerow([*line.runs, *line.steps, kind, fraction, *values])
    return write_result(file, written.getvalue().encode())
