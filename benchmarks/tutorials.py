"""Execute the tutorials' notebooks, and store what they show: `python -m benchmarks.tutorials`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import nbformat
from nbclient import NotebookClient

TUTORIALS = sorted((Path(__file__).parent.parent / "docs" / "tutorials").glob("*.ipynb"))
SECONDS = 900


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """Execute a notebook in a folder, as a reader would who has installed conescope.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with patch.dict(os.environ, {"PATH": commands}):
        client = NotebookClient(
            notebook,
            timeout=SECONDS,
            record_timing=False,
            resources={"metadata": {"path": str(folder)}},
        )
        return client.execute()


def main() -> None:
    """Execute all, and say how long each took."""
    for path in TUTORIALS:
        begun = time.perf_counter()
        with TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        notebook.metadata.pop("language_info", None)
        nbformat.write(notebook, path)
        print(f"{path.name}: {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
