"""Forgeries: changed journals and files of run folders whose checksums are right.

What has to hold: whoever reads the folder or goes on with it gets a result, or one line of ours;
nothing outside of the folder is opened.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import conescope as cs
from benchmarks.torture.case import Case
from benchmarks.torture.forged_files import FORGED
from benchmarks.torture.forged_lines import ADDED, ODD, ODD_INSIDE, REMOVED, SECRET
from benchmarks.torture.forging import Line, lines_of, opened_in, write_file, write_lines
from benchmarks.torture.subjects import Subject, numbers, subjects
from conescope.errors import ConescopeError
from conescope.experiments.archives.exporting import plan_export, write_archive
from conescope.experiments.archives.importing import import_run
from conescope.experiments.stored import load_run, read_status
from conescope.experiments.verifying.recipe_checks import NoProgress
from conescope.report.derived_numbers import numbers_of
from conescope.report.page import report_page
from conescope.report.save import save_figures


def forgeries(shared: Path) -> list[Case]:
    """Forge journals and files of folders of every kind, read them, and go on; see `Battery`."""
    cases = []
    for subject in subjects(shared):
        whole = shared / f"whole {subject.name}"
        subject.make(whole)
        for group, name, forge in forgeries_of(whole):
            attempt = partial(_attempted, forge, subject, whole)
            cases.append(Case(group, f"{subject.name}: {name}", attempt))
    return cases


Forge = Callable[[Path, list[Line]], None]
"""Forges a folder at a path with these lines."""

Forgery = tuple[str, str, Forge]
"""The row of the table, what is forged, and what does it."""


def forgeries_of(whole: Path) -> Iterator[Forgery]:
    """Return all that can be forged of a folder."""
    yield from _of_fields(whole)
    yield from _of_lines(whole)
    yield from _of_files(whole)


def _attempted(
    forge: Forge, subject: Subject, whole: Path, place: Path, chance: random.Random
) -> Iterator[str]:
    path, outside = place / "forged", place / SECRET
    shutil.copytree(whole, path)
    outside.parent.mkdir()
    shutil.copyfile(next(p for p in sorted((whole / "kernels").iterdir())), outside)
    forge(path, lines_of(path))
    reader = chance.choice(sorted(_READERS))
    uses = {"load_run": numbers, reader: _READERS[reader], "going on": subject.make}
    with opened_in(outside.parent) as opened:
        for name, use in uses.items():
            yield from _used(name, use, path)
            if opened:
                yield f"{name} opens {opened}"
                opened.clear()


def _used(name: str, use: Callable[[Path], object], path: Path) -> Iterator[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            use(path)
        except ConescopeError as error:
            if not str(error).isprintable():
                yield f"{name} says {str(error)!r}"
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            at = error.__traceback__
            while at and at.tb_next:
                at = at.tb_next
            where = f"{Path(at.tb_frame.f_code.co_filename).name}:{at.tb_lineno}" if at else ""
            yield f"{name} raises {type(error).__name__} at {where}: {str(error)[:300]}"
    for warning in caught:
        if not str(warning.message).isprintable():
            yield f"{name} warns {str(warning.message)!r}"


def _there_and_back(path: Path) -> None:
    """Export a run and import it again."""
    archive, again = path.with_name("run.zip"), path.with_name("again")

    def derived(inner: Path) -> bytes | None:
        return numbers_of(load_run(inner)) if read_status(inner).kernels else None

    write_archive(plan_export(path, derived, weights=True), archive, NoProgress())
    import_run(archive, again, NoProgress())
    numbers(again)


def _verify(path: Path) -> None:
    for check in cs.verify(path, share=0.1).checks:
        if not str(check).isprintable():
            raise AssertionError(f"a check says {str(check)!r}")


_READERS: Mapping[str, Callable[[Path], object]] = {
    "status": read_status,
    "report": lambda path: report_page(load_run(path)),
    "figures": lambda path: save_figures(load_run(path), path / "figures"),
    "verify": _verify,
    "export and import": _there_and_back,
}


def _of_fields(whole: Path) -> Iterator[Forgery]:
    """Put odd values into each field of the first and of the last line of each kind."""
    lines = lines_of(whole)
    kinds = [line["kind"] for line in lines]
    ends = {kinds.index(kind) for kind in kinds}
    ends |= {len(kinds) - 1 - kinds[::-1].index(kind) for kind in kinds}
    for place in sorted(ends):
        for field, names in _fields(lines[place]):
            for name in names:
                what = f"line {place + 1} ({kinds[place]}), {'.'.join(field)}: {name}"
                yield f"{kinds[place]} line", what, partial(_put, place, field, name)


def _fields(line: Line, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in line.items():
        if not prefix and name == "after":
            continue  # which has to be right
        yield (*prefix, name), ODD_INSIDE if prefix else ODD
        if isinstance(value, dict):
            yield from _fields(value, (*prefix, name))


def _put(place: int, field: tuple[str, ...], name: str, path: Path, lines: list[Line]) -> None:
    inner, value = lines[place], ODD[name]
    for part in field[:-1]:
        inner = inner[part]
    if name == "an absolute path":
        value = str((path.parent / SECRET).absolute())
    if value is REMOVED:
        del inner[field[-1]]
    else:
        inner[field[-1]] = value
    if field == ("file",) and "sha256" in lines[place]:
        secret = (path.parent / SECRET).read_bytes()
        lines[place]["sha256"] = hashlib.sha256(secret).hexdigest()
    write_lines(path, lines)


def _of_lines(whole: Path) -> Iterator[Forgery]:
    """Add odd lines, leave out lines, repeat them, and give steps to others."""
    lines = lines_of(whole)
    for name, line in ADDED.items():
        yield "added lines", name, partial(_with_line, line, len(lines) // 2)
        yield "added lines", f"{name}, at the end", partial(_with_line, line, len(lines))
    for place, line in enumerate(lines):
        what = f"line {place + 1} ({line['kind']})"
        yield "lines left out", f"{what} left out", partial(_without, place)
        yield "lines repeated", f"{what} repeated", partial(_with_line, line, place)
        if line["kind"] == "kernel":
            other = {**line, "step": line["step"] + 1}
            yield "lines repeated", f"{what} at another step", partial(_with_line, other, place)


def _with_line(line: Line, place: int, path: Path, lines: list[Line]) -> None:
    line = {name: value for name, value in line.items() if name not in ("line", "after")}
    lines.insert(place, line)
    write_lines(path, [{k: v for k, v in one.items() if k != "line"} for one in lines])


def _without(place: int, path: Path, lines: list[Line]) -> None:
    del lines[place]
    write_lines(path, [{k: v for k, v in one.items() if k != "line"} for one in lines])


def _of_files(whole: Path) -> Iterator[Forgery]:
    """Write other tensors, of wrong shapes and types, into files that the journal names."""
    lines = lines_of(whole)
    last = {line["kind"]: place for place, line in enumerate(lines) if "sha256" in line}
    for kind, place in last.items():
        for name in FORGED:
            what = f"{lines[place]['file']}: {name}"
            yield f"{kind} file", what, partial(_forge_file, place, name)


def _forge_file(place: int, name: str, path: Path, lines: list[Line]) -> None:
    file = path / lines[place]["file"]
    write_file(path, lines, place, FORGED[name](file.read_bytes()))
