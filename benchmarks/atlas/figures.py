"""The figures of the atlas: the phase diagram, the lines through the base, and the predictor."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.atlas.cells import lines
from benchmarks.atlas.predictor import Curve
from benchmarks.atlas.table import CANDIDATES, Row, by_cell, mean

KINDS = {
    "confined": "#0072B2",
    "mixed": "#CC79A7",
    "free diffusion": "#E69F00",
    "drift": "#009E73",
    "frozen": "#999999",
}
"""Kind of motion → its colour, of Okabe and Ito's; what is left is undecided."""

_SIZE = {"font.size": 8, "axes.titlesize": 9}


def plane(rows: list[Row], path: Path) -> None:
    """Draw the phase diagram over learning rate and batch size."""
    fields = lines()["plane"]
    rates, batches = fields["optimizer.lr"], fields["training.batch_size"]
    shown = [r for r in rows if _is_plain(r)]
    with mpl.rc_context(_SIZE):
        figure = Figure(figsize=(5.2, 3.2), layout="constrained")
        axes = figure.subplots()
        values = np.full((len(batches), len(rates)), np.nan)
        for place in np.ndindex(values.shape):
            batch, rate = batches[place[0]], rates[place[1]]
            cell = {"optimizer.lr": rate, "training.batch_size": batch}
            own = [r for r in shown if all(r[name] == value for name, value in cell.items())]
            held = [r for r in own if r["p_confined"] is not None]
            if held:
                values[place] = mean(held, "p_confined")
            axes.text(place[1], place[0], _text(own, held), ha="center", va="center",
                      color="white" if values[place] > 0.5 else "black", fontsize=7)  # fmt: skip
        image = axes.imshow(values, vmin=0, vmax=1, cmap="Blues", aspect="auto", origin="lower")
        axes.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        axes.set_yticks(range(len(batches)), [str(batch) for batch in batches])
        axes.set_xlabel("learning rate η")
        axes.set_ylabel("batch size B")
        figure.colorbar(image, label="probability of confined")
        _save(figure, path)


def factors(rows: list[Row], path: Path) -> None:
    """Draw the probabilities of each kind of motion in every cell off the plane."""
    cells = by_cell(rows)
    names = ["base", *(c for c, held in cells.items() if c != "base" and not _is_plain(held[0]))]
    names = [name for name in names if name in cells]
    with mpl.rc_context(_SIZE):
        figure = Figure(figsize=(6.4, 0.19 * len(names) + 0.9), layout="constrained")
        axes = figure.subplots()
        left = np.zeros(len(names))
        for kind, colour in KINDS.items():
            column = f"p_{kind.replace(' ', '_')}"
            share = np.array([mean(cells[name], column) for name in names])
            axes.barh(names, share, left=left, color=colour, label=kind)
            left += share
        axes.barh(names, 1 - left, left=left, color="#eeeeee", label="undecided")
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xlabel("probability, mean over seeds")
        axes.tick_params(axis="y", labelsize=6.5)
        figure.legend(loc="outside upper center", ncols=6, frameon=False, fontsize=7)
        _save(figure, path)


def predictors(fit: list[Row], test: list[Row], curves: list[Curve], path: Path) -> None:
    """Draw the probability of confined against each candidate, with its curve."""
    with mpl.rc_context(_SIZE):
        figure = Figure(figsize=(7.0, 2.3), layout="constrained")
        grid = figure.subplots(1, len(curves), sharey=True)
        for axes, curve in zip(grid, curves, strict=True):
            _predictor(axes, fit, test, curve)
        grid[0].set_ylabel("probability of confined")
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
        _save(figure, path)


def _predictor(axes: Axes, fit: list[Row], test: list[Row], curve: Curve) -> None:
    looks = (
        ("cells that found the curve", fit, "#0072B2", "o", True),
        ("held out", [r for r in test if r["model.name"] == "mlp"], "#D55E00", "s", False),
        ("held out, LeNet-5", [r for r in test if r["model.name"] != "mlp"], "#009E73", "^", False),
    )
    for label, rows, colour, marker, is_filled in looks:
        cells = by_cell(rows).values()
        x = [float(np.exp(np.mean([np.log(r[curve.candidate]) for r in held]))) for held in cells]
        y = [mean(held, "p_confined") for held in cells]
        face = colour if is_filled else "none"
        axes.plot(x, y, marker, color=colour, ms=4, mfc=face, label=label)
    x = np.array([row[curve.candidate] for row in [*fit, *test]])
    span = np.geomspace(x.min(), x.max(), 100)
    axes.plot(span, curve(span), "-", color="black", lw=1, label="logistic curve")
    axes.axhline(0.5, color="#999999", lw=0.5)
    axes.set_xscale("log")
    axes.set_title(f"{curve.candidate} = {CANDIDATES[curve.candidate]}", fontsize=7)


def _is_plain(row: Row) -> bool:
    """Return whether a cell differs from the base in learning rate and batch size only."""
    names = [word.partition("=")[0] for word in row["cell"].split() if "=" in word]
    return set(names) <= {"optimizer.lr", "training.batch_size"}


def _text(own: list[Row], held: list[Row]) -> str:
    if not held:
        return f"{len(own)} without\na motion" if own else "not run"
    likeliest = max(KINDS, key=lambda kind: mean(held, f"p_{kind.replace(' ', '_')}"))
    radius = mean(held, "R")
    lost = f"\n{len(own) - len(held)} lost" if len(own) > len(held) else ""
    return f"{likeliest}\nR = {radius:.2g}{lost}"


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
