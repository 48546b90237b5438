"""Tables and figures of docs/beyond.md: `python -m benchmarks.beyond RUN… --figure STEM`.

The runs differ in their seeds only. Moments of a run are its start and end, those named by `--at`,
and, where there are such, the first evaluation with a training accuracy of 100 % ("memorised") and
the first with a test accuracy of at least 95 % ("generalised").
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from conescope.experiments.stored import load_run
from conescope.report.plot import Line, LinePlot, Panels
from conescope.report.save import save_plot
from conescope.runs.reader import Run
from conescope.statistics.alignment import alignments
from conescope.statistics.attribution import attribution
from conescope.statistics.spectrum import spectra

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


def measured(run: Run) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return what is drawn of a run: quantity → iterations and values, [P] each."""
    series, labels = run.series, run.labels
    assert isinstance(labels, Tensor)
    steps = np.array(series.steps)
    distances = series.distances()
    ahead = {step: place for place, step in enumerate(series.steps)}
    pairs = [(i, ahead[t + LAG]) for i, t in enumerate(series.steps) if t + LAG in ahead]
    from_, to = np.array(pairs).T
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


def table(run: Run, values: dict[str, tuple[np.ndarray, np.ndarray]], also: list[int]) -> None:
    """Print the numbers of a run at its moments, and the layers that moved the kernel between."""
    at, scalars = moments(run, also), run.scalars
    print(f"\n{run.name}, seed {run.recipe.seed}: n = {run.series.kernels[0].values.shape[0]}")
    for name, step in at.items():
        row = [f"{name} {step:,}"]
        places = np.flatnonzero(scalars["step"] == step)
        for quantity in ("train_accuracy", "test_accuracy", "train_loss", "test_loss"):
            row += [f"{quantity} {scalars[quantity][p]:.4g}" for p in places]
        for quantity, (steps, numbers) in values.items():
            row += [f"{quantity} {number:.4g}" for number in numbers[steps == step]]
        print("; ".join(row))
    steps, ends = run.series.steps, list(at.values())
    for start, stop in pairwise(ends):
        if start == stop:
            continue
        pair = [run.series.kernels[steps.index(step)] for step in (start, stop)]
        moved = attribution(pair[0], pair[1])
        layers = sorted(moved.layers.items(), key=lambda item: -item[1])
        shares = ", ".join(f"{layer} {share:.0%}" for layer, share in layers)
        print(f"{start:,} to {stop:,}: S = {moved.distance:.4g}; {shares}")


def figure(runs: list[Run], values: list[dict[str, tuple[np.ndarray, np.ndarray]]]) -> Panels:
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
    for run, found in zip(runs, values, strict=True):
        table(run, found, also)
    if arguments.figure is not None:
        save_plot(figure(runs, values), arguments.figure, "conescope")


if __name__ == "__main__":
    main()
