"""How well the linear process predicts the kernel's motion: table, numbers, figure.

    python -m benchmarks.atlas.ornstein_uhlenbeck_report --table ou.parquet --runs sweeps/ou
    python -m benchmarks.atlas.ornstein_uhlenbeck_report --table ou.parquet --figure ou.png

With `--runs` the table is made from the files of `benchmarks.atlas.ornstein_uhlenbeck`; without it,
it is read.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
import numpy as np
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from scipy.stats import spearmanr, t

from benchmarks.atlas.figures import KINDS
from benchmarks.atlas.ornstein_uhlenbeck import TRAINING
from benchmarks.atlas.table import Row, write
from benchmarks.atlas.trained_stretch import Stretch
from conescope.statistics.cone.verdict import ENOUGH

COLUMNS = ("R", "tau", "half_angle", "floor", "weight_step", "weight_spread")
"""What is compared; the last two are lengths of the weights' motion: from one kernel to the next,
and about its mean."""

LOOKS = (
    "Gauss-Newton",
    "Gauss-Newton, noise of the run",
    "linearised SGD",
    "Hessian",
    "noise alone",
    "noise alone, drawn anew",
)
"""The processes."""

DRAWN = {
    "Gauss-Newton": ("#0072B2", "o"),
    "Gauss-Newton, noise of the run": ("#D55E00", "s"),
    "noise alone": ("#009E73", "^"),
}
"""Process → its colour in the figure, of Okabe and Ito's, and marker."""


def main(words: Sequence[str] | None = None) -> None:
    """Make or read the table, print what it says, and draw the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", type=Path, required=True, help="parquet file")
    parser.add_argument("--runs", type=Path, help="folder of the comparisons: new table")
    parser.add_argument("--figure", type=Path, help="PNG file to draw")
    arguments = parser.parse_args(words)
    if arguments.runs is not None:
        rows = [
            r
            for file in sorted(arguments.runs.glob("*.json"))
            for r in json.loads(file.read_text("utf-8"))
        ]
        write(rows, arguments.table)
    rows = pq.read_table(arguments.table).to_pylist()
    print_cells(rows)
    parts = {
        "runs with a phase II": [
            own for own in _runs(rows).values() if is_stationary(own[TRAINING])
        ],
    }
    parts["confined runs"] = [
        own for own in parts["runs with a phase II"] if own[TRAINING]["p_confined"] > 0.5
    ]
    for words, runs in parts.items():
        told = [row for own in runs for row in own.values()]
        for column in COLUMNS:
            print_scores(told, column, words)
        print_kinds(told)
    if arguments.figure is not None:
        draw([row for own in parts["runs with a phase II"] for row in own.values()],
             arguments.figure)  # fmt: skip


def print_cells(rows: list[Row]) -> None:
    """Print what was measured of each run, and the ratio of each process's R to the run's."""
    print(f"| cell, seed | t* | confined | η λ | noise | linear | R | {' | '.join(LOOKS)} |")
    print("|" + "---|" * (7 + len(LOOKS)))
    for (cell, seed), own in _runs(rows).items():
        run = own[TRAINING]
        numbers = (run["p_confined"], run["rate_sharpness"], noise_ratio(run), run["linear_share"])
        texts = [str(run["first"]), *(f"{number:.2f}" for number in numbers), f"{run['R']:.4f}"]
        for name in LOOKS:
            ratio = log_ratio(own, name, "R")
            grows = own[name]["grows"] if name in own else False
            texts.append("grows" if grows else "–" if ratio is None else f"{math.exp(ratio):.2f}")
        print(f"| {cell}, {seed} | {' | '.join(texts)} |")


def print_scores(rows: list[Row], column: str, words: str) -> None:
    """Print how well each process predicts a column; the numbers of a cell are means over seeds."""
    print(f"{column} of {words}: ratio of the process's to the run's")
    print("| process | runs, cells | ratio (95 %) | typical factor | within 1.5 | rank |")
    print("|---|---|---|---|---|---|")
    for name in LOOKS:
        cells: dict[str, list[tuple[float, float]]] = {}
        for (cell, _), own in _runs(rows).items():
            if (ratio := log_ratio(own, name, column)) is not None:
                pair = (math.log(own[TRAINING][column]), ratio)
                cells.setdefault(cell, []).append(pair)
        count = f"{sum(map(len, cells.values()))}, {len(cells)}"
        if len(cells) < 3:
            print(f"| {name} | {count} | – | – | – | – |")
            continue
        found, logs = np.array([np.mean(pairs, axis=0) for pairs in cells.values()]).T
        mean, half = logs.mean(), t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5
        low, ratio, high = np.exp([mean - half, mean, mean + half])
        factor = np.exp(np.sqrt(np.mean(logs**2)))
        near = int((np.abs(logs) <= np.log(1.5)).sum())
        rank = spearmanr(found, found + logs)[0]
        print(f"| {name} | {count} | {ratio:.2f} ({low:.2f} to {high:.2f}) | {factor:.2f} "
              f"| {near} | {rank:.2f} |")  # fmt: skip


def print_kinds(rows: list[Row]) -> None:
    """Print the mean probability of each kind of motion, of the training and of each process."""
    print(f"| series | {' | '.join(KINDS)} |")
    print("|" + "---|" * (len(KINDS) + 1))
    for name in (TRAINING, *LOOKS):
        own = [row for row in rows if row["series"] == name and not row["grows"]]
        columns = [f"p_{kind.replace(' ', '_')}" for kind in KINDS]
        if own:
            texts = [f"{np.mean([row[column] for row in own]):.2f}" for column in columns]
            print(f"| {name} ({len(own)}) | {' | '.join(texts)} |")


def log_ratio(own: dict[str, Row], process: str, column: str) -> float | None:
    """Return log(process / run) of a column; None if either lacks it, or it is 0.

    A process that only diffuses or drifts has no R.
    """
    if column == "R" and process in own and not own[process]["grows"]:
        kinds = own[process]
        if kinds["p_confined"] + kinds["p_mixed"] < 0.5:
            return None
    before, after = (own[name].get(column) if name in own else None for name in (TRAINING, process))
    return math.log(after / before) if before and after else None


def noise_ratio(run: Row) -> float:
    """Return C_run / C*, the noise's mean squared length along the run over that at θ*."""
    return run["noise_of_run"] / run["noise_at_centre"]


def is_stationary(run: Row) -> bool:
    """Return whether a run's phase II, within the stretch, has enough kernels for a verdict."""
    return sum(step >= run["first"] for step in Stretch().steps) >= ENOUGH


def _runs(rows: list[Row]) -> dict[tuple[str, int], dict[str, Row]]:
    """Return (cell, seed) → series → its row; cells by the R of their runs, rising."""
    runs: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        runs.setdefault((row["cell"], row["seed"]), {})[row["series"]] = row
    size: dict[str, list[float]] = {}
    for (cell, _), own in runs.items():
        size.setdefault(cell, []).append(own[TRAINING]["R"])
    return dict(sorted(runs.items(), key=lambda item: (fmean(size[item[0][0]]), item[0])))


def draw(rows: list[Row], path: Path) -> None:
    """Draw R and τ_c of three processes against those of the runs, a mark for each run."""
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(6.6, 3.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        _scatter(left, rows, "R", "R")
        _scatter(right, rows, "tau", "τ$_c$ (iterations)")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160)


def _scatter(axes: Axes, rows: list[Row], column: str, words: str) -> None:
    ends: list[float] = []
    for name, (colour, marker) in DRAWN.items():
        for is_filled in (True, False):
            held = [
                (own[TRAINING][column], own[name][column])
                for own in _runs(rows).values()
                if log_ratio(own, name, column) is not None
                and (own[TRAINING]["p_confined"] > 0.5) == is_filled
            ]
            x, y = zip(*held, strict=True) if held else ((), ())
            face = colour if is_filled else "none"
            axes.plot(x, y, marker, color=colour, mfc=face, ms=5)
            ends.extend((*x, *y))
        axes.plot([], [], marker, color=colour, label=name)
    axes.plot([], [], "o", color="black", mfc="none", label="open: the run is not confined")
    axes.plot([], [], "s", color="black", alpha=0.15, ms=8, label="within a factor of 1.5")
    axes.set(xscale="log", yscale="log")
    if ends:
        span = np.array([min(ends) / 1.3, max(ends) * 1.3])
        axes.plot(span, span, "-", color="black", lw=0.8)
        axes.fill_between(span, span / 1.5, span * 1.5, color="black", alpha=0.08, lw=0)
        axes.set(xlim=span, ylim=span)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_locator(NullLocator())
    axes.set_xlabel(f"{words} of the run")
    axes.set_ylabel(f"{words} of the process")


if __name__ == "__main__":
    main()
