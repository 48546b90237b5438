"""What a battery finds of each of its cases."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Case = TypeVar("Case")


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        name: the group of cases it belongs to, a row of the table.
        held: whether conescope did what it promises.
        what: the case, and what happened if it did not hold.
    """

    name: str
    held: bool
    what: str


Battery = Callable[[int, float], list[Outcome]]
"""Takes a seed and the share of its cases to try, in (0, 1]."""


def drawn(cases: Sequence[Case], share: float, chance: random.Random) -> list[Case]:
    """Draw a share of some cases, at least one, in their order."""
    count = max(1, round(share * len(cases)))
    return [cases[place] for place in sorted(chance.sample(range(len(cases)), count))]


def table(outcomes: Sequence[Outcome]) -> str:
    """Return how many cases of each group held, as text, and a line for each that did not."""
    names = sorted({outcome.name for outcome in outcomes})
    rows = []
    for name in names:
        group = [outcome for outcome in outcomes if outcome.name == name]
        rows.append((name, sum(outcome.held for outcome in group), len(group)))
    rows.append(("all", sum(held for _, held, _ in rows), sum(of for _, _, of in rows)))
    lines = [f"{name:<44} {held:>5} of {of}" for name, held, of in rows]
    lines += [f"not held: {o.name}: {o.what}" for o in outcomes if not o.held]
    return "\n".join(lines)
