"""How well the linear process predicts the kernel's motion: table, numbers, figure.

    python -m benchmarks.atlas.ornstein_uhlenbeck_report --table ou.parquet --runs sweeps/ou
    python -m benchmarks.atlas.ornstein_uhlenbeck_report --table ou.parquet --figure ou.png

With `--runs` the table is made from the files of `benchmarks.atlas.ornstein_uhlenbeck`; without it,
it is read.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import spearmanr, t

from benchmarks.atlas.figures import KINDS
from benchmarks.atlas.ornstein_uhlenbeck import TRAINING
from benchmarks.atlas.table import Row

COLUMNS = ("R", "floor", "half_angle", "tau", "weight_step", "weight_spread")
"""What is compared; the last two are lengths of the weights' motion: from one kernel to the next,
and about its mean."""

LOOKS = {
    "Gauss-Newton": ("#0072B2", "o"),
    "Gauss-Newton, noise of the run": ("#D55E00", "s"),
    "linearised SGD": ("#009E73", "^"),
    "Hessian": ("#CC79A7", "D"),
    "noise alone": ("#999999", "x"),
    "noise alone, drawn anew": ("#000000", "+"),
}
"""Process → its colour, of Okabe and Ito's, and marker."""


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
        columns = dict.fromkeys(name for row in rows for name in row)
        whole = [{name: row.get(name) for name in columns} for row in rows]
        pq.write_table(pa.Table.from_pylist(whole), arguments.table)
    rows = pq.read_table(arguments.table).to_pylist()
    print_cells(rows)
    for column in COLUMNS:
        print_scores(rows, column)
    print_kinds(rows)
    if arguments.figure is not None:
        draw(rows, arguments.figure)


def print_cells(rows: list[Row]) -> None:
    """Print R of the training and of each process, with their ratio, as means over seeds."""
    print("R, geometric mean over seeds; of a process, its ratio to the training's (least, most)")
    print(f"| cell | p(confined) | linear share | η λ | noise | training | {' | '.join(LOOKS)} |")
    print("|" + "---|" * (6 + len(LOOKS)))
    for cell, own in _cells(rows).items():
        held = own[TRAINING]
        noise = np.mean([row["noise_of_run"] / row["noise_at_centre"] for row in held])
        texts = [f"{np.mean([row[n] for row in held]):.2f}" for n in ("p_confined", "linear_share")]
        texts += [f"{np.mean([row['rate_sharpness'] for row in held]):.2f}", f"{noise:.2f}"]
        texts += [f"{_middle(held, 'R'):.3f}", *(_ratio(held, own.get(name, [])) for name in LOOKS)]
        print(f"| {cell} | {' | '.join(texts)} |")


def _ratio(training: list[Row], process: list[Row]) -> str:
    """Return the ratio of R over seeds with its ends, and how many seeds grow."""
    grown = sum(row["grows"] for row in process)
    logs = log_ratios(training, process, "R")
    low, mean, high = np.exp([logs.min(), logs.mean(), logs.max()]) if len(logs) else [0.0] * 3
    texts = [f"{mean:.2f} ({low:.2f} to {high:.2f})"] if len(logs) else []
    return ", ".join([*texts, *([f"{grown} grow"] if grown else [])])


def print_scores(rows: list[Row], column: str) -> None:
    """Print how well each process predicts a column: over cells, of means over seeds."""
    print(f"{column}: ratio of the process's to the training's, over cells")
    print("| process | cells | ratio (95 %) | typical factor | within 1.5 | rank correlation |")
    print("|---|---|---|---|---|---|")
    for name in LOOKS:
        pairs = [
            (np.log([row[column] for row in own[TRAINING] if row[column]]).mean(), logs.mean())
            for own in _cells(rows).values()
            if len(logs := log_ratios(own[TRAINING], own.get(name, []), column))
        ]
        if len(pairs) < 3:
            print(f"| {name} | {len(pairs)} | – | – | – | – |")
            continue
        found, logs = np.array(pairs).T
        mean, half = logs.mean(), t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5
        low, ratio, high = np.exp([mean - half, mean, mean + half])
        factor = np.exp(np.sqrt(np.mean(logs**2)))
        near = int((np.abs(logs) <= np.log(1.5)).sum())
        rank = spearmanr(found, found + logs).statistic
        print(f"| {name} | {len(logs)} | {ratio:.2f} ({low:.2f} to {high:.2f}) | {factor:.2f} "
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


def log_ratios(training: list[Row], process: list[Row], column: str) -> np.ndarray:
    """Return log(process / training) for each seed that has both."""
    there = {row["seed"]: row.get(column) for row in process}
    pairs = [(row[column], there.get(row["seed"])) for row in training]
    return np.array([np.log(after / before) for before, after in pairs if before and after])


def draw(rows: list[Row], path: Path) -> None:
    """Draw the predicted R, and the predicted floor, against those of the trainings."""
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(6.6, 3.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        _scatter(left, rows, "R", "R")
        _scatter(right, rows, "floor", "floor S(t, t + 20)")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160)


def _scatter(axes: Axes, rows: list[Row], column: str, words: str) -> None:
    ends: list[float] = []
    for name, (colour, marker) in LOOKS.items():
        x, y, low, high = [], [], [], []
        for own in _cells(rows).values():
            there = [row[column] for row in own.get(name, []) if row[column]]
            if there:
                x.append(_middle(own[TRAINING], column))
                y.append(_middle(own[name], column))
                low.append(max(y[-1] - min(there), 0.0))
                high.append(max(max(there) - y[-1], 0.0))
        face = "none" if marker != "x" else colour
        axes.errorbar(x, y, yerr=[low, high], fmt=marker, color=colour, mfc=face, ms=5, lw=0.8,
                      label=name)  # fmt: skip
        ends.extend((*x, *y))
    span = np.array([min(ends) / 1.5, max(ends) * 1.5])
    axes.plot(span, span, "-", color="black", lw=0.8)
    axes.fill_between(span, span / 1.5, span * 1.5, color="black", alpha=0.08, lw=0)
    axes.set(xscale="log", yscale="log", xlim=span, ylim=span)
    axes.set_xlabel(f"{words} of the training")
    axes.set_ylabel(f"{words} of the process")


def _cells(rows: list[Row]) -> dict[str, dict[str, list[Row]]]:
    """Return cell → series → its rows, one a seed; cells by the training's R, rising."""
    cells: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        cells.setdefault(row["cell"], {}).setdefault(row["series"], []).append(row)
    return dict(sorted(cells.items(), key=lambda item: _middle(item[1][TRAINING], "R")))


def _middle(rows: list[Row], column: str) -> float:
    """Return the geometric mean of a column over the rows that have it."""
    return float(np.exp(np.mean([np.log(row[column]) for row in rows if row[column]])))


if __name__ == "__main__":
    main()
