"""Record: how a run folder begins, and each session of work on it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from conescope.errors import DamageWarning, StoreError
from conescope.runs.environment import describe
from conescope.runs.reader import stored_labels
from conescope.runs.store import Folder

_FREE = ("name", "description", "when")


def begin_source(
    folder: Folder,
    source: Mapping[str, Any],
    command: str,
    *,
    total_steps: int | None = None,
    labels: list[int] | None = None,
) -> None:
    """Note what a run without a recipe is of, or check that the folder is of the same.

    Args:
        folder: a run folder that the caller owns.
        source: "name", "description" and "when", which may change, and whatever else makes two
            kernels comparable, which may not; JSON values.
        command: the shell command that makes the run.
        total_steps: its length in iterations, if known.
        labels: the classes of the probe's samples, if known; newer ones take the place of older.

    Raises:
        StoreError: if the folder is of something else; the message says what differs.
    """
    begun = folder.entries("run")
    if not begun:
        folder.append("run", source=dict(source), command=command, total_steps=total_steps)
    else:
        _check_same(folder, begun[0].values.get("source"), source)
    if labels is not None and labels != stored_labels(folder):
        folder.append("labels", labels=labels)


def begin_session(folder: Folder, device: str) -> None:
    """Note versions and machine; warn if they are not those of the last session."""
    environment = describe(device)
    sessions = folder.entries("session")
    if sessions and sessions[-1].values["environment"] != environment:
        before = sessions[-1].values["environment"]
        changed = [name for name in environment if environment[name] != before.get(name)]
        warnings.warn(
            f"{folder.path} was begun with another {', '.join(changed)}: the rest may differ in "
            f"the last digits from an uninterrupted run",
            DamageWarning,
            stacklevel=3,
        )
    folder.append("session", environment=environment)


def _check_same(folder: Folder, held: Mapping[str, Any] | None, source: Mapping[str, Any]) -> None:
    if held is None:
        raise StoreError(f"{folder.path} holds the run of a recipe; choose another folder as out")
    names = [name for name in {**held, **source} if name not in _FREE]
    changed = [n for n in names if held.get(n) != source.get(n)]
    if changed:
        differences = "; ".join(
            f"{name} was {held.get(name)!r} and is {source.get(name)!r}" for name in changed
        )
        raise StoreError(
            f"{folder.path} holds kernels of something else: {differences}; choose another "
            f"folder as out"
        )
