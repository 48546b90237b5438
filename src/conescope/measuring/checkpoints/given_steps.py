"""Take the steps that the user gives, where the names of the checkpoints do not tell them."""

from __future__ import annotations

import csv
import io
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from conescope.errors import CheckpointError
from conescope.measuring.checkpoints.weight_files import some_of

Steps = Sequence[int] | Mapping[str | Path, int] | Callable[[Path], int] | str | Path
"""A step for each checkpoint; by name; by a function of its path; or a CSV file of names."""

EPOCH = re.compile(
    r"(?<![A-Za-z])ep(?:och)?s?[-_=]?(?P<epoch>\d{1,9}(?:\.\d{1,9})?)"
    r"(?:[-_]it(?:er)?(?:ation)?s?[-_=]?(?P<iteration>\d{1,12}))?(?!\d)",
    re.IGNORECASE | re.ASCII,
)
"""A number of epochs in a name, and the iteration in the epoch if it follows."""

_LARGEST_FILE = 10_000_000  # bytes
_HEADERS = ("file", "path", "name", "checkpoint")
_CURE = "each line is a checkpoint's name and its step: step_a.pt,100"


def given_steps(paths: Sequence[Path], steps: Steps, *, has_order: bool) -> list[int]:
    """Return the step of each checkpoint, as the user gives it.

    Args:
        paths: the names of the checkpoints, see `Checkpoint.path`.
        steps: as many as checkpoints, in their order; or name → step, where a name is a
            checkpoint's path or the end of it, such as its file's name; or a function from the
            path to the step; or a file as `read_steps` takes it.
        has_order: whether the checkpoint source has an order, as a list has. A glob or a folder
            has none: its checkpoints are taken in the order of their names, if that is clear.

    Raises:
        CheckpointError: if the steps are not one for each checkpoint, or are no whole numbers at
            least 0.
    """
    if isinstance(steps, str | Path):
        steps = read_steps(steps)
    if isinstance(steps, Mapping):
        found: Sequence[Any] = _by_name(paths, steps)
    elif callable(steps):
        found = [steps(path) for path in paths]
    elif isinstance(steps, Iterable):
        found = _in_order(paths, list(steps), has_order)
    else:
        raise CheckpointError(
            f"the steps are a {type(steps).__name__}; give one for each checkpoint: a list, a "
            f"mapping from names, a function of the path, or a CSV file"
        )
    return [_checked(step, path) for step, path in zip(found, paths, strict=True)]


def read_steps(file: str | Path) -> dict[str | Path, int]:
    """Read the steps in a CSV file: a line for each checkpoint, its name and its step.

    Args:
        file: text in UTF-8 of two columns, file and step, with or without a first line that says
            so; with one, there may be other columns.

    Returns:
        Name → step.

    Raises:
        CheckpointError: if the file cannot be read, or a line is not as it should be; the message
            has the line's number.
    """
    file = Path(file)
    rows = _rows(file)
    columns = _columns(file, rows[0][1]) if rows else None
    steps: dict[str | Path, int] = {}
    lines: dict[str | Path, int] = {}
    for line, row in rows if columns is None else rows[1:]:
        if columns is None and len(row) != 2:
            raise _wrong(file, line, f"has {len(row)} of 2 columns")
        name_at, step_at = columns or (0, 1)
        name, text = (row[at] if at < len(row) else "" for at in (name_at, step_at))
        if not name:
            raise _wrong(file, line, "names no checkpoint")
        if name in steps:
            raise _wrong(file, line, f"names {name}, as line {lines[name]} does")
        if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
            raise _wrong(file, line, f"has the step {text!r}, which is no whole number at least 0")
        steps[name], lines[name] = int(text), line
    if not steps:
        raise CheckpointError(f"{file} holds no steps; {_CURE}")
    return steps


def steps_by_epoch(iterations: int) -> Callable[[Path], int]:
    """Return what tells the step of a checkpoint whose name counts in epochs.

    The step of `model_ep3_it20.pth`, as open_lth names its files, is 3 epochs and 20 iterations;
    that of `epoch=1.5.pt` one epoch and a half.

    Args:
        iterations: the number of iterations in an epoch, at least 1.

    Returns:
        A function from the path of a checkpoint to its step. It raises a `CheckpointError` if the
        name tells no epoch, or a fraction of one that is no whole number of iterations.

    Raises:
        CheckpointError: if there are no iterations in an epoch.
    """
    if iterations < 1:
        raise CheckpointError(
            f"an epoch of {iterations} iterations has no end; give how many batches one pass over "
            f"the training set takes"
        )

    def step(path: Path) -> int:
        found = [*EPOCH.finditer(path.name)]
        if len(found) != 1:
            raise CheckpointError(
                f"{path} names no epoch, as model_ep3_it20.pth does, or several; leave it out by a "
                f"narrower glob, or do not give the iterations of an epoch"
            )
        epoch, iteration = found[0]["epoch"], found[0]["iteration"]
        number = Decimal(epoch) * iterations
        if number != int(number):
            raise CheckpointError(
                f"{path}: {epoch} epochs of {iterations} iterations are {number} iterations, and "
                f"steps are whole numbers; give another number of iterations of an epoch"
            )
        if int(iteration or 0) >= iterations:
            raise CheckpointError(
                f"{path} is at iteration {iteration} of an epoch, which has {iterations}; give the "
                f"number of iterations that an epoch has"
            )
        return int(number) + int(iteration or 0)

    return step


def _rows(file: Path) -> list[tuple[int, list[str]]]:
    """Read the lines that are not empty, with their numbers."""
    if not file.is_file():
        raise CheckpointError(f"{file} is no file; give the CSV file that holds the steps")
    try:
        if file.stat().st_size > _LARGEST_FILE:
            raise CheckpointError(f"{file} is too large for a list of steps; {_CURE}")
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise CheckpointError(f"{file} is no text in UTF-8; save it as CSV in UTF-8") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}; check its rights") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    rows = []
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                rows.append((reader.line_num, cells))
    except csv.Error as error:
        raise _wrong(file, reader.line_num, f"is no CSV ({error})") from None
    return rows


def _columns(file: Path, first: Sequence[str]) -> tuple[int, int] | None:
    """Find the columns of name and step, if the first line names them."""
    titles = [cell.lower() for cell in first]
    if titles.count("step") == 1 and (named := [t for t in titles if t in _HEADERS]):
        if len(named) > 1:
            raise _wrong(file, 1, f"has several columns of names: {', '.join(named)}")
        return titles.index(named[0]), titles.index("step")
    return None


def _wrong(file: Path, line: int, told: str) -> CheckpointError:
    return CheckpointError(f"{file}: line {line} {told}; {_CURE}")


def _by_name(paths: Sequence[Path], steps: Mapping[str | Path, int]) -> list[int]:
    found: dict[Path, tuple[str | Path, int]] = {}
    for name, step in steps.items():
        if not isinstance(name, str | Path):
            raise CheckpointError(f"the steps name {name!r}, which is no name; give texts or paths")
        parts = Path(name).parts
        meant = [p for p in paths if parts and p.parts[-len(parts) :] == parts]
        meant = meant or [p for p in paths if parts and p.resolve() == Path(name).resolve()]
        if not meant:
            raise CheckpointError(
                f"the steps name {name}, which is none of the checkpoints, such as {paths[0]}; "
                f"take it out, or mend the name"
            )
        if len(meant) > 1:
            raise CheckpointError(
                f"the steps name {name}, which may be {meant[0]} or {meant[1]}; give more of the "
                f"path"
            )
        if other := found.get(meant[0]):
            raise CheckpointError(
                f"the steps name {meant[0]} twice, as {other[0]} and as {name}; leave one out"
            )
        found[meant[0]] = name, step
    if lacking := [str(path) for path in paths if path not in found]:
        raise CheckpointError(
            f"the steps have none for {some_of(lacking)}; give it, or leave the checkpoint out"
        )
    return [found[path][1] for path in paths]


def _in_order(paths: Sequence[Path], steps: list[Any], has_order: bool) -> list[Any]:
    if len(steps) != len(paths):
        raise CheckpointError(
            f"{len(steps)} steps are given for {len(paths)} checkpoints, the first of which is "
            f"{paths[0]}; give one for each, in their order, or a mapping from names to steps"
        )
    if not has_order and [*paths] != sorted(paths, key=_by_numbers):
        raise CheckpointError(
            f"the order of {paths[0]} and the others is not clear: by their names as text it is "
            f"another than by the numbers in them; give the checkpoints as a list, or a mapping "
            f"from names to steps"
        )
    return steps


def _by_numbers(path: Path) -> list[tuple[int, str]]:
    """A sort key that puts `a9` before `a10`."""
    pieces = re.split(r"(\d+)", str(path))
    return [(int(text[:300]), "") if text.isdecimal() else (-1, text) for text in pieces]


def _checked(step: Any, path: Path) -> int:
    try:
        number = -1 if isinstance(step, bool) else operator.index(step)
    except TypeError:
        number = -1
    if number < 0:
        raise CheckpointError(
            f"the step given for {path} is {step!r}, but steps are whole numbers, at least 0; "
            f"give the iteration, not a fraction of an epoch"
        )
    return number
