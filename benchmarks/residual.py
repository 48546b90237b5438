"""Where the residual lies, over seeds: `python -m benchmarks.residual RUN …` prints two tables.

The runs are of one recipe, and differ in their seed. Each cell is the mean over them, with the
lowest and the highest.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

import conescope as cs
from conescope.runs.reader import Run
from conescope.statistics.residual import ResidualSeries, residuals, spectral_position
from conescope.training.recipe import Recipe

LEADING = 9
EARLY = 100
RANKS = (1, 10, 21, 51, 101)


def at(run: Run, steps: Sequence[int]) -> ResidualSeries:
    """Return the residuals at some steps of a run of a recipe."""
    assert isinstance(run.recipe, Recipe)
    assert run.labels is not None
    kernels = [run.series.kernels[run.series.index(step)] for step in steps]
    outputs = [run.outputs[step] for step in steps]
    return residuals(steps, kernels, outputs, run.labels, run.recipe.training.loss)


def cell(values: Sequence[float], digits: str) -> str:
    """Return a mean with the lowest and the highest value."""
    mean, low, high = np.mean(values), min(values), max(values)
    return f"{mean:{digits}} ({low:{digits}} to {high:{digits}})"


def over_time(runs: Sequence[Run]) -> None:
    """Print size, positions and shares at some iterations."""
    wanted = (0, 20, EARLY, 200, 500, 1000, 2000, 3000)
    steps = [step for step in sorted(wanted) if all(step in run.outputs for run in runs)]
    found = [at(run, steps) for run in runs]
    print("| iteration | ‖r‖² / n | position of r | of the labels | share of r | of the labels |")
    print("|---|---|---|---|---|---|")
    for place, step in enumerate(steps):
        cells = [
            cell([one.size[place] for one in found], ".1e"),
            cell([float(spectral_position(one.residual[place])) for one in found], ".0f"),
            cell([float(spectral_position(one.labels[place])) for one in found], ".0f"),
            cell([one.residual[place, :LEADING].sum() for one in found], ".0%"),
            cell([one.labels[place, :LEADING].sum() for one in found], ".0%"),
        ]
        print(f"| {step:,} | {' | '.join(cells)} |")
    whole = [spectral_position(at(run, run.series.steps).residual) for run in runs]
    print(f"\nhighest position of r: {cell([float(one.max()) for one in whole], '.0f')}")


def early(runs: Sequence[Run]) -> None:
    """Print what is left after some iterations along the first kernel's eigenvectors."""
    found = [at(run, (0, EARLY)) for run in runs]
    n = found[0].residual.shape[1]
    begins = [rank for rank in RANKS if rank <= n]
    print(f"\n| eigenvectors | share of r at 0 | of it left at {EARLY} | share of what is lost |")
    print("|---|---|---|---|")
    for first, after in zip(begins, [*begins[1:], n + 1], strict=True):
        part = slice(first - 1, after - 1)
        held = [one.residual[0, part].sum() for one in found]
        lost = [one.lost[0, part].sum() for one in found]
        left = [1 - gone / before for gone, before in zip(lost, held, strict=True)]
        shares = [gone / one.lost[0].sum() for gone, one in zip(lost, found, strict=True)]
        cells = [cell(each, ".0%") for each in (held, left, shares)]
        print(f"| {first} to {after - 1} | {' | '.join(cells)} |")


def main() -> None:
    """Print the tables of the runs that the command line names."""
    runs = [cs.load_run(folder) for folder in sys.argv[1:]]
    over_time(runs)
    early(runs)


if __name__ == "__main__":
    main()
