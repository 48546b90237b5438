"""The sizes of a weight whose per-sample gradient is a sum of outer products, and what it costs.

Execution, the memory budget and `plan` ask the same shape, so that a plan is what runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from conescope.engine.compute.speed import Speed

DIRECT_POSITIONS = 4
"""With every pair of cotangents, up to so many positions are weighted after all products."""
_COPY_OPERATIONS = 24
"""Copying an element takes about as long as so many floating-point operations of a product."""
_BATCHED_OPERATIONS = 1.5
"""An operation in products of small matrices takes about as long as so many in a large one."""


LONG_SUM = 2**17
"""Numbers that one inner product may add up in single precision. Measured on the diagonal of a Gram
matrix, oneDNN errs by 5e-7 up to here, MKL by 1e-6; both lose 4e-5 at eight times as many."""


class Pairing(Enum):
    """Which cotangents of two samples are multiplied, and what becomes of the q products.

    A kernel is computed as matrices [n · rows, m · rows], of which there are `matrices`.
    """

    SUMMED = "each cotangent with itself, summed: one matrix [n, m]"
    FULL = "every cotangent with every other: one matrix [n·q, m·q]"
    APART = "each cotangent with itself, kept apart: q matrices [n, m]"

    def matrices(self, cotangents: int) -> int:
        """Return how many matrices there are."""
        return cotangents if self is Pairing.APART else 1

    def rows(self, cotangents: int) -> int:
        """Return how many rows of a matrix belong to a sample."""
        return cotangents if self is Pairing.FULL else 1

    def together(self, cotangents: int, columns: int) -> list[slice]:
        """Group the cotangents whose inner products are computed together.

        Args:
            cotangents: q.
            columns: numbers that one cotangent adds to an inner product.
        """
        step = {
            Pairing.SUMMED: max(1, LONG_SUM // columns), Pairing.FULL: cotangents, Pairing.APART: 1
        }[self]  # fmt: skip
        return [slice(k, min(k + step, cotangents)) for k in range(0, cotangents, step)]

    def pairs(self, cotangents: int) -> int:
        """Return how many pairs of cotangents are multiplied."""
        return cotangents**2 if self is Pairing.FULL else cotangents


@dataclass(frozen=True)
class Cost:
    """What the products of a term will take, the passes that fill it not included.

    Attributes:
        route: how they are made: "gradients, in blocks", "gradients", "positions", "tokens",
            "rows" or "general".
        products: floating-point operations in products of large matrices.
        batched: the same in products of many small matrices.
        copied: elements written or copied.
        formed: operations by which gradients are formed during the passes.
    """

    route: str
    products: float
    batched: float = 0.0
    copied: float = 0.0
    formed: float = 0.0

    @property
    def flops(self) -> float:
        """All floating-point operations."""
        return self.products + self.batched + self.formed

    @property
    def weight(self) -> float:
        """What routes are compared by: the same on every machine, so that results are, too."""
        batched = _BATCHED_OPERATIONS * self.batched
        return self.products + batched + _COPY_OPERATIONS * self.copied + self.formed

    def seconds(self, speed: Speed) -> float:
        """Estimate the time of the products."""
        return (
            self.products / speed.product
            + self.batched / speed.batched
            + self.copied / speed.copy
        )  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """The sizes of a weight whose per-sample gradient is a sum of outer products.

    Attributes:
        groups: g, the number of groups.
        outputs: o, the outputs of a group.
        inputs: a, the features of a group.
        positions: T, the positions of a sample, over all uses of the weight.
        sparse: whether a feature is a token, which stands for a one-hot vector.
        convolved: up to how many cotangents of a block give their gradients faster by
            convolutions, one at a time, than by products of matrices.
        by_gradients: whether products are made of gradients even where pairs of positions are
            cheaper.
        tied: whether the weight has uses of another kind, too, so that the factors are needed.
        transposed: whether the weight is stored as [inputs, outputs].
        rearranged: whether the parameter is stored otherwise than as one matrix whose axes are
            outputs and inputs.
    """

    groups: int
    outputs: int
    inputs: int
    positions: int
    sparse: bool = False
    convolved: int = 0
    by_gradients: bool = False
    tied: bool = False
    transposed: bool = False
    rearranged: bool = False

    @property
    def size(self) -> int:
        """Elements of the per-sample gradient of one cotangent."""
        return self.groups * self.outputs * self.inputs

    @property
    def cotangent(self) -> int:
        """Elements of a sample's cotangent at the operation's output."""
        return self.groups * self.outputs * self.positions

    @property
    def features(self) -> int:
        """Elements of a sample's features when they are written out."""
        return self.groups * self.positions * (1 if self.sparse else self.inputs)

    @property
    def formed(self) -> bool:
        """Whether the gradient takes about as little memory as its factors, or less."""
        return not self.sparse and not self.tied and self.inputs <= 1.0 * self.positions

    @property
    def held(self) -> int:
        """Elements that stay for each sample and cotangent until the products are made."""
        return self.size if self.formed else self.cotangent

    def stacks(self, cotangents: int) -> bool:
        """Return whether a block keeps so many cotangents, to multiply them together."""
        return not self.formed or cotangents > self.convolved

    def cost(self, n: int, m: int | None, q: int, pairing: Pairing) -> Cost:
        """Return the route of the products, and their cost.

        Args:
            n: samples of the first index.
            m: samples of the second index; None for the kernel between x and itself.
            q: cotangents.
            pairing: which of them are multiplied.
        """
        pairing = Pairing.SUMMED if q == 1 else pairing
        if self.sparse:
            return self._by_tokens(n, m, q, pairing)
        gradients = self._by_gradients(n, m, q, pairing)
        if self.formed or self.by_gradients:
            return gradients
        positions = self._by_positions(n, m, q, pairing)
        return min(positions, gradients, key=lambda cost: cost.weight)

    def _by_gradients(self, n: int, m: int | None, q: int, pairing: Pairing) -> Cost:
        samples = n + (m or 0)
        forming = 2.0 * samples * q * self.positions * self.size
        products = 2.0 * _pairs(n, m) * self.size * pairing.pairs(q)
        if self.formed:  # in the passes
            return Cost("gradients, in blocks", products, 0.0, samples * q * self.size, forming)
        copied = samples * self.groups * self.positions * (self.inputs + q * self.outputs)
        return Cost("gradients", products, forming, samples * q * self.size + copied)

    def _by_positions(self, n: int, m: int | None, q: int, pairing: Pairing) -> Cost:
        t, o = self.positions, self.groups * self.outputs
        products = 2.0 * t * t * (self.groups * self.inputs + q * o)
        written = t * t * (1 + 2 * q)
        if pairing is Pairing.FULL:
            products += 2.0 * q * q * t * o
            written = t * t * (1 + 2 * (q * q if t <= DIRECT_POSITIONS else 1)) + 2 * q * o * t
        copied = (n + (m or 0)) * self.groups * t * (self.inputs + q * self.outputs)
        pairs = _pairs(n, m)
        return Cost("positions", products * pairs, 0.0, written * pairs + 2 * copied)

    def _by_tokens(self, n: int, m: int | None, q: int, pairing: Pairing) -> Cost:
        """Count every token as if half of the samples held it, which is more than they do."""
        samples = n + (m or 0)
        products = 2.0 * _pairs(n, m) * self.positions * self.outputs * pairing.pairs(q) / 2
        return Cost("tokens", 0.0, products, 3 * samples * q * self.cotangent)


class Use(Protocol):
    """One use of the weight by an operation, for a block of samples.

    Attributes:
        source: what the features are written from.
    """

    source: Tensor

    @property
    def shape(self) -> Shape:
        """The sizes of the weight in this use."""
        ...

    def write_features(self, out: Tensor, start: int, stop: int) -> None:
        """Write the features of samples start … stop − 1 to `out`, [stop − start, g, T, a].

        Tokens are written as integers, with a = 1.
        """

    def gradients(self, cotangent: Tensor) -> Tensor:
        """Return the gradients of some outputs' weights, [b, g, o′, a], from [b, g, o′, T]."""
        ...


def cost_of_rows(route: str, size: int, n: int, m: int | None, q: int, pairing: Pairing) -> Cost:
    """Return the cost of the products of rows of some size; see `Shape.cost`."""
    return Cost(route, 2.0 * _pairs(n, m) * size * pairing.pairs(q))


def _pairs(n: int, m: int | None) -> float:
    return n * n / 2 if m is None else n * m
