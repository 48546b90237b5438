"""The folder for what is fetched: made by conescope, which deletes no folder of another origin."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from conescope.errors import StoreError

_MARK = ".made-by-conescope"


def claim(folder: Path) -> None:
    """Make a folder for downloads, or take up one that conescope made before.

    Raises:
        StoreError: if something of another origin is there, or the folder cannot be made.
    """
    if (folder / _MARK).is_file():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise StoreError(
                f"{folder} is to hold what is downloaded, and holds something else, which stays "
                f"as it is; choose another folder as out"
            )
        (folder / _MARK).touch()
    except OSError as error:
        raise StoreError(
            f"cannot make the folder {folder}: {error.strerror}; choose another folder as out"
        ) from error


def clear(folder: Path) -> None:
    """Delete a folder of downloads, if conescope made it; the mark of that goes last."""
    if not (folder / _MARK).is_file():
        return
    for held in folder.iterdir():
        if held.is_dir():
            shutil.rmtree(held, ignore_errors=True)
    (folder / _MARK).unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError:  # a download that is still on its way has made something anew
        with suppress(OSError):
            (folder / _MARK).touch()
