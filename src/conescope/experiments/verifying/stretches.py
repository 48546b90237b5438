"""Stretches of a training: which of them a verification computes again."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

LEAST_ITERATIONS = 200
"""Iterations that are trained again even where the share asks for fewer."""


@dataclass(frozen=True)
class Stretch:
    """A part of a training, from a state that is known; of no length for a kernel at that state.

    Attributes:
        start: the iteration of the known state.
        stop: the iteration up to which is trained.
    """

    start: int
    stop: int


def choose_kernels(
    states: Collection[int], kernels: Collection[int], share: float, seed: int
) -> list[Stretch]:
    """Choose at random kernels at known states, each of which needs no training.

    Args:
        states: the iterations of the known states.
        kernels: the iterations of the stored kernels.
        share: the share of them to choose, in (0, 1]; rounded up.
        seed: decides which.
    """
    candidates = sorted(set(states) & set(kernels))
    count = math.ceil(share * len(candidates))
    chosen = random.Random(f"kernels {seed}").sample(candidates, count)
    return [Stretch(step, step) for step in sorted(chosen)]


def choose_stretches(
    states: Sequence[int], stored: Collection[int], share: float, seed: int
) -> list[Stretch]:
    """Choose at random stretches of training that together make up about a share of it.

    A stretch leads from one known state to the next, or to the last iteration of which anything
    is stored. If each is longer than the share, and than `LEAST_ITERATIONS`, the beginning of
    one is chosen that reaches something stored.

    Args:
        states: the iterations of the known states, rising; the first is where the training began.
        stored: the iterations of which anything is stored.
        share: the share of the iterations to train again, in (0, 1].
        seed: decides which.

    Returns:
        The stretches, rising; none if none is short enough.
    """
    end = max([*stored, *states])
    ends = [*states, end] if end > states[-1] else list(states)
    whole = [Stretch(*pair) for pair in pairwise(ends)]
    budget = max(math.ceil(share * (end - states[0])), LEAST_ITERATIONS)
    random.Random(f"stretches {seed}").shuffle(whole)
    chosen, left = [], budget
    for stretch in whole:
        if stretch.stop - stretch.start <= left:
            chosen.append(stretch)
            left -= stretch.stop - stretch.start
    if not chosen:
        cut = [Stretch(s.start, max(_reached(s, stored, budget), s.start)) for s in whole]
        chosen = [stretch for stretch in cut if stretch.stop > stretch.start][:1]
    return sorted(chosen, key=lambda stretch: stretch.start)


def _reached(stretch: Stretch, stored: Collection[int], budget: int) -> int:
    """Return the last iteration within the budget of which something is stored; 0 if none is."""
    last = stretch.start + budget
    return max((step for step in stored if stretch.start < step <= last), default=0)
