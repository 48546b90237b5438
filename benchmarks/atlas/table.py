"""The atlas as a table with a row for each run that has ended."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.atlas.cells import is_held_out
from conescope.experiments.stored import load_run
from conescope.experiments.sweep.sweep_folder import ENDED, SweepRun
from conescope.report.run_numbers import NUMBERS
from conescope.report.sweep_table import load_sweep

Row = dict[str, Any]

CANDIDATES: Mapping[str, str] = {
    "T1": "η / (B (1 − β))",
    "T2": "T1 · tr K / n",
    "T3": "T2 · training loss",
    "T4": "η λ_max / (2 (1 + β) n c)",
}
"""The numbers that may predict a cone, by their columns."""

FIELDS = (
    "model.name", "model.width", "model.layers", "model.norm", "optimizer.name", "optimizer.lr",
    "optimizer.momentum", "optimizer.weight_decay", "training.batch_size", "training.steps",
    "training.replacement", "training.loss", "data.augmentation", "data.label_noise",
    "data.train_size",
)  # fmt: skip

_CLASSES = 10


def rows_of(sweeps: Mapping[int, Path]) -> list[Row]:
    """Return the rows of the runs that have ended, from the number of a round → its sweep."""
    return [
        {"round": number, **_row(run, numbers)}
        for number, results in ((number, load_sweep(path)) for number, path in sweeps.items())
        for run, numbers in zip(results.sweep.runs, results.rows, strict=True)
        if numbers["state"] in ENDED
    ]


def _row(run: SweepRun, numbers: Row) -> Row:
    fields = run.fields
    row: Row = {"cell": run.values["cell"], "seed": run.values["seed"], "run": run.id}
    row["held_out"] = is_held_out(row["cell"])
    for name in FIELDS:
        section, _, inner = name.partition(".")
        row[name] = fields[section].get(inner)
    row |= {name: numbers.get(name) for name in ("state", "verdict", "likeliest", "probability")}
    row |= {name: numbers.get(name) for name in NUMBERS}
    return row | _predictors(run, row)


def _predictors(run: SweepRun, row: Row) -> dict[str, float | None]:
    """Return trace and sharpness of the last kernel, and the candidates of a run by SGD."""
    found: dict[str, float | None] = dict.fromkeys(("trace", "sharpness", *CANDIDATES))
    if row["state"] != "finished":
        return found
    kernel = load_run(run.path).series.kernels[-1].matrix.double().numpy()
    samples = len(kernel)
    trace = float(np.trace(kernel)) / samples
    sharpness = float(np.linalg.eigvalsh(kernel)[-1]) / (samples * _CLASSES)
    found |= {"trace": trace, "sharpness": sharpness}
    if row["optimizer.name"] == "sgd":
        rate, momentum = row["optimizer.lr"], row["optimizer.momentum"]
        heat = rate / (row["training.batch_size"] * (1 - momentum))
        found["T1"], found["T2"] = heat, heat * trace
        found["T3"] = heat * trace * row["train_loss"]
        found["T4"] = rate * sharpness / (2 * (1 + momentum))
    return {name: v if v is None or math.isfinite(v) else None for name, v in found.items()}


def with_rows(rows: list[Row], added: list[Row]) -> list[Row]:
    """Return rows with others, which take the place of those of the same round and run."""
    merged = {(row["round"], row["run"]): row for row in (*rows, *added)}
    return sorted(merged.values(), key=lambda row: row["round"])


def write(rows: list[Row], table: Path) -> None:
    """Write rows as parquet; a column that a row lacks is null there."""
    table.parent.mkdir(parents=True, exist_ok=True)
    columns = dict.fromkeys(name for row in rows for name in row)
    whole = [{name: row.get(name) for name in columns} for row in rows]
    pq.write_table(pa.Table.from_pylist(whole), table)


def by_cell(rows: list[Row]) -> dict[str, list[Row]]:
    """Return cell → its rows that have a probability of each kind of motion."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["p_confined"] is not None:
            found.setdefault(row["cell"], []).append(row)
    return found


def mean(rows: list[Row], name: str) -> float:
    """Return the mean of a column over rows."""
    return math.fsum(row[name] for row in rows) / len(rows)
