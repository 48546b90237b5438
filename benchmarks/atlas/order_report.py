"""What drawing batches with replacement changes of the kernel's motion: numbers and figure.

    python -m benchmarks.atlas.order_report --table docs/data/atlas.parquet --figure order.png

Each run with replacement is compared with the run of the same cell and seed with permutations.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
import numpy as np
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from scipy.stats import t

from benchmarks.atlas.table import Row

ROUND = 4
"""The number of this round in the table."""

Pair = tuple[Row, Row]
"""The rows of a cell and seed with permutations and with replacement."""

COLOURS = {"permutations": "#0072B2", "with replacement": "#D55E00"}
"""Order of the samples → its colour, of Okabe and Ito's."""

_SHORT = {
    "model.name=lenet5 model.width=0.5": "LeNet-5",
    " kernel.when=0, every 60": "",
    " optimizer.lr": ", optimizer.lr",
    " optimizer.momentum": ", optimizer.momentum",
    " training": ", training",
    "model.norm=layer": "layer norm.",
    "model.norm=batch": "batch norm.",
    "optimizer.lr=": "η = ",
    "optimizer.momentum=": "β = ",
    "training.batch_size=": "B = ",
    "training.steps=3000": "3,000 iterations",
}
"""Words of a cell's name → what they are in the figure."""

_WORD = " training.replacement=True"


def main(words: Sequence[str] | None = None) -> None:
    """Read the table, print what it says, and draw the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", type=Path, required=True, help="parquet file of the atlas")
    parser.add_argument("--figure", type=Path, help="PNG file to draw")
    arguments = parser.parse_args(words)
    rows = pq.read_table(arguments.table).to_pylist()
    cells = pairs_of([row for row in rows if row["round"] == ROUND])
    print_cells(cells)
    print_differences(cells)
    if arguments.figure is not None:
        draw(cells, arguments.figure)


def pairs_of(rows: list[Row]) -> dict[str, list[Pair]]:
    """Return cell → its pairs, seed by seed, of which both runs have a motion."""
    told = {(row["cell"], row["seed"]): row for row in rows if row["p_confined"] is not None}
    cells: dict[str, list[Pair]] = {}
    for (cell, seed), row in told.items():
        drawn = "training.replacement=True" if cell == "base" else cell + _WORD
        if (drawn, seed) in told:
            cells.setdefault(cell, []).append((row, told[drawn, seed]))
    return cells


def print_cells(cells: dict[str, list[Pair]]) -> None:
    """Print each cell's means over seeds, with permutations and with replacement."""
    print("| cell | pairs | confined | R | velocity ratio | accuracy |")
    print("|---|---|---|---|---|---|")
    for cell, pairs in cells.items():
        sides = list(zip(*pairs, strict=True))
        texts = [
            " → ".join(form.format(fmean(row[name] for row in side)) for side in sides)
            for name, form in (("p_confined", "{:.2f}"), ("R", "{:.3f}"))
        ]
        speed = math.exp(fmean(_log_ratio("v")(pair) for pair in pairs))
        accuracy = " → ".join(
            f"{fmean(row['test_accuracy'] for row in side):.1%}" for side in sides
        )
        print(f"| {cell} | {len(pairs)} | {' | '.join(texts)} | {speed:.2f} | {accuracy} |")


def print_differences(cells: dict[str, list[Pair]]) -> None:
    """Print what replacement changes, as means over cells with 95 % by Student's t over cells."""
    parts = {
        "1,000 iterations": [p for p in cells.values() if p[0][0]["training.steps"] == 1000],
        "3,000 iterations": [p for p in cells.values() if p[0][0]["training.steps"] == 3000],
    }
    changes: dict[str, Callable[[Pair], float]] = {
        "probability of confined": lambda pair: pair[1]["p_confined"] - pair[0]["p_confined"],
        "log R": _log_ratio("R"),
        "log velocity": _log_ratio("v"),
        "accuracy": lambda pair: pair[1]["test_accuracy"] - pair[0]["test_accuracy"],
    }
    for part, held in {**parts, "all": [*cells.values()]}.items():
        for name, change in changes.items():
            values = np.array([fmean(change(pair) for pair in pairs) for pairs in held])
            half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
            mean = values.mean()
            print(f"{part}, {name}: {mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f}), "
                  f"{len(values)} cells")  # fmt: skip


def _log_ratio(column: str) -> Callable[[Pair], float]:
    return lambda pair: math.log(pair[1][column] / pair[0][column])


def draw(cells: dict[str, list[Pair]], path: Path) -> None:
    """Draw the probability of confined, and R, with permutations and with replacement."""
    with mpl.rc_context({"font.size": 8}):
        figure = Figure(figsize=(6.6, 0.34 * len(cells) + 1.1), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _dots(left, cells, "p_confined")
        _dots(right, cells, "R")
        left.set_yticks(range(len(cells)), [_name(cell) for cell in cells])
        left.invert_yaxis()
        left.set(xlim=(-0.03, 1.03), xlabel="probability of confined")
        right.set(xscale="log", xlabel="R, plateau of the kernel's displacement")
        right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        right.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        right.xaxis.set_minor_locator(NullLocator())
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160)


def _dots(axes: Axes, cells: dict[str, list[Pair]], column: str) -> None:
    for side, (name, colour) in enumerate(COLOURS.items()):
        for place, pairs in enumerate(cells.values()):
            values = [pair[side][column] for pair in pairs]
            height = place + (0.16 if side else -0.16)
            axes.plot(values, [height] * len(values), "s" if side else "o", ms=3, alpha=0.5,
                      color=colour)  # fmt: skip
            axes.plot(fmean(values), height, "|", ms=11, mew=2, color=colour)
        axes.plot([], [], "s" if side else "o", color=colour,
                  label=f"{name} (marks: seeds; bars: means)")  # fmt: skip
    axes.grid(axis="x", alpha=0.3)


def _name(cell: str) -> str:
    for word, short in _SHORT.items():
        cell = cell.replace(word, short)
    return cell


if __name__ == "__main__":
    main()
