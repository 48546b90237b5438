"""What is found in the folders that are served: sweeps, their runs, and runs of none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from conescope.errors import StoreError
from conescope.experiments.sweep.sweep_folder import TABLE, read_sweep

JOURNAL = "journal.jsonl"


@dataclass(frozen=True)
class Served:
    """Folders by the names that they have in addresses.

    Attributes:
        sweeps: the folders of sweeps.
        runs: all run folders.
        single: those of `runs` that belong to no sweep.
    """

    sweeps: Mapping[str, Path]
    runs: Mapping[str, Path]
    single: Mapping[str, Path]


def address_name(path: Path) -> str:
    """Return a name of a folder for addresses, which no other has."""
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]


def find_served(folders: Sequence[Path]) -> Served:
    """Look into run folders, folders of run folders, and sweeps."""
    sweeps = {address_name(path): path for path in _holding(TABLE, folders)}
    of_sweeps = {
        address_name(path): path
        for sweep in sweeps.values()
        for path in _runs_of(sweep)
        if (path / JOURNAL).exists()
    }
    begun = [*_holding(JOURNAL, folders), *_holding(JOURNAL, [one / "runs" for one in folders])]
    runs = {address_name(path): path for path in begun}
    single = {name: path for name, path in runs.items() if name not in of_sweeps}
    return Served(sweeps, runs | of_sweeps, single)


def _holding(file: str, folders: Sequence[Path]) -> Iterator[Path]:
    """Return the folders that hold a file of this name, or else those in them that do."""
    for folder in folders:
        if (folder / file).exists():
            yield folder
        else:
            yield from sorted(found.parent for found in folder.glob(f"*/{file}"))


def _runs_of(sweep: Path) -> list[Path]:
    try:
        return [run.path for run in read_sweep(sweep).runs]
    except StoreError:  # its own page says what is wrong
        return []
