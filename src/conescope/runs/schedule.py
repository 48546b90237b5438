"""Schedules: sets of iterations, parsed from text such as `0, 50, every 100`."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from conescope.errors import RecipeError
from conescope.runs.foreign import shorten

_COUNT = r"([0-9]{1,15})\s*(ep)?"
_ONCE = re.compile(rf"{_COUNT}")
_EVERY = re.compile(rf"every\s+{_COUNT}(?:\s+from\s+{_COUNT})?(?:\s+until\s+{_COUNT})?")

_MOST_LISTED = 4_000_000
"""The most iterations that are listed; `Schedule.count` counts more without a list."""

_LONGEST_TEXT = 100_000
_MOST_OVERLAPS = 20_000

_GRAMMAR = (
    "write for example '0, 50, every 100', 'every 1ep from 10ep until 20ep', 'end' or 'never'"
)


@dataclass(frozen=True)
class Schedule:
    """A set of iterations, given as text.

    The text is a list of terms with commas between them:

    - `50`: iteration 50;
    - `every 100`: 100, 200, …; with `from 500`, 500, 600, …; with `until 900`, up to 900;
    - `end`: the last iteration;
    - `never`: nothing (alone).

    A number with `ep` behind it counts epochs: `80ep`, `every 1ep`.

    Attributes:
        text: the text, as written.

    Raises:
        RecipeError: if the text is no schedule.
    """

    text: str

    def __post_init__(self) -> None:
        if self.is_never:
            return
        if len(self.text) > _LONGEST_TEXT:
            raise RecipeError(
                f"a schedule has more than {_LONGEST_TEXT:,} letters; write 'every' instead "
                "of a list"
            )
        for term in self._terms():
            if term != "end" and not _ONCE.fullmatch(term) and not _EVERY.fullmatch(term):
                raise RecipeError(
                    f"{shorten(self.text)!r} is no schedule: cannot read {shorten(term)!r}; "
                    f"{_GRAMMAR}"
                )
            if re.match(r"every\s+0+\s*(ep)?\b", term):
                raise RecipeError(f"{self.text!r} is no schedule: every 0 is never; {_GRAMMAR}")

    def steps(self, total: int, iterations_per_epoch: int = 1) -> tuple[int, ...]:
        """Return the iterations from 0 to `total`, both included, at which the schedule fires.

        Args:
            total: the last iteration.
            iterations_per_epoch: the number of iterations that one `ep` stands for.

        Returns:
            The iterations, rising, each once; none if it does not fire by then.

        Raises:
            RecipeError: if there are more than four millions of them.
        """
        if self.is_never:
            return ()
        if self.count(total, iterations_per_epoch) > _MOST_LISTED:
            raise RecipeError(
                f"{self.text!r} fires more than {_MOST_LISTED:,} times in {total:,} iterations; "
                f"write a larger number behind 'every'"
            )
        found: set[int] = set()
        for term in self._terms():
            found.update(_expand(term, total, iterations_per_epoch))
        return tuple(sorted(step for step in found if step <= total))

    def count(self, total: int, iterations_per_epoch: int = 1, start: int = 0) -> int:
        """Count the iterations from `start` to `total`, both included, without listing them.

        Args:
            total: the last iteration.
            iterations_per_epoch: the number of iterations that one `ep` stands for.
            start: the first iteration that counts.

        Raises:
            RecipeError: if too many terms with `every` overlap.
        """
        if self.is_never:
            return 0
        ranges = [
            _from(_expand(term, total, iterations_per_epoch), start) for term in self._terms()
        ]
        several = sorted({r for r in ranges if len(r) > 1}, key=lambda r: r.start)
        single = {r.start for r in ranges if len(r) == 1}
        alone = sum(not any(step in r for r in several) for step in single)
        try:
            return alone + _size_of_union(several, iter(range(_MOST_OVERLAPS)))
        except StopIteration:
            raise RecipeError(
                f"too many terms of the schedule {shorten(self.text)!r} overlap; write fewer "
                f"'every'"
            ) from None

    def fires(self, step: int, total: int | None = None, iterations_per_epoch: int = 1) -> bool:
        """Return whether the schedule fires at an iteration of a run whose length may be unknown.

        Args:
            step: the iteration, at least 0.
            total: the last iteration; without it `end` is never known to have come.
            iterations_per_epoch: the number of iterations that one `ep` stands for.
        """
        if self.is_never or (total is not None and step > total):
            return False
        return any(
            step in _expand(term, step if total is None else total, iterations_per_epoch)
            for term in self._terms()
            if term != "end" or total is not None
        )

    def check_loop(self, total: int | None) -> None:
        """Check that the schedule fits a loop that counts iterations, of a length maybe unknown.

        Raises:
            RecipeError: if the text counts epochs, or says `end` without a length.
        """
        if re.search(r"\d\s*ep\b", self.text):
            raise RecipeError(f"when={self.text!r} counts epochs; write iterations")
        if total is None and "end" in self._terms():
            raise RecipeError(f"when={self.text!r} has 'end'; say where that is with total_steps")

    @property
    def is_never(self) -> bool:
        """Whether the text says that it never fires."""
        return self.text.strip() == "never"

    def _terms(self) -> list[str]:
        return [term.strip() for term in self.text.split(",")]


def _expand(term: str, total: int, per_epoch: int) -> range:
    if term == "end":
        return range(total, total + 1)
    start, stop, every = _bounds(term, per_epoch)
    return range(start, (total if stop is None else min(stop, total)) + 1, every)


def _from(steps: range, start: int) -> range:
    """Return the part of a range from `start` on, with the last step as its end."""
    if not steps:
        return range(0)
    first = steps.start + max(0, -(-(start - steps.start) // steps.step)) * steps.step
    return range(first, steps[-1] + 1, steps.step)


def _size_of_union(ranges: Sequence[range], visits: Iterator[int]) -> int:
    """Count the numbers that are in any of the ranges, by inclusion and exclusion.

    Intersections that are empty are not followed further, so that ranges one after the other cost
    no more than their pairs. Each non-empty one takes an item of `visits`.

    Args:
        ranges: non-empty, by rising starts.
        visits: raises StopIteration when there are more intersections than may be counted.
    """
    total = 0
    for place, first in enumerate(ranges):
        next(visits)
        later = ranges[place + 1 : bisect_left(ranges, first[-1] + 1, key=lambda r: r.start)]
        shared = {_intersection(first, other) for other in later}
        total += len(first) - _size_of_union(
            sorted((r for r in shared if r), key=lambda r: r.start), visits
        )
    return total


def _intersection(one: range, other: range) -> range:
    """Return the numbers in both of two ranges, which are a range again."""
    shared = math.gcd(one.step, other.step)
    offset = other.start - one.start
    if offset % shared:
        return range(0)
    apart = other.step // shared
    turns = offset // shared * pow(one.step // shared, -1, apart) % apart if apart > 1 else 0
    every = one.step * apart
    meeting = range(one.start + turns * one.step, min(one[-1], other[-1]) + 1, every)
    return _from(meeting, max(one.start, other.start))


@cache
def _bounds(term: str, per_epoch: int) -> tuple[int, int | None, int]:
    """Return a term's first iteration, its last one if it has one, and the gap between two."""
    if match := _ONCE.fullmatch(term):
        once = _iterations(match[1], match[2], per_epoch)
        return once, once, 1
    match = _EVERY.fullmatch(term)
    assert match is not None  # __post_init__ has read the term
    every = _iterations(match[1], match[2], per_epoch)
    start = _iterations(match[3], match[4], per_epoch) if match[3] else every
    return start, _iterations(match[5], match[6], per_epoch) if match[5] else None, every


def _iterations(number: str, epochs: str | None, per_epoch: int) -> int:
    return int(number) * (per_epoch if epochs else 1)
