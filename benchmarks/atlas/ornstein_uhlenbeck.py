"""Compare the kernel's motion with that of a linear process of the weights about their mean.

    python -m benchmarks.atlas.ornstein_uhlenbeck data/small-mnist.npz --out sweeps/ou

A run of the atlas is trained on to 2,000 iterations. θ* is the mean of its weights over the second
half; curvature and gradient noise are measured there, the linear process is simulated over as many
iterations, and the kernels of θ* + δ are read by the same statistics as the run's own. A cell that
is done is not computed again. docs/atlas.md, "Ornstein–Uhlenbeck", says what came of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import vector_to_parameters

from benchmarks.atlas.cells import SEEDS, cells
from benchmarks.atlas.linear_process import Landscape, largest_eigenvalue, linear_process
from benchmarks.atlas.table import Row
from benchmarks.atlas.trained_stretch import Stretch, trained
from conescope.experiments.experiment import Experiment
from conescope.kernel import KernelSeries
from conescope.kernel.distance import unit_vector
from conescope.statistics.cone import cone, mean_squared_displacement
from conescope.statistics.cone.verdict import ENOUGH
from conescope.training.data.sampling import BatchOrder, seed_for
from conescope.training.losses import LOSSES
from conescope.training.recipe import Recipe

CELLS = (
    "base",
    "optimizer.lr=0.03",
    "optimizer.lr=0.3",
    "training.batch_size=8",
    "training.batch_size=128",
    "optimizer.momentum=0.5",
    "optimizer.lr=0.01 optimizer.momentum=0.9",
    "optimizer.weight_decay=0.01",
    "model.norm=layer",
    "training.loss=squared",
)
"""The cells of the atlas's first round that are compared."""

TRAINING = "training"
"""The series that is not simulated."""

_OTHER_ORDER = 1000
"""Added to a run's seed for the order of the process's batches, which are none of the run's."""


class Comparison:
    """A run of the atlas beside its linear processes.

    Args:
        recipe: the run.
        stretch: the iterations that are compared.
        curvature: number of training samples on which the curvature is taken.
    """

    def __init__(self, recipe: Recipe, stretch: Stretch, curvature: int) -> None:
        training = dataclasses.replace(recipe.training, steps=stretch.last)
        self.recipe = dataclasses.replace(recipe, training=training)
        self.stretch = stretch
        self.experiment = Experiment(self.recipe)
        self.model, _ = self.experiment.begin()
        self.model.eval()
        self.landscape = Landscape(self.model, LOSSES[recipe.training.loss])
        data = self.experiment.data.train
        self.inputs, self.labels = self.experiment.normalize(data.inputs), data.labels
        self.trained = trained(self.experiment, stretch)
        self.centre = self.trained.centre
        generator = torch.Generator().manual_seed(recipe.seed)
        self.samples = self.landscape.choose(
            self.centre, self.inputs, self.labels, curvature, generator
        )
        self.gradient = self.landscape.gradient(self.centre, self.inputs, self.labels)
        self.order = BatchOrder(
            len(self.labels), recipe.training.batch_size, recipe.seed + _OTHER_ORDER
        )

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of an iteration of the linear process."""
        chosen = self.order(step)
        return self.inputs[chosen], self.labels[chosen]

    def noise(self, step: int, *, drawn: bool = False) -> Tensor:
        """Return ξ = g_B(θ*) − g(θ*) of an iteration of the linear process; [P].

        Args:
            step: the iteration.
            drawn: whether the batch is drawn from all samples, and not the next of its epoch.
        """
        batch = self.batch(step)
        if drawn:
            generator = torch.Generator().manual_seed(seed_for(self.recipe.seed, "drawn", step))
            chosen = torch.randint(len(self.labels), batch[1].shape, generator=generator)
            batch = self.inputs[chosen], self.labels[chosen]
        return self.landscape.gradient(self.centre, *batch) - self.gradient

    def processes(self) -> Iterator[tuple[str, Tensor | None]]:
        """Yield each series' name and offsets δ at the kernels' iterations, [T, P].

        The first are the training's own. None for a process that outgrows the weights.
        """
        yield TRAINING, self.trained.weights - self.centre
        hessian = self.landscape.hessian(self.centre, self.samples)
        gauss_newton = self.landscape.gauss_newton(self.centre, self.samples)
        yield "Hessian", self.simulated(lambda t, offset: hessian(offset) + self.noise(t))
        found = self.simulated(lambda t, offset: gauss_newton(offset) + self.noise(t))
        yield "Gauss-Newton", found
        scale = math.sqrt(self.noise_of_run / self.noise_at_centre)
        yield "Gauss-Newton, noise of the run", None if found is None else scale * found
        yield "noise alone", self.simulated(lambda t, _: self.noise(t))
        yield "noise alone, drawn anew", self.simulated(lambda t, _: self.noise(t, drawn=True))
        yield "linearised SGD", self.simulated(self.linearised_gradient)

    def simulated(self, force: Callable[[int, Tensor], Tensor]) -> Tensor | None:
        """Return the offsets of the linear process at the kernels' iterations, [T, P].

        None if they outgrow the weights themselves.
        """
        stretch, optimizer = self.stretch, self.recipe.optimizer
        limit, held = float(self.centre.norm()), []
        process = linear_process(
            force,
            len(self.centre),
            steps=stretch.lead + stretch.last - stretch.first,
            rate=optimizer.lr,
            momentum=optimizer.momentum,
            decay=optimizer.weight_decay,
        )
        for done, offset in enumerate(process, start=1):
            if not offset.norm() < limit:
                return None
            if done >= stretch.lead and (done - stretch.lead) % stretch.gap == 0:
                held.append(offset)
        return torch.stack(held)

    def linearised_gradient(self, step: int, offset: Tensor) -> Tensor:
        """Return g_B(θ*) + H_B δ with the gradient and the Hessian of one batch; [P]."""
        return self.landscape.linearised_gradient(self.centre, offset, *self.batch(step))

    @cached_property
    def noise_at_centre(self) -> float:
        """Mean of ‖g_B(θ*) − g(θ*)‖² over the iterations of the linear process."""
        steps = range(self.stretch.last - self.stretch.first)
        return fmean(float(self.noise(t).square().sum()) for t in steps)

    @cached_property
    def noise_of_run(self) -> float:
        """The same along the run: mean of ‖g_B(θ_t)‖² minus that of ‖g(θ_t)‖²."""
        means = [
            float(self.landscape.gradient(weights, self.inputs, self.labels).square().sum())
            for weights in self.trained.weights
        ]
        return self.trained.squared_gradient - fmean(means)

    def kernels(self, offsets: Tensor) -> KernelSeries:
        """Return the kernels on the probe of the networks θ* + δ, for offsets [T, P]."""
        found = []
        for offset in offsets:
            vector_to_parameters(self.centre + offset, self.model.parameters())
            found.append(self.experiment.measure(self.model))
        return KernelSeries(self.stretch.steps, found)

    def linear_share(self, offsets: Tensor) -> float:
        """Return the share of the kernel's variance over time that is odd in δ, in [0, 1].

        With k(δ) the unit-length kernel of θ* + δ, (k(δ) − k(−δ)) / 2 has the first order in δ
        and none of the second, and (k(δ) + k(−δ)) / 2 the second and none of the first.
        """
        there, back = (
            torch.stack([unit_vector(k) for k in self.kernels(part).kernels])
            for part in (offsets, -offsets)
        )
        odd, even = (float(part.var(dim=0).sum()) for part in (there - back, there + back))
        return odd / (odd + even)


def compare(recipe: Recipe, stretch: Stretch, curvature: int) -> list[Row]:
    """Return a row for the training and for each of its linear processes."""
    case = Comparison(recipe, stretch, curvature)
    size, rate = len(case.centre), recipe.optimizer.lr
    sharpness = largest_eigenvalue(case.landscape.gauss_newton(case.centre, case.samples), size)
    common: Row = {
        "rate_sharpness": rate * sharpness,
        "gradient": float(case.gradient.norm()),
        "noise_at_centre": case.noise_at_centre,
        "noise_of_run": case.noise_of_run,
        "samples": len(case.samples.labels),
    }
    rows: list[Row] = []
    span = None
    for name, offsets in case.processes():
        row: Row = {"series": name, "grows": offsets is None}
        if offsets is not None:
            row |= measured(case.kernels(offsets), offsets, span)
        if offsets is not None and name == TRAINING:
            row["linear_share"] = case.linear_share(offsets)
            span = (row["first"], stretch.last) if row["kernels"] >= ENOUGH else None
        rows.append(row | common)
    return rows


def measured(series: KernelSeries, offsets: Tensor, span: tuple[int, int] | None) -> Row:
    """Return the statistics of a series of kernels, and of the weights' offsets [T, P].

    Args:
        series: the kernels of a whole stretch.
        offsets: the offsets.
        span: the part of which the cone is read, the training's own phase II; None for all.
    """
    found = cone(series, span=span)
    count = sum(step >= found.first for step in series.steps)
    row: Row = {"verdict": found.verdict, "first": found.first, "kernels": count}
    row |= {f"p_{kind.replace(' ', '_')}": p for kind, p in found.probability.items()}
    numbers = {
        "R": found.radius,
        "tau": found.relaxation_time,
        "floor": found.neighbour_distance,
        "half_angle": found.half_angle,
        "exponent": found.exponent,
    }
    for name, number in numbers.items():
        for end in ("value", "low", "high"):
            column = name if end == "value" else f"{name}_{end}"
            row[column] = None if number is None else getattr(number, end)
    distances = series.distances()
    motion = mean_squared_displacement(np.array(series.steps), distances)
    row["lags"], row["S_at_lags"] = motion.lags.tolist(), (motion.mean / 2).tolist()
    row["spread"] = math.sqrt(distances.mean())
    row["weight_step"] = float(offsets.diff(dim=0).square().sum(dim=1).mean().sqrt())
    row["weight_spread"] = float(offsets.var(dim=0).sum().sqrt())
    return row


def main(words: Sequence[str] | None = None) -> int:
    """Compute the cells that are not done, one file each, and say how each went."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="the file of benchmarks.atlas.small_mnist")
    parser.add_argument("--out", type=Path, required=True, help="folder for a file of each cell")
    parser.add_argument("--cells", nargs="+", default=CELLS, help="names of cells (ten cells)")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="seeds (0 1 2)")
    parser.add_argument("--curvature", type=int, default=1000, help="samples it is taken on (1000)")
    arguments = parser.parse_args(words)
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for point in cells(arguments.data.absolute()):
        cell, seed = point.values["cell"], point.values["seed"]
        path = arguments.out / f"{cell.replace(' ', '_')}-{seed}-{arguments.curvature}.json"
        if cell not in arguments.cells or seed not in arguments.seeds or path.exists():
            continue
        begun = time.process_time()
        rows = compare(point.recipe, Stretch(), arguments.curvature)
        seconds = time.process_time() - begun
        common = {"cell": cell, "seed": seed, "curvature": arguments.curvature, "seconds": seconds}
        part = path.with_suffix(".part")
        part.write_text(json.dumps([common | row for row in rows], indent=1), "utf-8")
        os.replace(part, path)
        print(f"{cell}, seed {seed}: {seconds:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
