"""Checks of a run folder that compute no kernel: journal, files, recipe, and what is absent."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from conescope.errors import ConescopeError, DamageWarning, StoreError
from conescope.experiments.moments import Moments
from conescope.experiments.verifying.verdicts import Check, Verdict
from conescope.runs.contents import KERNEL_FOLDERS, by_step, evaluated_steps, has_run, is_finished
from conescope.runs.journal import Kind
from conescope.runs.store import Folder
from conescope.training.recipe import Recipe
from conescope.training.recipe_reading import load_recipe

_FILES = (*KERNEL_FOLDERS, Kind.SNAPSHOT, Kind.ORIGIN, Kind.RESULT)
_SHOWN = 5


def open_folder(path: Path) -> tuple[Folder, list[Check]]:
    """Open a run folder, and check its journal.

    Raises:
        StoreError: if the folder holds no run, or its journal cannot be read.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DamageWarning)
        folder = Folder(path)
    if not has_run(folder):
        raise StoreError(f"{path} holds no run; give a folder that conescope made")
    damage = [str(one.message) for one in caught if issubclass(one.category, DamageWarning)]
    checks = [Check("journal", "journal.jsonl", Verdict.DIFFERENT, text) for text in damage]
    if not damage:
        count = len(folder.entries(*Kind))
        checks = [Check("journal", f"{count:,} lines of journal.jsonl", Verdict.EQUAL)]
    return folder, checks


def file_checks(
    folder: Folder, left_out: Mapping[str, str], *, running: bool = False
) -> Iterator[Check]:
    """Compare each file that the journal names with its checksum.

    Args:
        folder: the run folder.
        left_out: names of snapshots that an archive was made without → their sha256.
        running: whether a process works on the run, which may remove snapshots meanwhile.
    """
    for kind in _FILES:
        for entry in folder.files(kind):
            name, digest = entry.values["file"], entry.values["sha256"]
            if folder.is_whole(entry):
                yield Check("files", name, Verdict.EQUAL)
            elif kind == Kind.SNAPSHOT and left_out.get(name) == digest:
                yield Check("files", name, Verdict.UNVERIFIED, "the archive was made without it")
            elif kind == Kind.SNAPSHOT and running:
                yield Check("files", name, Verdict.UNVERIFIED, "the run removes old snapshots")
            elif (folder.path / name).exists():
                yield Check("files", name, Verdict.DIFFERENT, "it is not what the journal names")
            else:
                yield Check("files", name, Verdict.DIFFERENT, "it is missing")


def recipe_check(folder: Folder, recipe: Recipe) -> Check:
    """Compare recipe.yaml, which is for people, with the recipe that the journal holds."""
    name, path = "recipe.yaml", folder.path / "recipe.yaml"
    if not path.exists():
        return Check("recipe", name, Verdict.UNVERIFIED, "it is missing; the journal has the same")
    try:
        shown = load_recipe(str(path)).to_dict()
    except ConescopeError as error:
        return Check("recipe", name, Verdict.DIFFERENT, str(error))
    for field, held in _flat(recipe.to_dict()):
        other = dict(_flat(shown)).get(field)
        if json.dumps(other) != json.dumps(held):
            detail = f"{field} is {other!r}, and the run's is {held!r}"
            return Check("recipe", name, Verdict.DIFFERENT, detail)
    return Check("recipe", name, Verdict.EQUAL)


def absence_checks(folder: Folder, moments: Moments, *, averages: bool) -> Iterator[Check]:
    """Name what a finished run's recipe asks for and the journal lacks, or has beyond it.

    Args:
        folder: the run folder.
        moments: the iterations at which the recipe asks for something.
        averages: whether it asks for kernels of the averaged weights.
    """
    kernels = set(by_step(folder, Kind.KERNEL))
    held = {"evaluations": (evaluated_steps(folder), moments.evaluate)}
    held["kernels"] = (kernels, moments.kernel)
    if averages:
        held["kernels of averaged weights"] = (
            set(by_step(folder, Kind.AVERAGED_KERNEL)), moments.kernel,
        )  # fmt: skip
    for name, (found, wanted) in held.items():
        if extra := found - wanted:
            yield _listed(name, "the recipe asks for none at iteration", extra)
        if is_finished(folder) and (missing := wanted - found):
            yield _listed(name, "the journal names none at iteration", missing)


def _listed(name: str, what: str, steps: Set[int]) -> Check:
    shown = ", ".join(f"{step:,}" for step in sorted(steps)[:_SHOWN])
    more = f" and {len(steps) - _SHOWN:,} more" if len(steps) > _SHOWN else ""
    return Check("journal", name, Verdict.DIFFERENT, f"{what} {shown}{more}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
