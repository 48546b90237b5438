"""Read a parquet file that somebody else may have made; its size is checked before its values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conescope.errors import DataError
from conescope.runs.foreign import GIGABYTE

_MOST_ROWS = 10_000_000
_MOST_BYTES = 16 * GIGABYTE


def read_parquet(
    path: Path, needed: Sequence[str] = (), most: int | None = None
) -> tuple[dict[str, list[Any]], Mapping[bytes, bytes]]:
    """Read columns of a parquet file.

    Args:
        path: a regular file.
        needed: the columns to read, which have to be there; empty for all that there are.
        most: how many rows are read at most, the first ones; None for all of them.

    Returns:
        Name → values of each column as Python's own types, and the notes of the file's schema.

    Raises:
        DataError: if it is no parquet file, is damaged, lacks a column or has two of one name, or
            says that it holds more rows or bytes than a data set, a probe or texts can have.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as opened:
            _check_size(opened.metadata, path)
            _check_names(opened.schema_arrow.names, needed, path)
            table = _read(opened, list(needed) or None, most)
        columns = {name: table[name].to_pylist() for name in table.column_names}
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{path} is no parquet file, or a damaged one: {reason}; copy it again, or write it "
            f"anew"
        ) from None
    return columns, table.schema.metadata or {}


def _read(opened: Any, columns: list[str] | None, most: int | None) -> Any:
    if most is not None:
        for rows in opened.iter_batches(batch_size=most, columns=columns):
            return rows
    return opened.read(columns=columns)


def _check_names(names: Sequence[str], needed: Sequence[str], path: Path) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path} has two columns {twice}; write each under a name of its own")
    if missing := [name for name in needed if name not in names]:
        raise DataError(
            f"{path} has the columns {', '.join(names)}, and lacks {', '.join(missing)}; add it, "
            f"or rename a column"
        )


def _check_size(metadata: Any, path: Path) -> None:
    groups = (metadata.row_group(place) for place in range(metadata.num_row_groups))
    size = sum(group.total_byte_size for group in groups)
    if metadata.num_rows > _MOST_ROWS or size > _MOST_BYTES:
        raise DataError(
            f"{path} says that it holds {metadata.num_rows:,} rows of {size:,} bytes in all, more "
            f"than is read; save the rows that are needed in a file of their own"
        )
