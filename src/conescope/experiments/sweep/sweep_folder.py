"""The folder of a sweep: the table of its runs, and how far each of them is."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from conescope.errors import StoreError
from conescope.runs import contents
from conescope.runs.store import Folder
from conescope.training.recipe import Recipe
from conescope.training.recipe_reading import recipe_from_dict

TABLE = "sweep.json"
"""File of a sweep's folder that says which runs it has."""

_FORMAT = 1
_NUMBERS = "row.json"
_JOURNAL = "journal.jsonl"
ERROR = "error.txt"
"""File of a run folder that holds the line of the error that ended the last attempt."""

LOG = "log.txt"
"""File of a run folder that holds what its attempts printed."""

QUEUED = "queued.txt"
"""File of a run folder that the command has locked for a worker that has not begun yet."""

DIGEST = "recipe"
"""The name, among a run's numbers, of what tells its recipe from all others: `Recipe.digest`."""

SweepKind = Literal["training", "measurement"]
"""What the runs of a sweep do: train by recipes, or measure weights that are there."""

State = Literal["finished", "diverged", "running", "failed", "stopped", "waiting"]
"""How far a run is: a diverged one is not tried again, a failed or stopped one goes on."""

STATES: tuple[State, ...] = get_args(State)
ENDED: tuple[State, ...] = ("finished", "diverged")
"""The states from which nothing follows."""


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        id: what names it in the sweep; unless the sweep says where, also the name of its folder.
        path: its folder, which exists once it has begun.
        values: axis → value.
        base: the recipe, or what to measure, as nested plain values, of which the run changes
            the axes.
    """

    id: str
    path: Path
    values: Mapping[str, Any]
    base: Mapping[str, Any]

    @property
    def recipe(self) -> Recipe:
        """The recipe to carry out, of a run that trains."""
        return recipe_from_dict(self.fields, str(self.path))

    @property
    def fields(self) -> dict[str, Any]:
        """All fields of the recipe, or of the measurement, as nested plain values."""
        fields = {
            name: dict(value) if isinstance(value, Mapping) else value
            for name, value in self.base.items()
        }
        for name, value in self.values.items():
            section, _, inner = name.partition(".")
            if inner:
                fields[section][inner] = value
            elif name in fields:
                fields[name] = value
        return fields

    @property
    def error(self) -> str:
        """The line of the error that ended the last attempt; empty if none did."""
        try:
            return (self.path / ERROR).read_text("utf-8", errors="replace").strip()
        except OSError:
            return ""

    def state(self) -> State:
        """Return how far the run is.

        Raises:
            StoreError: if its journal cannot be read.
        """
        if numbers := stored_numbers(self.path):
            return numbers["state"]
        if not self.path.exists():
            return "waiting"
        folder = Folder(self.path)
        if contents.why_diverged(folder) is not None:
            return "diverged"
        if contents.is_finished(folder):
            return "finished"
        if folder.is_owned() and not (self.path / QUEUED).exists():
            return "running"
        if self.error:
            return "failed"
        return "stopped" if contents.has_run(folder) else "waiting"


@dataclass(frozen=True)
class Sweep:
    """A sweep as its folder holds it.

    Attributes:
        path: the folder.
        command: the shell command that made it.
        axes: the names of the axes, `recipe` among them if there are several recipes.
        runs: the table of runs.
        kind: what the runs do.
    """

    path: Path
    command: str
    axes: tuple[str, ...]
    runs: Sequence[SweepRun]
    kind: SweepKind = "training"

    @cached_property
    def lengths(self) -> dict[str, int]:
        """The number of different values of each axis."""
        return {
            name: len({json.dumps(run.values.get(name)) for run in self.runs}) for name in self.axes
        }


def store_sweep(sweep: Sweep) -> None:
    """Write the table of a sweep into its folder, in place of an earlier one.

    Raises:
        StoreError: if it cannot be written.
    """
    bases: list[Mapping[str, Any]] = []
    places: dict[int, int] = {}
    rows = []
    for run in sweep.runs:
        if id(run.base) not in places:
            places[id(run.base)] = len(bases)
            bases.append(run.base)
        folder = os.path.relpath(run.path, sweep.path)
        rows.append([run.id, places[id(run.base)], run.values, folder])
    held = {
        "format": _FORMAT,
        "conescope": version("conescope"),
        "kind": sweep.kind,
        "command": sweep.command,
        "axes": sweep.axes,
        "bases": bases,
        "runs": rows,
    }
    Folder(sweep.path).write_bytes(TABLE, json.dumps(held).encode())


def read_sweep(path: str | Path) -> Sweep:
    """Read the folder of a sweep.

    Raises:
        StoreError: if it is no such folder, its table is damaged, or a newer conescope wrote it.
    """
    path = Path(path)
    try:
        held = json.loads((path / TABLE).read_bytes())
        if held["format"] > _FORMAT:
            raise StoreError(
                f"{path / TABLE} was written by conescope {held['conescope']}, and this one, "
                f"{version('conescope')}, is too old to read it; install that version"
            )
        runs = [
            SweepRun(name, Path(os.path.normpath(path / folder)), values, held["bases"][place])
            for name, place, values, folder in held["runs"]
        ]
        if not runs or held["kind"] not in get_args(SweepKind):
            raise ValueError("no runs, or none of a known kind")
        return Sweep(path, str(held["command"]), tuple(held["axes"]), runs, held["kind"])
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            f"{path} is the folder of no sweep; give the one that 'conescope sweep … --out' made"
        ) from None
    except OSError as error:
        raise StoreError(
            f"cannot read {path / TABLE}: {error.strerror}; mend that, and read it again"
        ) from error
    except (ValueError, LookupError, TypeError, AttributeError):
        raise StoreError(
            f"{path / TABLE} is damaged; run the sweep's command again, which writes it anew"
        ) from None


def store_numbers(path: Path, numbers: Mapping[str, Any]) -> None:
    """Write the numbers of a run that has ended into its folder, so that tables read only these.

    Args:
        path: the run folder.
        numbers: JSON values, "state" among them; they hold until the journal grows.

    Raises:
        StoreError: if they cannot be written.
    """
    held = {"journal": (path / _JOURNAL).stat().st_size, "numbers": dict(numbers)}
    Folder(path).write_bytes(_NUMBERS, json.dumps(held).encode())


def stored_numbers(path: Path) -> dict[str, Any] | None:
    """Return what `store_numbers` wrote; None if nothing, or if the journal has grown since."""
    try:
        held = json.loads((path / _NUMBERS).read_bytes())
        size = (path / _JOURNAL).stat().st_size
        is_whole = held["journal"] == size and held["numbers"]["state"] in ENDED
        return held["numbers"] if is_whole else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
