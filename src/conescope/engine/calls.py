"""What a layer rule knows: a recorded call of one operation, and its per-sample gradients.

A call turns the cotangent of its output into gradients of its parameters. Two kinds suffice:

- *outer*: a weight whose gradient is Σ_t cotangent[t] ⊗ feature[t] over positions t (linear
  maps, convolutions, embeddings); `features` and `cotangent` give the two factors;
- *rows*: anything else, where the gradient itself is formed.

All tensors that leave a call have the b samples in front.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Literal

from torch import Tensor
from torch.autograd.graph import GradientEdge

Role = Literal["weight", "bias"]

_VARYING = {"source", "edge", "samples", "version", "copies"}


@dataclass
class Call(ABC):
    """One recorded use of parameters by an operation.

    Attributes:
        weight, bias: names of the parameters, None where the operation has none of interest.
        source: the operation's input, or what the rule keeps of it.
        edge: the place of the operation's output in the graph of autograd.
        batch_axis: which axis of input and output numbers the samples, 0 or 1.
        samples: b; axis 0 may number b·r slices, r for each sample in turn.
    """

    weight: str | None
    bias: str | None
    source: Tensor
    edge: GradientEdge
    batch_axis: int = 0
    samples: int = 0
    version: int = field(init=False)

    def __post_init__(self) -> None:
        self.version = self.source._version

    @property
    def names(self) -> list[str]:
        """Of the parameters."""
        return [name for name in (self.weight, self.bias) if name is not None]

    @property
    def target(self) -> GradientEdge:
        """The place in the graph whose gradients the rules take: the operation's output."""
        return self.edge

    @property
    def signature(self) -> tuple[str, str | None, str | None]:
        """What has to be the same each time for the routes to stay valid."""
        return type(self).__name__, self.weight, self.bias

    @property
    def geometry(self) -> tuple[object, ...]:
        """Settings, and sizes for one sample: what a survey holds for."""
        sizes = list(self.source.shape)
        sizes[self.batch_axis] //= self.samples
        settings = (getattr(self, f.name) for f in fields(self) if f.name not in _VARYING)
        return (*sizes, *settings)

    def fits(self, samples: int, axis: int) -> bool:
        """Whether `axis` of the input can number this many samples."""
        shape = self.source.shape
        return axis == 0 and len(shape) > 1 and shape[0] % samples == 0

    def shaped(self, g: Tensor) -> Tensor:
        """The gradient at `edge` in the shape of the operation's output."""
        return g

    def samples_first(self, g: Tensor) -> Tensor:
        """The output's cotangent as [b, …]."""
        return self.by_sample(g) if self.batch_axis == 0 else g.movedim(1, 0)

    def of_samples(self, g: Tensor, numbers: list[int] | slice) -> Tensor:
        """The part of the gradient at `target` that is of some samples."""
        return self.samples_first(g)[numbers]

    def by_sample(self, tensor: Tensor) -> Tensor:
        """[b·r, …] → [b, r, …]."""
        return tensor.reshape(self.samples, -1, *tensor.shape[1:])

    def rows(self, g: Tensor, roles: Collection[Role]) -> dict[Role, Tensor]:
        """Gradients of the weight, the bias or both, [b, p] each, from the gradient at `target`."""
        by_role = {"weight": self.weight_rows, "bias": self.bias_rows}
        return {role: by_role[role](g) for role in roles}

    @abstractmethod
    def weight_rows(self, g: Tensor) -> Tensor:
        """Gradient of the weight, [b, p], from the gradient at `target`."""

    @abstractmethod
    def bias_rows(self, g: Tensor) -> Tensor:
        """Gradient of the bias, [b, p], from the gradient at `target`."""


class OuterCall(Call):
    """A call whose weight [g·o, a] has the gradient Σ_t cotangent[t] ⊗ feature[t]."""

    sparse = False
    transposed = False
    """Whether the weight is stored as [a, o]; kernels do not depend on it."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(g, o, a): groups, outputs and features of a group."""

    @property
    @abstractmethod
    def positions(self) -> int:
        """T, the number of positions of a sample."""

    @abstractmethod
    def cotangent(self, g: Tensor) -> Tensor:
        """[b, g, o, T] from the output's cotangent."""

    def bias_rows(self, g: Tensor) -> Tensor:
        return self.cotangent(g).sum(dim=-1).flatten(1)


class DenseCall(OuterCall):
    """An outer call whose features are written out as numbers."""

    @abstractmethod
    def write_features(self, out: Tensor, start: int, stop: int) -> None:
        """Write the features of samples start … stop − 1 to `out`, [stop − start, g, T, a]."""

    def weight_rows(self, g: Tensor) -> Tensor:
        groups, _, inputs = self.shape
        features = g.new_empty(self.samples, groups, self.positions, inputs)
        self.write_features(features, 0, self.samples)
        return (self.cotangent(g) @ features).flatten(1)


@dataclass
class LinearCall(DenseCall):
    """y = W x + b over the last axis; every other axis beside the samples is a position."""

    out_features: int = 0

    def fits(self, samples: int, axis: int) -> bool:
        shape = self.source.shape
        if axis == 1:
            return len(shape) > 2 and shape[1] == samples
        return len(shape) > 1 and shape[0] % samples == 0

    @property
    def shape(self) -> tuple[int, int, int]:
        return 1, self.out_features, self.source.shape[-1]

    @property
    def positions(self) -> int:
        return math.prod(self.source.shape[:-1]) // self.samples

    def write_features(self, out: Tensor, start: int, stop: int) -> None:
        out[:, 0] = self._vectors(self.source)[start:stop]

    def cotangent(self, g: Tensor) -> Tensor:
        return self._vectors(g).mT[:, None]

    def _vectors(self, tensor: Tensor) -> Tensor:
        if self.batch_axis == 1:
            tensor = tensor.movedim(1, 0)
        return tensor.reshape(self.samples, -1, tensor.shape[-1])


@dataclass
class ProductCall(LinearCall):
    """y = x W + b, with W the transpose of a linear map's weight."""

    transposed = True

    def weight_rows(self, g: Tensor) -> Tensor:
        rows = super().weight_rows(g)
        return rows.view(len(rows), self.out_features, -1).mT.flatten(1)


@dataclass
class EmbeddingCall(OuterCall):
    """Rows of W by token; a feature is the token itself, standing for a one-hot vector."""

    vocabulary: int = 0
    width: int = 0
    padding_idx: int | None = None

    sparse = True

    def fits(self, samples: int, axis: int) -> bool:
        shape = self.source.shape
        if axis == 1:
            return len(shape) > 1 and shape[1] == samples
        return len(shape) > 0 and shape[0] % samples == 0

    @property
    def shape(self) -> tuple[int, int, int]:
        return 1, self.width, self.vocabulary

    @property
    def positions(self) -> int:
        return self.source.numel() // self.samples

    def tokens(self) -> Tensor:
        """[b, T]."""
        source = self.source.movedim(1, 0) if self.batch_axis == 1 else self.source
        return source.reshape(self.samples, -1)

    def cotangent(self, g: Tensor) -> Tensor:
        if self.batch_axis == 1:
            g = g.movedim(1, 0)
        g = g.reshape(self.samples, -1, self.width)
        if self.padding_idx is not None:
            g = g.masked_fill((self.tokens() == self.padding_idx)[..., None], 0.0)
        return g.mT[:, None]

    def weight_rows(self, g: Tensor) -> Tensor:
        cotangent = self.cotangent(g)[:, 0].mT
        rows = cotangent.new_zeros(self.samples, self.vocabulary, self.width)
        index = self.tokens()[..., None].expand_as(cotangent)
        return rows.scatter_add_(1, index, cotangent).flatten(1)
