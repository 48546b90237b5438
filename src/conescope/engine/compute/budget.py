"""Cut the work on a kernel into pieces that fit into the memory allowed."""

from __future__ import annotations

import bisect
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from conescope.engine.compute.factors import CHUNK_ELEMENTS, CHUNK_OUTPUTS, KNOWN_ELEMENTS
from conescope.engine.compute.shape import Shape
from conescope.errors import KernelError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BLOCK = 64
_BLOCK_ELEMENTS = 3 * 2**23  # a block of about so many stays in the processor's caches
_EFFICIENT = 8
"""Passes of fewer samples are slow where a sample alone fills the caches."""
_FACTOR_ELEMENTS = 2**25
_FEWEST_COTANGENTS = 5
"""More factors than these elements are not held at once if fewer cotangents can be taken together;
every division costs a forward pass, so none is made below so many."""
_LIBRARIES = 48 * 2**20
"""Bytes left to workspaces of the linear-algebra libraries and the allocator's rounding."""


@dataclass(frozen=True)
class Work:
    """How many elements the terms of a kernel, and the passes that fill them, hold for one sample.

    Attributes:
        passing: what a forward pass keeps, with one backward pass's cotangents.
        width: c, the number of outputs.
        kept: what the factors keep, whatever the number of cotangents.
        shapes: weight → the shape of each kind of its uses, for those of outer products.
        rows: parameter → elements of its gradient, for all others that rules take.
        general: the same for parameters without a rule.
        transformed: whether transforms of torch.func take the parameters without a rule; plain
            autograd does otherwise.
    """

    passing: int
    width: int
    kept: int = 0
    shapes: Mapping[str, tuple[Shape, ...]] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    general: Mapping[str, int] = field(default_factory=dict)
    transformed: bool = False

    @property
    def outer(self) -> list[Shape]:
        """The shapes of all kinds of uses of all weights."""
        return [shape for shapes in self.shapes.values() for shape in shapes]

    @property
    def factors(self) -> int:
        """Elements that stay for each cotangent until the products are made."""
        rows = sum(self.rows.values()) + sum(self.general.values())
        return rows + sum(shape.held for shape in self.outer)

    def in_a_block(self, q: int) -> int:
        """Return the elements that a sample takes during the passes of its block."""
        stacked = sum(
            shape.cotangent * (q if shape.stacks(q) else 1) for shape in self.outer if shape.formed
        )
        row = max(self.rows.values(), default=0)
        backward = self.passing + self.passing // 4 + stacked + row
        if not self.general:
            return backward
        by_transforms = 2 * self.passing + 2 * sum(self.general.values()) if self.transformed else 0
        return max(backward, q * by_transforms + self.passing)

    @property
    def fixed(self) -> int:
        """Elements that plain autograd holds, a sample and a cotangent at a time."""
        if not self.general or self.transformed:
            return 0
        return 2 * self.passing + sum(self.general.values())

    @property
    def features(self) -> int:
        """Elements of the largest features that are written out."""
        return max((s.features for s in self.outer if not s.sparse), default=0)

    def least_scratch(self, q: int, rows: int) -> int:
        """Return the elements of one output's gradients of all rows, and one sample's features."""
        outer = [s for s in self.outer if not (s.formed or s.tied)]
        gradients = max((q * rows * s.groups * s.inputs for s in outer if not s.sparse), default=0)
        tokens = max((2 * q * rows * s.cotangent for s in self.outer if s.sparse), default=0)
        return max(gradients + 2 * self.features, tokens)

    def best_scratch(self, q: int, rows: int) -> int:
        """Return the elements of the gradients that are best formed at once, with all features."""
        most = self.least_scratch(q, rows)
        for s in self.outer:
            if not (s.formed or s.sparse or s.tied):
                each = q * rows * s.groups * s.inputs
                gradients = each * min(s.outputs, max(CHUNK_OUTPUTS, CHUNK_ELEMENTS // each))
                features = rows * s.groups * s.inputs * s.positions
                known = features if features <= KNOWN_ELEMENTS else 0
                most = max(most, gradients + known, 2 * known)
        return most + 2**22


@dataclass(frozen=True)
class Cut:
    """The sizes of the pieces.

    Attributes:
        block: samples of one forward pass.
        chunk: samples whose factors are held together.
        cotangents: cotangents taken together.
        scratch: elements of the largest scratch buffer.
        bytes: the expected peak beyond the model and the result.
        spilled: whether the factors wait in a temporary file.
        tight: whether freed memory that stays with the allocator might exceed the budget.
    """

    block: int
    chunk: int
    cotangents: int
    scratch: int
    bytes: int
    spilled: bool = False
    tight: bool = False

    def pairs(self, n: int, m: int | None) -> Iterator[tuple[slice, slice | None]]:
        """Yield the pairs of chunks of n and m samples, None for a chunk with itself."""
        for start in range(0, n, self.chunk):
            left = slice(start, min(n, start + self.chunk))
            if m is None:
                yield left, None
            for begin in range(0, start if m is None else m, self.chunk):
                yield left, slice(begin, min(n if m is None else m, begin + self.chunk))

    def groups(self, q: int) -> Iterator[slice]:
        """Yield the cotangents, of which there are q, that are taken together."""
        for start in range(0, q, self.cotangents):
            yield slice(start, min(q, start + self.cotangents))


def default_memory(devices: Iterable[torch.device]) -> int:
    """Return a quarter of the smallest memory: always the same, so that results are, too.

    Args:
        devices: those that hold the model and its outputs; GPUs have a memory of their own, all
            others count as the machine.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = [torch.cuda.get_device_properties(d).total_memory for d in devices if d.type == "cuda"]
    return min(gpus or [machine]) // 4


def parse_memory(memory: str | float | None, devices: Iterable[torch.device]) -> int:
    """Return a budget in bytes from a number of bytes or text such as "2GB", "512 MiB".

    Args:
        memory: the number or the text; None for `default_memory` of the devices.
        devices: those that hold the model and its outputs.

    Raises:
        KernelError: if the text is no amount of memory, or it is not positive.
    """
    if memory is None:
        return default_memory(devices)
    match = re.fullmatch(r"\s*([0-9.eE+]+)\s*([KMGT]?)(i?)B?\s*", str(memory), re.IGNORECASE)
    try:
        if match is None:
            raise ValueError
        number, unit, binary = match.groups()
        power = _UNITS[unit.upper()]
        if binary:
            power = round(2 ** (10 * (len(str(power)) // 3)))
        amount = int(float(number) * power)
    except (ValueError, OverflowError):
        amount = 0
    if amount <= 0:
        raise KernelError(f'memory is an amount such as "2GB" or a number of bytes, not {memory!r}')
    return amount


def cut(
    work: Work,
    samples: tuple[int, int | None],
    cotangents: int,
    together: bool,
    element: int,
    budget: int,
    fixed: int = 0,
    disk: Callable[[], int] = lambda: 0,
) -> Cut:
    """Return the largest pieces that fit.

    Args:
        work: what a sample takes.
        samples: n and m; m None for the kernel between x and itself.
        cotangents: q, the number of cotangents.
        together: whether the products need all cotangents at once ("full").
        element: bytes of a number.
        budget: bytes.
        fixed: bytes that are held whatever the pieces, beside the result.
        disk: returns the bytes that factors may take in a temporary file.

    Raises:
        KernelError: if the budget is too small for one sample; the message says how much works.
    """
    n, m = samples
    budget -= fixed
    choices = [cotangents] if together else _halvings(cotangents)
    whole = n if m is None else n + m
    for q in choices:
        many = whole * q * work.factors > _FACTOR_ELEMENTS
        if many and q >= 2 * _FEWEST_COTANGENTS and not together:
            continue
        pieces = _fill(work, q, whole, 1, element, budget)
        if pieces is not None and pieces.chunk >= whole:
            return pieces
    for q in choices:
        stored = whole * (work.kept + q * work.factors) * element
        pieces = _spill(work, q, whole, element, budget) if stored <= disk() else None
        if pieces is not None:
            return pieces
    for q in reversed(choices):
        pieces = _fill(work, q, max(n, m or 0), 2, element, budget)
        if pieces is not None:
            return pieces
    least = least_bytes(work, cotangents, together, element, fixed)
    raise KernelError(too_small(budget + fixed, least))


def least_bytes(work: Work, cotangents: int, together: bool, element: int, fixed: int = 0) -> int:
    """Return the smallest budget that `cut` does not refuse; the arguments are those of `cut`."""
    q = cotangents if together else 1
    return _bytes(work, q, 1, 2, work.least_scratch(q, 2), element) + fixed


def too_small(budget: int, least: int) -> str:
    """Return a message that a budget is too small, and which one is enough; both in bytes."""
    return (
        f"memory={budget / 1e6:.4g} MB is too small: one sample at a time takes "
        f"{least / 1e6:.4g} MB; allow at least memory={-(-least // 10**6)}e6 (bytes)"
    )


def _halvings(count: int) -> list[int]:
    sizes = [count]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return sizes


def _fill(work: Work, q: int, most: int, copies: int, element: int, budget: int) -> Cut | None:
    """Return the largest block, then the largest chunk, within the budget; None if none fits."""
    held = most * (work.kept + q * work.factors)
    room = max(0, budget // element - work.fixed)
    efficient = max(_BLOCK_ELEMENTS, 2 * (_BLOCK_ELEMENTS - held), _EFFICIENT * work.in_a_block(q))
    wanted = min(room // 4, efficient)
    block = max(1, min(_BLOCK, most, wanted // work.in_a_block(q)))
    block = math.ceil(most / math.ceil(most / block))
    for share in (room // 4, 0):

        def tried(chunk: int, share: int = share) -> Cut:
            rows = copies * chunk
            scratch = max(work.least_scratch(q, rows), min(work.best_scratch(q, rows), share))
            total = _bytes(work, q, min(block, chunk), rows, scratch, element)
            return Cut(min(block, chunk), chunk, q, scratch, total, tight=2 * total > budget)

        fitting = bisect.bisect(range(1, most + 1), budget, key=lambda chunk: tried(chunk).bytes)
        if fitting > 0:
            return tried(fitting)
    return None


def _spill(work: Work, q: int, whole: int, element: int, budget: int) -> Cut | None:
    """Return pieces that hold the factors of one term at a time; None if they do not fit.

    What the passes have freed may stay with the allocator while the products are made.
    """
    sizes = (*work.rows.values(), *work.general.values())
    outer = max((s.features + q * s.held for s in work.outer), default=0)
    products = whole * max(outer, q * sum(sizes))
    best = min(work.best_scratch(q, whole), budget // element // 4)
    scratch = max(work.least_scratch(q, whole), best)
    each = work.in_a_block(q) + work.kept + q * work.factors
    fixed = products + scratch + work.fixed + q * work.width
    block = min(_EFFICIENT, whole, ((budget - _LIBRARIES) // element - fixed) // each)
    if block < 1:
        return None
    total = (block * each + fixed) * element + _LIBRARIES
    return Cut(block, whole, q, scratch, total, spilled=True, tight=True)


def _bytes(work: Work, q: int, block: int, held: int, scratch: int, element: int) -> int:
    elements = block * work.in_a_block(q) + held * (work.kept + q * work.factors)
    elements += work.fixed + q * work.width
    return (elements + scratch) * element + _LIBRARIES
