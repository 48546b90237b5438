"""Schedules: sets of iterations, parsed from text such as `0, 50, every 100`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from conescope.errors import RecipeError

_COUNT = r"(\d+)\s*(ep)?"
_ONCE = re.compile(rf"{_COUNT}")
_EVERY = re.compile(rf"every\s+{_COUNT}(?:\s+from\s+{_COUNT})?(?:\s+until\s+{_COUNT})?")

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
        for term in self._terms():
            if term != "end" and not _ONCE.fullmatch(term) and not _EVERY.fullmatch(term):
                raise RecipeError(f"{self.text!r} is no schedule: cannot read {term!r}; {_GRAMMAR}")
            if re.match(r"every\s+0+\s*(ep)?\b", term):
                raise RecipeError(f"{self.text!r} is no schedule: every 0 is never; {_GRAMMAR}")

    def steps(self, total: int, iterations_per_epoch: int = 1) -> tuple[int, ...]:
        """Return the iterations from 0 to `total`, both included, at which the schedule fires.

        Args:
            total: the last iteration.
            iterations_per_epoch: the number of iterations that one `ep` stands for.

        Returns:
            The iterations, rising, each once; none if it does not fire by then.
        """
        if self.is_never:
            return ()
        found: set[int] = set()
        for term in self._terms():
            found.update(_expand(term, total, iterations_per_epoch))
        return tuple(sorted(step for step in found if step <= total))

    def fires(self, step: int, total: int | None = None) -> bool:
        """Return whether the schedule fires at an iteration of a run whose length may be unknown.

        Args:
            step: the iteration, at least 0.
            total: the last iteration; without it `end` is never known to have come.
        """
        if self.is_never or (total is not None and step > total):
            return False
        return any(
            step in _expand(term, step if total is None else total, 1)
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
