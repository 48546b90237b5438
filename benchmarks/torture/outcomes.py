"""What a battery of hostile inputs returns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """One hostile input, and whether the program held.

    Attributes:
        name: the battery and the input.
        held: whether what happened is what has to happen.
        what: what happened, in one line.
    """

    name: str
    held: bool
    what: str
