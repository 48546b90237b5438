"""What a layer rule knows: a recorded call of one operation, and its per-sample gradients.

A call turns the cotangent of its output into gradients of its parameters. Two kinds suffice:

- *outer*: a weight whose gradient is Σ_t cotangent[t] ⊗ feature[t] over positions t (linear
  maps, convolutions, embeddings); `features` and `cotangent` give the two factors;
- *rows*: anything else, where the gradient itself is formed.

All tensors that leave a call have the b samples in front.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.nn import functional as F


@dataclass
class Call:
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

    outer = False

    def __post_init__(self) -> None:
        self.version = self.source._version

    @property
    def signature(self) -> tuple[str, str | None, str | None]:
        """What has to be the same each time for the routes to stay valid."""
        return type(self).__name__, self.weight, self.bias

    def fits(self, samples: int, axis: int) -> bool:
        """Whether `axis` of the input can number this many samples."""
        shape = self.source.shape
        return axis == 0 and len(shape) > 1 and shape[0] % samples == 0

    def by_sample(self, tensor: Tensor) -> Tensor:
        """[b·r, …] → [b, r, …]."""
        return tensor.reshape(self.samples, -1, *tensor.shape[1:])

    def weight_rows(self, g: Tensor) -> Tensor:
        """Gradient of the weight, [b, p], from the output's cotangent."""
        raise NotImplementedError

    def bias_rows(self, g: Tensor) -> Tensor:
        """Gradient of the bias, [b, p], from the output's cotangent."""
        raise NotImplementedError


class OuterCall(Call):
    """A call whose weight [g·o, a] has the gradient Σ_t cotangent[t] ⊗ feature[t]."""

    outer = True
    sparse = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(g, o, a): groups, outputs and features of a group."""
        raise NotImplementedError

    @property
    def positions(self) -> int:
        """T, the number of positions of a sample."""
        raise NotImplementedError

    def features(self, start: int, stop: int) -> Tensor:
        """[stop − start, g, a, T]."""
        raise NotImplementedError

    def cotangent(self, g: Tensor) -> Tensor:
        """[b, g, o, T] from the output's cotangent."""
        raise NotImplementedError

    def weight_rows(self, g: Tensor) -> Tensor:
        features = self.features(0, self.samples)
        return torch.einsum("zgot,zgat->zgoa", self.cotangent(g), features).flatten(1)

    def bias_rows(self, g: Tensor) -> Tensor:
        return self.cotangent(g).sum(dim=-1).flatten(1)


@dataclass
class LinearCall(OuterCall):
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
        return self.source[..., 0].numel() // self.samples

    def features(self, start: int, stop: int) -> Tensor:
        return self._matrices(self.source)[start:stop, None]

    def cotangent(self, g: Tensor) -> Tensor:
        return self._matrices(g)[:, None]

    def _matrices(self, tensor: Tensor) -> Tensor:
        if self.batch_axis == 1:
            tensor = tensor.movedim(1, 0)
        return tensor.reshape(self.samples, -1, tensor.shape[-1]).mT


@dataclass
class ConvCall(OuterCall):
    """y = W ∗ x + b in one to three dimensions, any stride, padding, dilation and groups."""

    weight_shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    def fits(self, samples: int, axis: int) -> bool:
        return self.source.dim() == len(self.weight_shape) and super().fits(samples, axis)

    @property
    def shape(self) -> tuple[int, int, int]:
        out, *kernel = self.weight_shape
        return self.groups, out // self.groups, math.prod(kernel)

    @property
    def positions(self) -> int:
        return len(self.source) // self.samples * math.prod(self._output_size())

    def features(self, start: int, stop: int) -> Tensor:
        repeats = len(self.source) // self.samples
        x = self.source[start * repeats : stop * repeats]
        windows = patches(x, self.weight_shape[2:], self.stride, self.padding, self.dilation)
        windows = windows.reshape(
            stop - start, repeats, self.groups, -1, math.prod(self._output_size())
        )
        return windows.permute(0, 2, 3, 1, 4).flatten(3)

    def cotangent(self, g: Tensor) -> Tensor:
        by_group = g.reshape(self.samples, len(g) // self.samples, self.groups, -1, *g.shape[2:])
        return by_group.flatten(4).permute(0, 2, 3, 1, 4).flatten(3)

    def _output_size(self) -> list[int]:
        sizes = zip(
            self.source.shape[2:], self.weight_shape[2:], self.stride, self.padding, self.dilation,
            strict=True,
        )  # fmt: skip
        return [(size + p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in sizes]


@dataclass
class EmbeddingCall(OuterCall):
    """Rows of W by token; a feature is the token itself, standing for a one-hot vector."""

    vocabulary: int = 0
    width: int = 0
    padding_idx: int | None = None

    sparse = True

    def fits(self, samples: int, axis: int) -> bool:
        shape = self.source.shape
        return shape[0] % samples == 0 if axis == 0 else len(shape) > 1 and shape[1] == samples

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


@dataclass
class TransposedConvCall(Call):
    """y = Wᵀ ∗ x + b: the convolution with input and output exchanged."""

    weight_shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    def fits(self, samples: int, axis: int) -> bool:
        return self.source.dim() == len(self.weight_shape) and super().fits(samples, axis)

    def weight_rows(self, g: Tensor) -> Tensor:
        windows = patches(g, self.weight_shape[2:], self.stride, self.padding, self.dilation)
        positions = math.prod(self.source.shape[2:])
        for axis, size in enumerate(self.source.shape[2:], start=2 + len(self.stride)):
            windows = windows.narrow(axis, 0, size)
        windows = windows.reshape(len(g), self.groups, -1, positions)
        x = self.source.reshape(len(g), self.groups, -1, positions)
        rows = torch.einsum("zgit,zgat->zgia", x, windows).flatten(1)
        return self.by_sample(rows).sum(dim=1)

    def bias_rows(self, g: Tensor) -> Tensor:
        return self.by_sample(g.flatten(2).sum(dim=-1)).sum(dim=1)


@dataclass
class ChannelNormCall(Call):
    """y = γ x̂ + β with one γ and β a channel (BatchNorm in evaluation mode, GroupNorm)."""

    def weight_rows(self, g: Tensor) -> Tensor:
        return self.bias_rows(g * self.source)

    def bias_rows(self, g: Tensor) -> Tensor:
        sums = g.flatten(2).sum(dim=-1) if g.dim() > 2 else g
        return self.by_sample(sums).sum(dim=1)


@dataclass
class ElementNormCall(Call):
    """y = γ x̂ + β with one γ and β an element of the normalised axes (LayerNorm, RMSNorm)."""

    normalized: int = 0

    def fits(self, samples: int, axis: int) -> bool:
        shape = self.source.shape
        if axis == 1:
            return len(shape) > self.normalized + 1 and shape[1] == samples
        return len(shape) > self.normalized and shape[0] % samples == 0

    def weight_rows(self, g: Tensor) -> Tensor:
        return self.bias_rows(g * self.source)

    def bias_rows(self, g: Tensor) -> Tensor:
        if self.batch_axis == 1:
            g = g.movedim(1, 0)
        width = math.prod(g.shape[g.dim() - self.normalized :])
        return g.reshape(self.samples, -1, width).sum(dim=1)


def patches(
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """Every window of a convolution, as a view of the padded input.

    Args:
        x: [b, channels, *size].
        kernel: the window's size.
        stride: steps between windows.
        padding: zeros added on both sides together.
        dilation: steps within a window.

    Returns:
        [b, channels, *kernel, *positions].
    """
    if any(padding):
        sides = [side for p in reversed(padding) for side in (p // 2, p - p // 2)]
        x = F.pad(x, sides)
    positions = [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)
    ]
    steps = x.stride()
    within = [step * d for step, d in zip(steps[2:], dilation, strict=True)]
    between = [step * s for step, s in zip(steps[2:], stride, strict=True)]
    return x.as_strided(
        (*x.shape[:2], *kernel, *positions), (*steps[:2], *within, *between), x.storage_offset()
    )
