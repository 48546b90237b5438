"""Read the columns of a file of texts; no code in the file is run."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from conescope.errors import DataError
from conescope.runs.foreign import GIGABYTE, read_bounded
from conescope.runs.parquet_tables import read_parquet

TEXT = "text"
"""The column that holds the texts, unless another one is named."""

Columns = Mapping[str, Sequence[Any]]
"""Name → the values of a column."""

Read = tuple[Columns, Mapping[str, Sequence[str]]]
"""The columns of a file, and the names of the classes of those columns that have names for them."""


def _decoded(path: Path) -> str:
    try:
        data = read_bounded(path, DataError, 2 * GIGABYTE)
        return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig").read()
    except UnicodeDecodeError as error:
        raise DataError(
            f"the texts {path} are not in UTF-8 (byte {error.start}); save them in UTF-8"
        ) from None


def _lines(path: Path) -> list[str]:
    """Return the lines of a file; what follows the last line break is one only if it is there."""
    lines = _decoded(path).split("\n")
    return lines if lines[-1] else lines[:-1]


def _read_txt(path: Path) -> Read:
    return {TEXT: _lines(path)}, {}


def _read_jsonl(path: Path) -> Read:
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            held = "empty" if not line.strip() else "no JSON object"
            raise DataError(
                f'line {number} of {path} is {held}; write {{"text": …}} for each text, one a line'
            )
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}, {}


def _read_csv(path: Path) -> Read:
    reader = csv.DictReader(io.StringIO(_decoded(path), newline=""), strict=True)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise DataError(
            f"line {reader.line_num} of {path} is no CSV: {error}; put quotes around texts with "
            f"commas or quotes, or save them as .jsonl"
        ) from None
    names = list(reader.fieldnames or [])
    if len({*names}) < len(names) or (len(names) == 1 and re.search(r"[;\t|]", names[0])):
        raise DataError(
            f"the first line of {path} names one column twice, or columns that no comma "
            f"separates; write each name once, with commas between them"
        )
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise DataError(
                f"row {number} of {path} has more or fewer fields than the first line "
                f"({', '.join(names)}); put quotes around texts with commas"
            )
    return {name: [row[name] for row in rows] for name in names}, {}


def _read_parquet(path: Path) -> Read:
    columns, notes = read_parquet(path)
    return columns, _class_names(notes.get(b"huggingface"))


def _class_names(noted: bytes | None) -> dict[str, list[str]]:
    """Return the names of classes that a note of the library datasets has; it may have none."""
    try:
        features = json.loads(noted or b"")["info"]["features"].items()
        return {
            name: list(map(str, each["names"]))
            for name, each in features
            if isinstance(each, dict) and each.get("_type") == "ClassLabel"
        }
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}


READERS: dict[str, Callable[[Path], Read]] = {
    ".jsonl": _read_jsonl, ".txt": _read_txt, ".parquet": _read_parquet, ".csv": _read_csv,
}  # fmt: skip
"""Suffix → function that reads the columns of such a file."""
