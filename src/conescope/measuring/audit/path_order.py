"""Whether checkpoints lie in the order of their steps, by the distances between their weights.

Three facts about a path through many dimensions are used; none needs a model of the training.

- If its moves are independent, or point the same way, the expected squared distance of two points
  grows with the number of moves between them. So of all orders the true one has the least sum of
  squared distances between neighbours. Swapping two checkpoints of such a path doubles the sum of
  the edges that the swap touches, or more. Where training goes back and forth, as it does at a
  stationary state or at the edge of stability, moves point against each other (their cosine is
  -1/2, or less), and nothing is concluded from the order.
- A point that is more than twice as far from both its neighbours as they are from each other turns
  back by more than 151°: the cosine of its two moves is below -7/8.
- The first and the last checkpoint have one neighbour; if another one is nearer than half of it,
  they belong elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, product

import numpy as np

from conescope.measuring.audit.findings import Finding, steps_listed

_GAIN = 1.5
"""So many times less must the sum of the touched edges be, for an order to count as the better."""
_GAIN_AT_ENDS = 4.0
"""The same, if the first or the last checkpoint takes part: it has one edge, so that a checkpoint
with little noise, as after a decay of the learning rate, would seem to belong elsewhere."""
_BACK = -0.45
"""The cosine of two moves below which the path turns back; a changed order must not, around the
change, or it explains nothing."""
_AROUND = 3
"""Checkpoints on each side of a change by which that is told."""
_FAR = 4.0
_ODD = 0.25
"""The share of checkpoints out of place above which the series as a whole goes back and forth."""


def squared_distances(points: np.ndarray) -> np.ndarray:
    """Return the squared distances of T points, [T, T], from their coordinates [T, M]."""
    found = np.zeros((len(points), len(points)))
    for index, point in enumerate(points):
        found[index] = ((points - point) ** 2).sum(axis=1)
    return found


def out_of_order(steps: Sequence[int], squares: np.ndarray, what: str) -> Iterator[Finding]:
    """Yield the checkpoints that do not lie where their steps say.

    Args:
        steps: T steps, rising.
        squares: [T, T], squared distances between the weights, none but the diagonal zero.
        what: what is compared, for messages: "the weights".
    """
    changes, order = _better_order(squares)
    named = {index for a, b, _, is_swap in changes for index in ((a, b) if is_swap else (a,))}
    rest = [index for index in order if index not in named]
    far = [
        at
        for before, at, after in zip(rest, rest[1:], rest[2:], strict=False)
        if min(squares[before, at], squares[at, after]) > _FAR * squares[before, after]
    ]
    if len(named) + len(far) > max(2, _ODD * len(steps)):
        text = (
            f"at {len(named) + len(far):,} of {len(steps):,} steps {what} come back to where they "
            f"were before: the training goes back and forth (tasks that alternate, a rate that is "
            f"too high), or the order of the steps is wrong throughout"
        )
        yield Finding("back and forth", tuple(steps), text, is_alarm=False)
        return
    for first, second, gain, is_swap in changes:
        pair = sorted((steps[first], steps[second]))
        if is_swap:
            text = (
                f"{what} of {steps_listed(pair)} look swapped: exchanged, their squared distances "
                f"to their neighbours sum up to {gain:.1f} times less"
            )
        else:
            text = (
                f"{what} of step {steps[first]:,} belong next to those of step {steps[second]:,}: "
                f"there the squared distances to the neighbours sum up to {gain:.1f} times less"
            )
            pair = [steps[first]]
        yield Finding("out of order", tuple(pair), text)
    for at in far:
        place = rest.index(at)
        before, after = rest[place - 1], rest[place + 1]
        times = np.sqrt(min(squares[before, at], squares[at, after]) / squares[before, after])
        text = (
            f"{what} of step {steps[at]:,} lie off the path: {times:.1f} times as far from those "
            f"of {steps_listed([steps[before], steps[after]])} as these are from each other; of "
            f"another run, an average, or of a moment at which training had gone astray"
        )
        yield Finding("off the path", (steps[at],), text)


_Change = tuple[int, int, float, bool]
"""Two checkpoints by number, how many times less the edges sum up to, and whether it is a swap;
otherwise the first one moves next to the second one."""


def _better_order(squares: np.ndarray) -> tuple[list[_Change], list[int]]:
    """Change the order as long as that shortens the path clearly; return the changes and it."""
    order, changes = list(range(len(squares))), []
    while len(changes) <= len(squares) // 4:
        found = [*_candidates(squares, order)]
        if not found:
            break
        ends = {order[0], order[-1]}
        _, order, change = max(found, key=lambda each: (each[2][0] not in ends, each[0]))
        changes.append(change)
    return changes, order


def _candidates(
    squares: np.ndarray, order: Sequence[int]
) -> Iterator[tuple[float, list[int], _Change]]:
    """Yield by how much a swap or move gains more than it must, the order after it, and itself."""
    d = squares[np.ix_(order, order)]
    last = len(order) - 1
    for i, j in combinations(range(last + 1), 2):
        at_ends = i == 0 or j == last
        gain, asked = _swap_gain(d, i, j), _GAIN_AT_ENDS if at_ends else _GAIN
        if gain > asked and not (at_ends and j > i + 1):
            new = list(order)
            new[i], new[j] = new[j], new[i]
            if _is_smooth(squares, new, (i, j)):
                yield gain / asked, new, (order[i], order[j], gain, True)
    for i, k in product(range(last + 1), range(last)):
        if abs(2 * i - 2 * k - 1) <= 3:  # where it is, or a swap of neighbours
            continue
        is_end = i in (0, last)
        gain = _end_gain(d, i, k) if is_end else _move_gain(d, i, k)
        asked = _GAIN_AT_ENDS if is_end else _GAIN
        if gain > asked:
            new = [index for index in order if index != order[i]]
            new.insert(k if i < k else k + 1, order[i])
            if _is_smooth(squares, new, (k, i) if i < k else (k + 1, i)):
                nearer = min(k, k + 1, key=lambda other: d[i, other])
                yield gain / asked, new, (order[i], order[nearer], gain, False)


def _is_smooth(squares: np.ndarray, order: Sequence[int], places: Sequence[int]) -> bool:
    """Return whether no move turns back, at some places of an order and around them."""
    near = {p for place in places for p in range(place - _AROUND, place + _AROUND + 1)}
    return all(
        _cosine(squares, order[p - 1], order[p], order[p + 1]) > _BACK
        for p in near
        if 0 < p < len(order) - 1
    )


def _cosine(squares: np.ndarray, before: int, at: int, after: int) -> float:
    """Return the cosine of the moves to and from a point of a path."""
    to, along = squares[before, at], squares[at, after]
    return float((squares[before, after] - to - along) / (2 * np.sqrt(to * along)))


def _swap_gain(d: np.ndarray, i: int, j: int) -> float:
    """Return by how many times the touched edges shrink if numbers i < j are swapped."""
    last = len(d) - 1
    before, after = (d[i - 1, i], d[i - 1, j]) if i > 0 else (0.0, 0.0)
    if j < last:
        before, after = before + d[j, j + 1], after + d[i, j + 1]
    if j > i + 1:
        before += d[i, i + 1] + d[j - 1, j]
        after += d[j, i + 1] + d[j - 1, i]
    elif i == 0 or j == last:  # one touched edge alone would say too little
        before, after = before + d[i, j], after + d[i, j]
    return float(before / after)


def _move_gain(d: np.ndarray, i: int, k: int) -> float:
    """Return the same if number i moves between numbers k and k + 1."""
    before = d[i - 1, i] + d[i, i + 1] + d[k, k + 1]
    after = d[i - 1, i + 1] + d[k, i] + d[i, k + 1]
    return float(before / after)


def _end_gain(d: np.ndarray, i: int, k: int) -> float:
    """Return how much nearer an end is to number k or k + 1 than to its only neighbour."""
    neighbour = 1 if i == 0 else i - 1
    return float(d[i, neighbour] / min(d[i, k], d[i, k + 1]))
