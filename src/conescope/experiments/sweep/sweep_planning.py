"""Make a sweep of runs that are planned, before anything of it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from conescope.errors import StoreError
from conescope.experiments.sweep.sweep_folder import (
    DIGEST,
    Sweep,
    SweepKind,
    SweepRun,
    stored_numbers,
)


class Planned(Protocol):
    """A run that a sweep is to have."""

    @property
    def id(self) -> str:
        """The name of the run, which is also that of its folder."""
        ...

    @property
    def values(self) -> Mapping[str, Any]:
        """Axis → its value in this run."""
        ...

    @property
    def digest(self) -> str | None:
        """The text that tells it from other runs of its name; None if the name has to do."""
        ...

    @property
    def source(self) -> str:
        """A text that is equal for runs that differ in nothing but values of the axes."""
        ...

    @property
    def fields(self) -> Mapping[str, Any]:
        """All its fields as nested plain values."""
        ...

    @property
    def path(self) -> Path | None:
        """Its folder; None for one of its name in the folder of run folders."""
        ...


def plan_sweep(
    points: Sequence[Planned],
    path: Path,
    command: str,
    runs: Path | None = None,
    kind: SweepKind = "training",
) -> Sweep:
    """Return a sweep of these runs; nothing is written.

    Args:
        points: the runs.
        path: the sweep's folder.
        command: the shell command that makes it, for the record.
        runs: the folder of the run folders, which other sweeps may share; by default `runs` in
            the sweep's own folder.
        kind: what the runs do.
    """
    folder = path / "runs" if runs is None else runs
    axes = dict.fromkeys(name for point in points for name in point.values)
    bases: dict[str, Mapping[str, Any]] = {}
    rows = []
    for point in points:
        if point.source not in bases:
            bases[point.source] = point.fields
        base = bases[point.source]
        rows.append(SweepRun(point.id, point.path or folder / point.id, point.values, base))
    return Sweep(path, command, tuple(axes), rows, kind)


def check_same_runs(points: Sequence[Planned], sweep: Sweep) -> None:
    """Check that the runs of a sweep that have ended are those planned, not others of their names.

    Of those that have not, the session that goes on checks it.

    Args:
        points: the runs that were planned, in the order of the sweep's.
        sweep: the sweep that `plan_sweep` made of them.

    Raises:
        StoreError: if one has another recipe.
    """
    for point, run in zip(points, sweep.runs, strict=True):
        held = (stored_numbers(run.path) or {}).get(DIGEST)
        if held is not None and held != point.digest:
            raise StoreError(
                f"{run.path} holds another run, whose recipe has the same id but is not the same; "
                f"choose another folder with --out or --runs"
            )
