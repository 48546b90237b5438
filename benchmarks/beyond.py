"""Tables and figures of docs/beyond.md: `python -m benchmarks.beyond RUN… --figure STEM`.

The runs differ in their seeds only. Moments of a run are its start and end, those named by `--at`,
and, where there are such, the first evaluation with a training accuracy of 100 % ("memorised") and
the first with a test accuracy of at least 95 % ("generalised").
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from scipy.stats import t as student
from torch import Tensor

from conescope.experiments.stored import load_run
from conescope.report.plot import Line, LinePlot, Panels
from conescope.report.save import save_plot
from conescope.report.style import PAPER
from conescope.runs.reader import Run
from conescope.statistics.alignment import alignments
from conescope.statistics.attribution import attribution
from conescope.statistics.spectrum import spectra

Drawn = dict[str, tuple[np.ndarray, np.ndarray]]
"""Quantity → iterations and values, [P] each."""

SMALL = PAPER | {"savefig.dpi": 130}
"""The look of a figure that is small as a file."""

LAG = 100
"""Iterations between the two kernels of a velocity."""


def moments(run: Run, also: list[int]) -> dict[str, int]:
    """Return the moments of a run: name → iteration, rising."""
    steps = run.scalars["step"]
    found = {"start": 0, **{f"{step:,}": step for step in also}, "end": run.series.steps[-1]}
    for name, quantity, least in (
        ("memorised", "train_accuracy", 1.0),
        ("generalised", "test_accuracy", 0.95),
    ):
        places = np.flatnonzero(run.scalars[quantity] >= least)
        if len(places):
            found[name] = int(steps[places[0]])
    return dict(sorted(found.items(), key=lambda item: item[1]))


def measured(run: Run) -> Drawn:
    """Return what is drawn of a run: quantity → iterations and values, [P] each."""
    series, labels = run.series, run.labels
    assert isinstance(labels, Tensor)
    steps = np.array(series.steps)
    distances = series.distances()
    ahead = {step: place for place, step in enumerate(series.steps)}
    pairs = [(i, ahead[t + LAG]) for i, t in enumerate(series.steps) if t + LAG in ahead]
    from_, to = np.array(pairs, dtype=int).reshape(-1, 2).T
    kernels = series.kernels
    aligned, spectral = (
        alignments(steps.tolist(), kernels, labels),
        spectra(steps.tolist(), kernels),
    )
    return {
        "S": (steps, distances[0]),
        "velocity": (steps[from_], distances[from_, to]),
        "alignment": (steps, aligned.centred_target),
        "rank": (steps, spectral.effective_rank),
        "trace": (steps, spectral.trace),
    }


def numbers_at(run: Run, values: Drawn, step: int) -> dict[str, float]:
    """Return what is known of an iteration: quantity → value."""
    names = ("train_accuracy", "test_accuracy", "train_loss", "test_loss")
    drawn = {name: (run.scalars["step"], run.scalars[name]) for name in names} | values
    return {
        quantity: float(numbers[steps == step][0])
        for quantity, (steps, numbers) in drawn.items()
        if step in steps
    }


def movements(run: Run, steps: list[int]) -> dict[str, dict[str, float]]:
    """Return, of each stretch between two iterations, S and each layer's share of the movement."""
    found, series = {}, run.series
    for start, stop in pairwise(sorted(set(steps))):
        pair = [series.kernels[series.steps.index(step)] for step in (start, stop)]
        moved = attribution(pair[0], pair[1])
        layers = dict(sorted(moved.layers.items(), key=lambda item: -item[1]))
        found[f"{start:,} to {stop:,}"] = {"S": moved.distance, **layers}
    return found


def print_table(rows: Mapping[str, dict[str, float]]) -> None:
    """Print a line for each row."""
    for name, row in rows.items():
        print(f"  {name}: {', '.join(f'{key} {value:.4g}' for key, value in row.items())}")


def print_means(rows: list[dict[str, dict[str, float]]]) -> None:
    """Print means over runs with their 95 % intervals by Student's t, of what all runs have."""
    quantile = float(student.ppf(0.975, len(rows) - 1))
    for name in (name for name in rows[0] if all(name in row for row in rows)):
        texts = []
        for key in (k for k in rows[0][name] if all(k in row[name] for row in rows)):
            values = [row[name][key] for row in rows]
            half = quantile * stdev(values) / len(values) ** 0.5
            texts.append(f"{key} {fmean(values):.4g} ± {half:.2g}")
        print(f"  {name}: {', '.join(texts)}")


def figure(runs: list[Run], values: list[Drawn]) -> Panels:
    """Return the plots of several runs, one line for each."""
    seeds = [f"seed {run.recipe.seed}" for run in runs]

    def panel(title: str, label: str, quantity: str, **look: Any) -> LinePlot:
        lines = [
            Line(seed, *found[quantity], colour=c)
            for c, (seed, found) in enumerate(zip(seeds, values, strict=True))
        ]
        return LinePlot(title, "", y_label=label, lines=lines, **look)

    accuracies = [
        line
        for c, (seed, run) in enumerate(zip(seeds, runs, strict=True))
        for line in (
            Line(seed, run.scalars["step"], run.scalars["test_accuracy"], colour=c),
            Line("training data", run.scalars["step"], run.scalars["train_accuracy"],
                 style="dashed", colour=c),
        )
    ]  # fmt: skip
    return Panels(
        "", "",
        [
            LinePlot("Accuracy", "", y_label="accuracy", lines=accuracies, percent=True),
            panel("Distance", "*S(θ(t), θ(0))*", "S"),
            panel("Velocity", f"*S(θ(t), θ(t + {LAG}))*", "velocity", y_scale="readable"),
            panel("Alignment", "centred alignment", "alignment", from_zero=False),
            panel("Rank", "effective rank", "rank"),
        ],
    )  # fmt: skip


def main() -> None:
    """Print the tables, and draw the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--at", default="", help="further moments, such as 100,500")
    parser.add_argument("--figure", type=Path, help="path of the figure, without suffix")
    arguments = parser.parse_args()
    also = [int(text) for text in arguments.at.split(",") if text]
    runs = [load_run(path) for path in arguments.runs]
    values = [measured(run) for run in runs]
    rows, moved = [], []
    for run, found in zip(runs, values, strict=True):
        at = moments(run, also)
        print(f"{run.name}, n = {run.series.kernels[0].values.shape[0]}: {at}")
        rows.append({name: numbers_at(run, found, step) for name, step in at.items()})
        moved.append(movements(run, list(at.values())))
        print_table(rows[-1])
        print_table(moved[-1])
    if len(runs) > 1:
        print(f"mean over {len(runs)} runs")
        print_means(rows)
        print_means(moved)
    if arguments.figure is not None:
        save_plot(figure(runs, values), arguments.figure, "conescope", style=SMALL)


if __name__ == "__main__":
    main()
