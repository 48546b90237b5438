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

_MOST_ROWS = 10_000_000

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
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as opened:
            check_parquet(opened.metadata, path)
            table = opened.read()
        columns = {name: table[name].to_pylist() for name in table.column_names}
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"the texts {path} are no parquet file: {reason}; copy it again, or write it anew"
        ) from None
    return columns, _class_names((table.schema.metadata or {}).get(b"huggingface"))


def check_parquet(metadata: Any, path: Path) -> None:
    """Check what a parquet file says of its size, before its values are unpacked.

    Args:
        metadata: the file's, of pyarrow.
        path: the file.

    Raises:
        DataError: if it has more rows or bytes than a probe or texts can have.
    """
    groups = (metadata.row_group(place) for place in range(metadata.num_row_groups))
    size = sum(group.total_byte_size for group in groups)
    if metadata.num_rows > _MOST_ROWS or size > 16 * GIGABYTE:
        raise DataError(
            f"{path} says that it holds {metadata.num_rows:,} rows of {size:,} bytes in all, more "
            f"than is read; save the rows that are needed in a file of their own"
        )


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
