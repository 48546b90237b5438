"""How the work is cut so that it fits into the memory allowed."""

from __future__ import annotations

import bisect
import math
import os
from dataclasses import dataclass

from conescope.engine.contractions import CHUNK_ELEMENTS, CHUNK_OUTPUTS, KNOWN_ELEMENTS
from conescope.engine.survey import Survey
from conescope.errors import KernelError

_BLOCK = 64
_BLOCK_ELEMENTS = 3 * 2**23
"""Few enough to be near the processor still."""
_FACTOR_ELEMENTS = 2**25
_FEWEST_DIRECTIONS = 5
"""More factors than these elements are not held at once if fewer cotangents can be taken together;
every division costs a forward pass, so none is made below so many."""
_LIBRARIES = 48 * 2**20
"""Bytes left to workspaces of the linear-algebra libraries and the allocator's rounding."""


@dataclass(frozen=True)
class Cut:
    """Sizes of the pieces.

    Attributes:
        block: samples of one forward pass.
        chunk: samples whose factors are held together.
        directions: cotangents taken together.
        scratch: elements of the largest scratch buffer.
        bytes: the expected peak beyond the model and the result.
    """

    block: int
    chunk: int
    directions: int
    scratch: int
    bytes: int


def default_memory() -> int:
    """A quarter of the machine's memory: the same each time, so that results are, too."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


def cut(
    survey: Survey,
    samples: tuple[int, int | None],
    directions: int,
    together: bool,
    element: int,
    budget: int,
    fixed: int = 0,
) -> Cut:
    """The largest pieces that fit.

    Args:
        survey: of the model.
        samples: n and m; m None for the kernel between x and itself.
        directions: q, the number of cotangents.
        together: whether the products need all cotangents at once ("full").
        element: bytes of a number.
        budget: bytes.
        fixed: bytes that are held whatever the pieces, beside the result.

    Raises:
        KernelError: if the budget is too small for one sample; the message says how much works.
    """
    n, m = samples
    budget -= fixed
    choices = [directions] if together else _halvings(directions)
    whole = n if m is None else n + m
    for q in choices:
        many = whole * q * survey.factors > _FACTOR_ELEMENTS
        if many and q >= 2 * _FEWEST_DIRECTIONS and not together:
            continue
        plan = _fill(survey, q, whole, 1, element, budget)
        if plan is not None and plan.chunk >= whole:
            return plan
    for q in reversed(choices):
        plan = _fill(survey, q, max(n, m or 0), 2, element, budget)
        if plan is not None:
            return plan
    least = least_bytes(survey, directions, together, element, fixed)
    raise KernelError(too_small(budget + fixed, least))


def least_bytes(
    survey: Survey, directions: int, together: bool, element: int, fixed: int = 0
) -> int:
    """The smallest budget that `cut` does not refuse; the arguments are those of `cut`."""
    q = directions if together else 1
    return _bytes(survey, q, 1, 2, _least_scratch(survey, q, 2), element) + fixed


def too_small(budget: int, least: int) -> str:
    """The message that a budget does not suffice, and what does; both in bytes."""
    return (
        f"memory={budget / 1e6:.4g} MB is too small: one sample at a time takes "
        f"{least / 1e6:.4g} MB; allow at least memory={-(-least // 10**6)}e6 (bytes)"
    )


def _halvings(count: int) -> list[int]:
    sizes = [count]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return sizes


def _fill(survey: Survey, q: int, most: int, copies: int, element: int, budget: int) -> Cut | None:
    """The largest block, then the largest chunk, within the budget; None if there is none."""
    held = most * (survey.kept + q * survey.factors)
    room = max(0, budget // element - survey.fixed)
    wanted = min(room // 4, max(_BLOCK_ELEMENTS, 2 * (_BLOCK_ELEMENTS - held)))
    block = max(1, min(_BLOCK, most, wanted // _block_elements(survey, q)))
    block = math.ceil(most / math.ceil(most / block))
    for share in (room // 4, 0):

        def tried(chunk: int, share: int = share) -> Cut:
            scratch = _scratch(survey, q, copies * chunk, share)
            total = _bytes(survey, q, min(block, chunk), copies * chunk, scratch, element)
            return Cut(min(block, chunk), chunk, q, scratch, total)

        fitting = bisect.bisect(range(1, most + 1), budget, key=lambda chunk: tried(chunk).bytes)
        if fitting > 0:
            return tried(fitting)
    return None


def _scratch(survey: Survey, q: int, rows: int, share: int) -> int:
    """The share of the budget, within what is of use; all in elements."""
    return max(_least_scratch(survey, q, rows), min(_best_scratch(survey, q, rows), share))


def _block_elements(survey: Survey, q: int) -> int:
    backward = survey.passing + survey.passing // 4 + survey.stacked(q) + survey.row_in_the_making
    return max(backward, q * survey.general + survey.passing if survey.general else 0)


def _bytes(survey: Survey, q: int, block: int, held: int, scratch: int, element: int) -> int:
    elements = block * _block_elements(survey, q) + held * (survey.kept + q * survey.factors)
    elements += survey.fixed + q * survey.like.shape[1]
    return (elements + scratch) * element + _LIBRARIES


def _least_scratch(survey: Survey, q: int, rows: int) -> int:
    """One output's gradients of every sample, and one sample's features."""
    outer = [shape for shape in survey.shapes.values() if not shape.formed]
    jacobian = max((q * rows * s.groups * s.inputs for s in outer if not s.sparse), default=0)
    return jacobian + 2 * _features(survey)


def _best_scratch(survey: Survey, q: int, rows: int) -> int:
    """The gradients that are best formed at once, with the features of all samples."""
    most = _least_scratch(survey, q, rows)
    for s in survey.shapes.values():
        if not s.formed and not s.sparse:
            each = q * rows * s.groups * s.inputs
            gradients = each * min(s.outputs, max(CHUNK_OUTPUTS, CHUNK_ELEMENTS // each))
            features = rows * s.groups * s.inputs * s.positions
            known = features if features <= KNOWN_ELEMENTS else 0
            most = max(most, gradients + known, 2 * known)
    return most + 2**22


def _features(survey: Survey) -> int:
    shapes = survey.shapes.values()
    return max((s.groups * s.inputs * s.positions for s in shapes if not s.sparse), default=0)
