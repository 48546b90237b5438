"""The atlas's table, numbers and figures, of the runs that have ended.

    python -m benchmarks.atlas.report --table atlas.parquet --sweep sweeps/atlas sweeps/second …
    python -m benchmarks.atlas.report --table docs/data/atlas.parquet --add 3 sweeps/resnet20
    python -m benchmarks.atlas.report --table docs/data/atlas.parquet --figures docs/figures

With `--sweep` the table is made from the runs, with `--add` those of one round are added to it;
without them, it is read. What the fourth round says, `benchmarks.atlas.order_report` prints.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.atlas import figures
from benchmarks.atlas.order_report import ROUND
from benchmarks.atlas.predictor import (
    Curve,
    Score,
    fitted,
    fitted_power,
    score,
    score_of_constant,
    usable,
)
from benchmarks.atlas.table import CANDIDATES, Row, by_cell, mean, rows_of, with_rows, write


def main() -> None:
    """Make or read the table, print what it says, and draw the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", type=Path, required=True, help="parquet file")
    parser.add_argument("--sweep", type=Path, nargs="+", help="folders of the rounds: new table")
    parser.add_argument("--add", nargs=2, metavar=("ROUND", "SWEEP"), help="to the table there is")
    parser.add_argument("--figures", type=Path, help="folder to draw into")
    arguments = parser.parse_args()
    if arguments.sweep is not None:
        write(rows_of(dict(enumerate(arguments.sweep, start=1))), arguments.table)
    rows = pq.read_table(arguments.table).to_pylist()
    if arguments.add is not None:
        number, sweep = arguments.add
        rows = with_rows(rows, rows_of({int(number): Path(sweep)}))
        write(rows, arguments.table)
    print_cells([row for row in rows if row["round"] != ROUND])
    first = [row for row in rows if row["round"] == 1]
    fit, test, curves = print_predictors(first)
    print_floor(fit, test)
    print_radius(first)
    print_second(first, [row for row in rows if row["round"] == 2])
    if arguments.figures is not None:
        mnist = [row for row in rows if row["round"] < 3]
        figures.plane(mnist, arguments.figures / "atlas-plane.png")
        figures.factors(mnist, arguments.figures / "atlas-factors.png")
        figures.predictors(fit, test, curves, arguments.figures / "atlas-predictor.png")


def print_cells(rows: list[Row]) -> None:
    """Print a line for each cell: seeds, probabilities and numbers, as means over seeds."""
    print(f"{len(rows)} runs")
    cells: dict[str, list[Row]] = {}
    for row in rows:
        cells.setdefault(row["cell"], []).append(row)
    names = ("p_confined", "p_mixed", "p_free_diffusion", "p_drift", "S", "R", "half_angle")
    print("| cell | seeds | " + " | ".join(names) + " | accuracy |")
    print("|---|---|" + "---|" * (len(names) + 1))
    for cell, own in cells.items():
        held = [row for row in own if row["p_confined"] is not None]
        texts = [f"{mean(held, name):.2g}" if held else "–" for name in names]
        accuracies = [row["test_accuracy"] for row in own if row["test_accuracy"] is not None]
        accuracy = f"{np.mean(accuracies):.1%}" if accuracies else "–"
        seeds = f"{len(held)} of {len(own)}" if len(held) < len(own) else str(len(own))
        print(f"| {cell} | {seeds} | {' | '.join(texts)} | {accuracy} |")


def print_predictors(rows: list[Row]) -> tuple[list[Row], list[Row], list[Curve]]:
    """Print each candidate's curve and its scores; return fitting rows, held-out rows, curves."""
    told = usable(rows)
    fit, test = ([r for r in told if r["held_out"] == held] for held in (False, True))
    curves = [fitted(fit, name) for name in CANDIDATES]
    print("| number | ½ at | slope | fitting cells | held out | of these MLP | LeNet-5 |")
    print("|---|---|---|---|---|---|---|")
    parts = [
        fit, test, *([r for r in test if r["model.name"] == name] for name in ("mlp", "lenet5"))
    ]  # fmt: skip
    for curve in curves:
        scores = [_text(score(curve, part)) for part in parts if part]
        print(f"| {curve.candidate} = {CANDIDATES[curve.candidate]} | {curve.threshold:.2g} "
              f"| {curve.slope:.2g} | {' | '.join(scores)} |")  # fmt: skip
    scores = [_text(score_of_constant(fit, part)) for part in parts if part]
    print(f"| the fitting cells' mean | – | – | {' | '.join(scores)} |")
    return fit, test, curves


def print_floor(fit: list[Row], test: list[Row]) -> None:
    """Print how well each candidate predicts the floor of S, as a factor."""
    print("| number | power | fitting cells | held out |")
    print("|---|---|---|---|")
    for name in CANDIDATES:
        power = fitted_power(fit, name)
        texts = [f"factor {10**error:.2f} ({n})" for n, error in map(power.error, (fit, test))]
        print(f"| {name} | {power.slope:.2f} | {' | '.join(texts)} |")


def print_second(first: list[Row], second: list[Row]) -> None:
    """Print what curves of all first-round cells without normalisation say of the second's."""
    plain = [r for r in usable(first) if r["model.name"] == "mlp" and r["model.norm"] is None]
    held = [r for r in usable(second) if r["model.name"] == "mlp" and r["model.norm"] is None]
    if not held:
        return
    for name in CANDIDATES:
        curve = fitted(plain, name)
        print(f"{name}: ½ at {curve.threshold:.2g}; first round {_text(score(curve, plain))}; "
              f"second round {_text(score(curve, held))}")  # fmt: skip


def print_radius(rows: list[Row]) -> None:
    """Print the slope of log R against log of each candidate among the confined cells."""
    cells = [held for held in by_cell(usable(rows)).values() if mean(held, "p_confined") > 0.5]
    print(f"{len(cells)} confined cells by SGD")
    if len(cells) < 4:
        return
    y = np.log([mean(held, "R") for held in cells])
    for name in CANDIDATES:
        x = np.log([mean(held, name) for held in cells])
        slope, correlation = np.polyfit(x, y, 1)[0], np.corrcoef(x, y)[0, 1]
        print(f"log R against log {name}: slope {slope:.2f}, correlation {correlation:.2f}")


def _text(found: Score) -> str:
    return f"{found.wrong:.0%} of {found.cells} wrong, {found.squared:.3f}"


if __name__ == "__main__":
    main()
