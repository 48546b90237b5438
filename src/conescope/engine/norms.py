"""The layer rules of norms: a gain γ and an offset β for each channel or element."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from conescope.engine.calls import Call, Role


@dataclass
class BatchNormCall(Call):
    """y = γ x̂ + β with one γ and β a channel, of which each slice of the batch has a copy.

    The gradients of the copies are those of the samples.

    Attributes:
        copies: γ, β or both, whichever has a name; [1 or 2, b·r · channels].
    """

    copies: Tensor = field(kw_only=True)

    def shaped(self, g: Tensor) -> Tensor:
        return g.reshape(self.source.shape)

    def of_samples(self, g: Tensor, numbers: list[int] | slice) -> Tensor:
        return g.view(len(g), self.samples, -1)[:, numbers]

    @property
    def target(self) -> GradientEdge:
        return get_gradient_edge(self.copies)

    def weight_rows(self, g: Tensor) -> Tensor:
        return self._by_channel(g[0])

    def bias_rows(self, g: Tensor) -> Tensor:
        return self._by_channel(g[-1])

    def _by_channel(self, g: Tensor) -> Tensor:
        """[b·r · channels] → [b, channels]."""
        return g.view(self.samples, len(self.source) // self.samples, -1).sum(dim=1)


@dataclass
class ChannelNormCall(Call):
    """y = γ x̂ + β with one γ and β a channel (GroupNorm); the source is x̂."""

    def rows(self, g: Tensor, roles: Collection[Role]) -> dict[Role, Tensor]:
        if "weight" not in roles:
            return super().rows(g, roles)
        both: dict[Role, Tensor] = dict(zip(("weight", "bias"), self._both(g), strict=True))
        return {role: both[role] for role in roles}

    def weight_rows(self, g: Tensor) -> Tensor:
        return self._both(g)[0]

    def bias_rows(self, g: Tensor) -> Tensor:
        return self._by_channel(g.flatten(2).sum(dim=-1) if g.dim() > 2 else g)

    def _both(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of γ and β in one pass: a group norm's, with every map as a channel."""
        maps, size = len(g) * g.shape[1], math.prod(g.shape[2:])
        dtype = torch.promote_types(g.dtype, self.source.dtype)
        g, source = g.to(dtype), self.source.to(dtype)
        unit = g.new_ones(1, 1)
        _, products, sums = torch.ops.aten.native_group_norm_backward(
            g.reshape(1, maps, size), source.reshape(1, maps, size), unit - 1, unit,
            unit.expand(1, maps)[0], 1, maps, size, 1, (False, True, True),
        )  # fmt: skip
        weight, bias = (rows.view(g.shape[:2]) for rows in (products, sums))
        return self._by_channel(weight), self._by_channel(bias)

    def _by_channel(self, sums: Tensor) -> Tensor:
        """[b·r, channels] → [b, channels]."""
        return sums if len(sums) == self.samples else self.by_sample(sums).sum(dim=1)


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
