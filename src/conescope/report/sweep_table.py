"""load_sweep(): what a sweep has found so far, as one table with a row for each run."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conescope.argument_types import checked
from conescope.errors import DamageWarning, KernelError, StoreError
from conescope.experiments.sweep.sweep_folder import (
    ENDED,
    Sweep,
    SweepRun,
    read_sweep,
    store_numbers,
    stored_numbers,
)
from conescope.report.run_numbers import NUMBERS, run_numbers
from conescope.statistics.cone.seeds import mean_over_seeds
from conescope.statistics.cone.verdict import CERTAIN, KINDS

if TYPE_CHECKING:
    import pyarrow as pa

_TEXTS = ("state", "verdict", "likeliest")
_COUNTS = ("iterations", "kernels")
AVERAGED = ("test_accuracy", "test_loss", "S", "v", "R", "half_angle")
"""The numbers that have an interval over seeds."""

_MOST = {"test_accuracy": 1.0, "S": 1.0}
"""Number → the value that it cannot exceed, at which its interval ends at the latest."""

PROBABILITIES = {kind: f"p_{kind.replace(' ', '_')}" for kind in KINDS}
"""Kind of motion → the column of its probability."""

Row = dict[str, Any]


@dataclass(frozen=True)
class SweepResults:
    """What the runs of a sweep have found so far.

    Attributes:
        sweep: the runs and their axes.
        rows: for each run "run", its axes, "state", "verdict", "likeliest" and "probability" (the
            most probable kind of motion) and the columns `conescope.report.run_numbers.NUMBERS`.
    """

    sweep: Sweep
    rows: Sequence[Row]

    def table(self) -> pa.Table:
        """Return the table as Arrow's, with all fields of the recipes.

        pandas and polars take it as it is: `table.to_pandas()`, `polars.from_arrow(table)`.
        """
        full = []
        for run, row in zip(self.sweep.runs, self.rows, strict=True):
            fields = {n: v for n, v in _flat(run.fields) if n not in row}
            full.append(row | {"error": run.error or None, "folder": str(run.path)} | fields)
        return _arrow(full)

    def over_seeds(self) -> pa.Table:
        """Return a row for each setting: means over its finished seeds with 95 % intervals."""
        return _arrow(self.settings)

    @cached_property
    def settings(self) -> list[Row]:
        """A row for each combination of the axes beside the seed.

        "seeds" counts the runs that finished and "diverged" those that diverged. Each of `AVERAGED`
        has a mean, and by Student's t the ends `_low` and `_high` of its interval. The verdict
        follows from the mean probabilities, as in `conescope.statistics.cone.over_seeds`.
        """
        axes = [name for name in self.sweep.axes if name != "seed"]
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(json.dumps([row[name] for name in axes]), []).append(row)
        return [{name: rows[0][name] for name in axes} | _setting(rows) for rows in groups.values()]


@checked
def load_sweep(path: str | Path, *, store: bool = True) -> SweepResults:
    """Read the folder of a sweep, finished or not.

    Numbers of runs that have ended are computed once, and then read from their folders.

    Args:
        path: the folder.
        store: whether to write numbers that had to be computed into the runs' folders.

    Raises:
        StoreError: if it is the folder of no sweep, or a run's journal is damaged.

    Warns:
        DamageWarning: for each run whose kernels are damaged; its state is "damaged", and it has no
            numbers until its command has made them anew.
    """
    sweep = read_sweep(path)
    return SweepResults(sweep, [_row(run, store) for run in sweep.runs])


def _row(run: SweepRun, store: bool) -> Row:
    numbers = stored_numbers(run.path)
    if numbers is None:
        state = run.state()
        if state in ENDED:
            try:
                numbers = run_numbers(run.path)
            except (StoreError, KernelError) as error:
                text = f"run {run.id} is left out of the numbers: {error}"
                warnings.warn(text, DamageWarning, stacklevel=4)
                return _row_of(run, {"state": "damaged"})
            if store:
                with suppress(StoreError):  # an archive that cannot be written to can be read
                    store_numbers(run.path, numbers)
        else:
            numbers = {"state": state}
    return _row_of(run, numbers)


def _row_of(run: SweepRun, numbers: Mapping[str, Any]) -> Row:
    names = ("state", "verdict", "likeliest", "probability", *NUMBERS)
    return {"run": run.id, **run.values, **{name: numbers.get(name) for name in names}}


def _setting(rows: Sequence[Row]) -> Row:
    finished = [row for row in rows if row["state"] == "finished"]
    diverged = sum(row["state"] == "diverged" for row in rows)
    found: Row = {"seeds": len(finished), "diverged": diverged, "runs": len(rows)}
    told = [row for row in finished if row["verdict"] is not None]
    mean = {
        kind: math.fsum(row[column] for row in told) / len(told) if told else None
        for kind, column in PROBABILITIES.items()
    }
    likeliest = max(mean, key=lambda kind: mean[kind] or 0.0) if told else None
    sure = None if likeliest is None else mean[likeliest]
    alone = told[0]["verdict"] if len(told) == 1 else None  # which weighs the number of kernels
    found["verdict"] = alone or (
        None if sure is None else likeliest if sure >= CERTAIN else "undecided"
    )
    found |= {"likeliest": likeliest, "probability": sure}
    found |= {PROBABILITIES[kind]: p for kind, p in mean.items()}
    for name in AVERAGED:
        values = [row[name] for row in finished if row[name] is not None]
        found |= dict.fromkeys((name, f"{name}_low", f"{name}_high"))
        if len(values) > 1:
            interval = mean_over_seeds(values, level=0.95, most=_MOST.get(name, math.inf))
            found |= {
                name: interval.value,
                f"{name}_low": interval.low,
                f"{name}_high": interval.high,
            }
        elif values:
            found[name] = values[0]
    return found


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _arrow(rows: Sequence[Row]) -> pa.Table:
    """Return rows as a table; a column of mixed types becomes text."""
    import pyarrow as pa

    names = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        kind = _type(name)
        plain = all(isinstance(value, str | int | float | None) for value in values)
        kinds = {type(value) for value in values if value is not None}
        if kind is None and not (plain and (len(kinds) < 2 or kinds == {int, float})):
            values = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
        if kind is None and kinds == {int, float}:
            kind = "double"
        columns[name] = pa.array(values, None if kind is None else getattr(pa, _TYPES[kind])())
    return pa.table(columns)


_TYPES = {"double": "float64", "count": "int64", "text": "string"}


def _type(name: str) -> str | None:
    """Return the type of a column that has one even if no run has a value."""
    if name in _TEXTS or name == "error":
        return "text"
    if name in _COUNTS:
        return "count"
    stem = name.removesuffix("_low").removesuffix("_high")
    return "double" if stem in NUMBERS or name == "probability" else None
