"""Damage every file of a run folder, and every line of its journal, each in several ways.

What has to hold: a reader gets the numbers that were there, or is told what is damaged; and the
command that made the folder gives the same numbers, bit for bit, or says in one line why not.
"""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.torture.case import Case
from benchmarks.torture.subjects import Subject, kept, numbers, subjects
from conescope.errors import ConescopeError, DamageWarning
from conescope.runs.contents import is_whole
from conescope.runs.store import Folder

_JOURNAL = "journal.jsonl"


@dataclass(frozen=True)
class Damage:
    """One way to damage one folder.

    Attributes:
        group: the row of the table.
        name: what is done to what.
        names: what a message about it has to match, as a regular expression.
        do: damages the folder at a path.
    """

    group: str
    name: str
    names: str
    do: Callable[[Path, random.Random], None]


def damages(shared: Path) -> list[Case]:
    """Damage folders of every kind, read them, and go on with them; see `Battery`."""
    cases = []
    for subject in subjects(shared):
        whole = shared / f"whole {subject.name}"
        subject.make(whole)
        for damage in (*_of_files(subject, whole), *_of_lines(subject, whole)):
            attempt = partial(_attempted, damage, subject, whole)
            cases.append(Case(damage.group, damage.name, attempt))
    return cases


def _attempted(
    damage: Damage, subject: Subject, whole: Path, place: Path, chance: random.Random
) -> list[str]:
    path = place / "damaged"
    shutil.copytree(whole, path)
    damage.do(path, chance)
    with quiet():
        return [*_read(damage, whole, path), *_go_on(subject, whole, path)]


def _read(damage: Damage, whole: Path, path: Path) -> Iterator[str]:
    """Read a damaged folder; return what is wrong with what a reader gets."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = numbers(path)
        except ConescopeError as error:
            told = str(error)
            if not re.search(damage.names, told) or "\n" in told:
                yield f"reading says only {told!r}"
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            yield f"reading raises {type(error).__name__}: {error}"
            return
    told = [str(w.message) for w in caught if issubclass(w.category, DamageWarning)]
    if found != numbers(whole) and not any(re.search(damage.names, text) for text in told):
        yield f"reading gives other numbers and says only {told}"


def _go_on(subject: Subject, whole: Path, path: Path) -> Iterator[str]:
    """Go on with a damaged folder; return what is wrong with what comes out."""
    try:
        subject.make(path)
    except ConescopeError as error:
        if "\n" in str(error):
            yield f"going on says {str(error)!r}"
        return
    except Exception as error:  # noqa: BLE001
        yield f"going on raises {type(error).__name__}: {error}"
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error", DamageWarning)
        try:
            if numbers(path) != numbers(whole) or kept(path) != kept(whole):
                yield "going on ends with other numbers"
            folder = Folder(path)
        except (ConescopeError, DamageWarning) as error:
            yield f"after going on, reading says {error}"
            return
    if not is_whole(folder):
        yield "after going on, the journal names files that are not whole"


def _of_files(subject: Subject, whole: Path) -> Iterator[Damage]:
    for file in sorted(p for p in whole.rglob("*") if p.is_file()):
        inside = str(file.relative_to(whole))
        for how, change in _CHANGES.items():
            if file.stat().st_size or how in ("deleted", "a folder", "another file", "random"):
                yield Damage(
                    f"files, {how}",
                    f"{subject.name}: {inside}, {how}",
                    re.escape(file.name),
                    lambda path, chance, inside=inside, change=change: change(
                        path / inside, chance
                    ),
                )


def _bit(place: Callable[[int], int]) -> Callable[[Path, random.Random], None]:
    def flip(file: Path, chance: random.Random) -> None:
        data = bytearray(file.read_bytes())
        data[place(len(data))] ^= 1 << chance.randrange(8)
        file.write_bytes(data)

    return flip


def _to_folder(file: Path, _: random.Random) -> None:
    file.unlink()
    file.mkdir()
    (file / "inside").touch()


def _to_another(file: Path, chance: random.Random) -> None:
    root = next(parent for parent in file.parents if (parent / "kernels").is_dir())
    others = sorted(other for other in (root / "kernels").iterdir() if other != file)
    shutil.copyfile(chance.choice(others), file)


_CHANGES: Mapping[str, Callable[[Path, random.Random], None]] = {
    "truncated": lambda f, c: f.write_bytes(f.read_bytes()[: c.randrange(f.stat().st_size)]),
    "emptied": lambda f, _: f.write_bytes(b""),
    "a bit at the start": _bit(lambda _: 0),
    "a bit in the middle": _bit(lambda size: size // 2),
    "a bit at the end": _bit(lambda size: size - 1),
    "deleted": lambda f, _: f.unlink(),
    "a folder": _to_folder,
    "another file": _to_another,
    "random": lambda f, c: f.write_bytes(c.randbytes(500)),
    "doubled": lambda f, _: f.write_bytes(f.read_bytes() * 2),
}


def _of_lines(subject: Subject, whole: Path) -> Iterator[Damage]:
    count = len(_lines(whole))
    for number in range(1, count + 1):
        for how, change in _LINE_CHANGES.items():
            yield Damage(
                f"lines of the journal, {how}",
                f"{subject.name}: line {number} of {count}, {how}",
                rf"{re.escape(_JOURNAL)}.*\bline",
                lambda path, chance, n=number, change=change: _write(
                    path, change(_lines(path), n - 1, chance)
                ),
            )


def _lines(path: Path) -> list[bytes]:
    return (path / _JOURNAL).read_bytes().splitlines(keepends=True)


def _write(path: Path, lines: Sequence[bytes]) -> None:
    (path / _JOURNAL).write_bytes(b"".join(lines))


def _moved(lines: list[bytes], i: int, chance: random.Random) -> list[bytes]:
    line, rest = lines[i], lines[:i] + lines[i + 1 :]
    place = chance.choice([j for j in range(len(lines)) if j != i])
    return [*rest[:place], line, *rest[place:]]


def _edited(line: bytes, chance: random.Random, *, with_checksum: bool) -> bytes:
    """Change a digit of a line's text; with its checksum, as somebody does who knows the format."""
    checksum, _, text = line.partition(b" ")
    after = text.find(b'"after"')
    begin = text.find(b",", after) + 1 if after >= 0 else 0
    digits = [i for i in range(begin, len(text)) if text[i : i + 1].isdigit()]
    if not digits:
        return line
    changed, place = bytearray(text), chance.choice(digits)
    changed[place] = ord(str((changed[place] - ord("0") + 1) % 9 + 1))
    if with_checksum:
        checksum = hashlib.sha256(changed.rstrip(b"\n")).hexdigest()[:16].encode()
    return checksum + b" " + bytes(changed)


def _flipped(line: bytes, chance: random.Random) -> bytes:
    data = bytearray(line)
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


_LINE_CHANGES: Mapping[str, Callable[[list[bytes], int, random.Random], list[bytes]]] = {
    "deleted": lambda lines, i, _: lines[:i] + lines[i + 1 :],
    "repeated": lambda lines, i, _: [*lines[: i + 1], *lines[i:]],
    "moved": _moved,
    "edited": lambda lines, i, c: [
        *lines[:i], _edited(lines[i], c, with_checksum=False), *lines[i + 1 :]
    ],
    "edited with its checksum": lambda lines, i, c: [
        *lines[:i],
        _edited(lines[i], c, with_checksum=i < len(lines) - 1),  # nothing tells of the last one
        *lines[i + 1 :],
    ],
    "a bit": lambda lines, i, c: [*lines[:i], _flipped(lines[i], c), *lines[i + 1 :]],
    "torn": lambda lines, i, _: [*lines[:i], lines[i][: len(lines[i]) // 2], *lines[i + 1 :]],
}  # fmt: skip


@contextmanager
def quiet() -> Iterator[None]:
    """Do not warn of damage inside a `with` block."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamageWarning)
        yield
