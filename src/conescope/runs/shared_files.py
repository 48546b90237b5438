"""Files that show what runs hold, such as figures and pages, which several processes may write."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from conescope.errors import StoreError


def write_result(path: Path, data: bytes) -> Path:
    """Write a file that appears whole or not at all; its folder is made if missing.

    Of several processes that write it at once, the last one's file stays.

    Args:
        path: the file.
        data: what it holds.

    Returns:
        The path.

    Raises:
        StoreError: if the file cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")  # no two processes share it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(data)
        aside.replace(path)
    except OSError as reason:
        with suppress(OSError):
            aside.unlink()
        raise StoreError(
            f"cannot write {path}: {reason.strerror}; free space there or choose another folder"
        ) from reason
    return path
