"""The cases of a battery, and what becomes of each."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One attack.

    Attributes:
        group: the kind of attack, of which there are many cases.
        name: what distinguishes it from the battery's other cases.
        attempt: attacks in an empty folder, with what it draws; gives what is wrong afterwards.
    """

    group: str
    name: str
    attempt: Callable[[Path, random.Random], Iterable[str]]

    def outcome(self, place: Path, seed: int) -> Outcome:
        """Return what becomes of it.

        Args:
            place: an empty folder.
            seed: of what it draws, together with its name; so it does the same alone.
        """
        chance, begun = random.Random(f"{seed} {self.name}"), time.monotonic()
        try:
            wrong = tuple(self.attempt(place, chance))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            wrong = (f"{type(error).__name__}: {error}",)
        return Outcome(self.group, self.name, wrong, time.monotonic() - begun)


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        group: as the case's.
        name: as the case's.
        wrong: each promise that conescope did not keep; empty if the case holds.
        seconds: the time that it took.
    """

    group: str
    name: str
    wrong: tuple[str, ...]
    seconds: float

    @property
    def held(self) -> bool:
        """Whether conescope did what it promises."""
        return not self.wrong

    def __str__(self) -> str:
        text = f"{self.name}: {'; '.join(self.wrong)}" if self.wrong else self.name
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


Battery = Callable[[Path], list[Case]]
"""Takes a folder for what the cases share, and returns them."""


def battery_outcomes(
    battery: Battery,
    shared: Path,
    seed: int,
    until: Callable[[], bool],
    only: str = "",
    told: Callable[[Outcome], None] = lambda _: None,
) -> tuple[int, list[Outcome]]:
    """Attempt cases of a battery, in an order drawn by the seed.

    Args:
        battery: what lists the cases.
        shared: an empty folder, which stays.
        seed: draws the order of the cases, and whatever a case draws.
        until: whether it is time to stop; the first case is attempted in any case.
        only: attempt the cases of this name alone; "" for all.
        told: is called after each case.

    Returns:
        The number of all cases, and what became of those attempted.
    """
    cases, outcomes = battery(shared), []
    count = len(cases)
    cases = [case for case in cases if only in ("", case.name)]
    random.Random(seed).shuffle(cases)
    for number, case in enumerate(cases):
        place = shared / f"case {number}"
        place.mkdir()
        outcomes.append(case.outcome(place, seed))
        told(outcomes[-1])
        shutil.rmtree(place, ignore_errors=True)
        if until():
            break
    return count, outcomes
