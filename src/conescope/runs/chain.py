"""Read a journal: follow the chain of its lines, and find out which of them count."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from conescope.errors import DamageWarning, StoreError
from conescope.runs.foreign import fits
from conescope.runs.journal import Entry, Journal, Kind, checksum_of

_SHOWN = 3


class Wrong(NamedTuple):
    """What is wrong with a line.

    Attributes:
        number: its number, as far as it is known.
        text: what is wrong.
        is_lost: whether what the line said is lost.
    """

    number: int
    text: str
    is_lost: bool = True


class Link(NamedTuple):
    """A line whose checksum is right.

    Attributes:
        number: its number.
        checksum: the checksum of its text.
        after: checksum and name of the line before; None if it is not chained.
        entry: what it says.
    """

    number: int
    checksum: str
    after: str | None
    entry: Entry


def read_journal(path: Path) -> Journal:
    """Read the whole lines of a journal; an empty one if there is no such file.

    Raises:
        StoreError: if the file cannot be read, or holds lines of a later version.

    Warns:
        DamageWarning: if lines are damaged, missing, or not where they were. Of the lines, those
            count that are whole, in the order of their numbers.
    """
    try:
        data = read_regular(path)
    except FileNotFoundError:
        return Journal()
    except NotADirectoryError:
        raise StoreError(
            f"{path.parent} cannot be a folder, as a file is in its place; choose another folder, "
            f"or move the file away"
        ) from None
    except OSError as error:
        raise StoreError(
            f"cannot read {path}: {error.strerror}; move away what stands there, and run the "
            f"command that made the folder again"
        ) from error
    texts = data.split(b"\n")[:-1]  # what follows the last \n is torn
    if not texts:
        return Journal()
    links = [_link(text, path, place) for place, text in enumerate(texts, start=1)]
    found, damage = _followed(links, texts)
    last, is_chained = found[-1] if found else None, _unchained(links) < len(links)
    journal = Journal(
        entries=[link.entry for link in found],
        size=data.rfind(b"\n") + 1,
        newest=last.number if last and is_chained else len(texts),
        after=last.checksum if last and is_chained else checksum_of(data[: data.rfind(b"\n") + 1]),
        unchained=_unchained(links),
        damage=tuple(wrong.text for wrong in damage),
        lost=tuple(wrong.text for wrong in damage if wrong.is_lost),
    )
    if last:
        journal.after = f"{journal.after} {last.entry}"
    if damage:
        cure = "run the command that made this folder again, to make anew what is lost"
        text = f"{path}: {shortened(journal.damage)}; {cure if journal.lost else 'nothing is lost'}"
        warnings.warn(text, DamageWarning, stacklevel=4)
    return journal


def read_regular(path: Path) -> bytes:
    """Read a regular file, of whatever size.

    Raises:
        OSError: if it cannot be read, or would block or never end, as a pipe or a device does.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        if stat.S_ISDIR(mode := os.fstat(descriptor).st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def shortened(texts: Sequence[str]) -> str:
    """Return the first few of several texts as one."""
    more = len(texts) - _SHOWN
    return "; ".join(texts[:_SHOWN]) + (f"; and {more:,} more" if more > 0 else "")


def _link(text: bytes, path: Path, place: int) -> Link | None:
    """Return what a line says; None if it is damaged, or no writer writes such a line."""
    checksum, _, written = text.partition(b" ")
    if checksum != (right := checksum_of(written)).encode():
        return None
    try:
        values = json.loads(written, parse_constant=_refused)
        kind, number = values.pop("kind"), values.pop("line", place)
        after = values.pop("after", None)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if not (isinstance(kind, str) and type(number) is int and number > 0):
        return None
    entry = Entry(_kind(kind, path, place), values)
    is_usable = isinstance(after, str | None) and fits(entry.kind, values)
    return Link(number, right, after, entry) if is_usable else None


def _refused(constant: str) -> None:
    """Refuse NaN and infinity, which no line holds."""
    raise ValueError(constant)


def _kind(name: str, path: Path, number: int) -> Kind:
    try:
        return Kind(name)
    except ValueError:
        raise StoreError(
            f"{path}: line {number} is of the kind {name!r}, which this version of conescope does "
            f"not know; read the folder with the version that wrote it, or a later one"
        ) from None


def _unchained(links: Sequence[Link | None]) -> int:
    """Return the number of lines before the first one that is chained."""
    places = (place for place, link in enumerate(links) if link and link.after is not None)
    return next(places, len(links))


def _followed(
    links: Sequence[Link | None], texts: Sequence[bytes]
) -> tuple[list[Link], list[Wrong]]:
    """Follow the chain, and find out which lines count.

    Args:
        links: the lines as they stand in the file; None for each whose checksum is wrong.
        texts: the same as bytes.

    Returns:
        The lines that count, in the order of their numbers, and what is wrong with others.
    """
    first = _unchained(links)
    before = checksum_of(b"".join(text + b"\n" for text in texts[:first]))
    links = [
        link if place < first or (link and link.after is not None) else None
        for place, link in enumerate(links)
    ]
    found, damage = _joined(links)
    damage += _damaged(links, texts, found)
    joint = min((link for link in found.values() if link.after is not None), default=None)
    begin = 0
    if first and joint and None not in links[:first] and not _names(joint.after, before):
        begin = joint.number - 1
        lines = f"the first {begin:,} lines, where the chain begins,"
        damage.append(Wrong(begin, f"one of {lines} is deleted, repeated, moved or changed"))
    damage += _missing(found, {*found, *(wrong.number for wrong in damage)}, begin)
    return [found[number] for number in sorted(found)], sorted(damage)


def _joined(links: Sequence[Link | None]) -> tuple[dict[int, Link], list[Wrong]]:
    """Return the lines that count, by number, and what is wrong with lines that are whole."""
    copies: dict[int, list[Link]] = {}
    damage, newest = [], 0
    for link in filter(None, links):
        name = f"line {link.number} ({link.entry})"
        if link.number in copies:
            damage.append(Wrong(link.number, f"{name} stands twice", is_lost=False))
        elif link.number < newest:
            damage.append(Wrong(link.number, f"{name} was moved", is_lost=False))
        copies.setdefault(link.number, []).append(link)
        newest = max(newest, link.number)
    found: dict[int, Link] = {}
    for number in sorted(copies, reverse=True):
        chained = [link for link in copies[number] if link.after is not None]
        following = found.get(number + 1)
        if following is None or not chained:
            found[number] = (chained or copies[number])[0]
            continue
        fitting = [link for link in chained if _names(following.after, link.checksum)]
        if fitting:
            found[number] = fitting[0]
        else:
            damage.append(Wrong(number, f"line {number} ({chained[0].entry}) is changed"))
    return found, damage


def _damaged(
    links: Sequence[Link | None], texts: Sequence[bytes], found: Mapping[int, Link]
) -> list[Wrong]:
    """Return the presumable numbers of lines whose checksum is wrong."""
    damage, number = [], 0
    for link, text in zip(links, texts, strict=True):
        number = number + 1 if link is None else link.number
        if link is None and number in found:
            text = f"what stands before line {number} is no line of this journal"
            damage.append(Wrong(number, text, is_lost=False))
        elif link is None:
            name = _name_before(found.get(number + 1)) or _name_in(text)
            damage.append(Wrong(number, f"line {number}{name} is damaged"))
    return damage


def _missing(found: Mapping[int, Link], known: set[int], begin: int) -> list[Wrong]:
    """Return the numbers of lines after `begin` of which nothing is known."""
    damage = []
    for before, after in pairwise([begin, *sorted(number for number in known if number > begin)]):
        name = _name_before(found.get(after))
        if after == before + 2:
            damage.append(Wrong(before + 1, f"line {before + 1}{name} is missing"))
        elif after > before + 2:
            lines = f"lines {before + 1} to {after - 1}"
            damage.append(Wrong(before + 1, f"{lines}, the last of them{name}, are missing"))
    return damage


def _names(after: str | None, checksum: str) -> bool:
    """Return whether what a line says of the one before it names this checksum."""
    return after is not None and after.partition(" ")[0] == checksum


def _name_before(link: Link | None) -> str:
    """Return what a line says of the kind and iteration of the one before it."""
    name = "" if link is None or link.after is None else link.after.partition(" ")[2]
    return f" ({name})" if re.fullmatch(r"[a-z ]+(, iteration [\d,]+)?", name) else ""


def _name_in(text: bytes) -> str:
    """Return what can still be read of the kind and iteration of a damaged line."""
    kind, step = re.search(rb'"kind": "([a-z ]+)"', text), re.search(rb'"step": (\d{1,18})', text)
    iteration = f", iteration {int(step[1]):,}" if step else ""
    return f" ({kind[1].decode()}{iteration})" if kind else ""
