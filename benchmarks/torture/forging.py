"""Write journals and files as somebody does who knows the format, with all checksums right."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Line = dict[str, Any]

_watched: dict[str, list[str]] = {}
"""The folder whose files must not be opened → those that were."""


def lines_of(path: Path) -> list[Line]:
    """Return what the lines of a run folder's journal say."""
    texts = (path / "journal.jsonl").read_bytes().splitlines()
    return [json.loads(text.partition(b" ")[2]) for text in texts]


def write_lines(path: Path, lines: Sequence[Line]) -> None:
    """Write a journal whose lines say this, whatever it is, with a chain that is right."""
    data, after = b"", ""
    for number, line in enumerate(lines, start=1):
        text = json.dumps({"line": number, **line, "after": after}).encode()
        checksum = hashlib.sha256(text).hexdigest()[:16]
        data += f"{checksum} ".encode() + text + b"\n"
        kind, step = line.get("kind"), line.get("step")
        after = f"{checksum} {kind}" + ("" if step is None else f", iteration {_counted(step)}")
    (path / "journal.jsonl").write_bytes(data)


def write_file(path: Path, lines: Sequence[Line], place: int, data: bytes) -> None:
    """Write the file that a line names, and the journal with the right checksum of it."""
    line = lines[place]
    (path / line["file"]).write_bytes(data)
    changed = {**line, "sha256": hashlib.sha256(data).hexdigest()}
    write_lines(path, [*lines[:place], changed, *lines[place + 1 :]])


@contextmanager
def opened_in(folder: Path) -> Iterator[list[str]]:
    """Note which files of a folder are opened in a `with` block."""
    if not _watched:
        sys.addaudithook(_note)
    _watched[str(folder.resolve())] = found = []
    try:
        yield found
    finally:
        del _watched[str(folder.resolve())]
        _watched.setdefault("", [])  # so that the hook, which stays, is added once


def _note(event: str, values: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(values[0], str | bytes) and any(_watched):
        name = values[0].decode(errors="replace") if isinstance(values[0], bytes) else values[0]
        for folder, found in [*_watched.items()]:
            if folder and str(Path(name).resolve()).startswith(f"{folder}/"):
                found.append(name)


def _counted(step: object) -> str:
    return f"{step:,}" if isinstance(step, int) else str(step)
