"""Read the columns of a file of texts; no code in the file is run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from conescope.errors import DataError

TEXT = "text"
"""The column that holds the texts, unless another one is named."""

Columns = Mapping[str, Sequence[Any]]
"""Name → the values of a column."""

Read = tuple[Columns, Mapping[str, Sequence[str]]]
"""The columns of a file, and the names of the classes of those columns that have names for them."""


def _decoded(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"the texts {path} are not in UTF-8 (byte {error.start}); save them in UTF-8"
        ) from None
    except OSError as error:
        raise DataError(f"cannot read the texts {path}: {error.strerror}") from None


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
        except ValueError:
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
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise DataError(
                f"row {number} of {path} has more or fewer fields than the first line "
                f"({', '.join(names)}); put quotes around texts with commas"
            )
    return {name: [row[name] for row in rows] for name in names}, {}


def _read_parquet(path: Path) -> Read:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
        columns = {name: table[name].to_pylist() for name in table.column_names}
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"the texts {path} are no parquet file: {reason}") from None
    noted = (table.schema.metadata or {}).get(b"huggingface")
    features = json.loads(noted).get("info", {}).get("features", {}) if noted else {}
    names = {
        name: feature["names"]
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }
    return columns, names


READERS: dict[str, Callable[[Path], Read]] = {
    ".jsonl": _read_jsonl, ".txt": _read_txt, ".parquet": _read_parquet, ".csv": _read_csv,
}  # fmt: skip
"""Suffix → function that reads the columns of such a file."""
