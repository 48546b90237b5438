"""Norms, with a gain γ and an offset β for each channel or element."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from conescope.engine.layers.call import Call, Recording, Role, intercepts


@dataclass
class BatchNormCall(Call):
    """y = γ x̂ + β in evaluation mode, with one γ and β a channel.

    Each slice of the batch gets copies of its own of γ and β, so that autograd's gradients of the
    copies are those of the samples.

    Attributes:
        copies: γ, β or both, whichever has a name; [1 or 2, b·r · channels].
    """

    copies: Tensor = field(kw_only=True)

    @property
    def cotangent_elements(self) -> int:
        return self.copies.numel() // self.samples

    def shaped(self, g: Tensor) -> Tensor:
        return g.reshape(self.source.shape)

    def of_samples(self, g: Tensor, numbers: list[int] | slice) -> Tensor:
        return g.view(len(g), self.samples, -1)[:, numbers].transpose(0, 1)

    @property
    def target(self) -> GradientEdge:
        return get_gradient_edge(self.copies)

    def weight_rows(self, g: Tensor) -> Tensor:
        return self._by_channel(g[0])

    def bias_rows(self, g: Tensor) -> Tensor:
        return self._by_channel(g[-1])

    def _by_channel(self, g: Tensor) -> Tensor:
        """Sum [b·r · channels] to [b, channels]."""
        return g.view(self.samples, len(self.source) // self.samples, -1).sum(dim=1)


@dataclass
class ChannelNormCall(Call):
    """y = γ x̂ + β with one γ and β a channel (GroupNorm); the source is x̂."""

    def own_rows(self, g: Tensor, roles: Collection[Role]) -> dict[Role, Tensor]:
        if "weight" not in roles:
            return super().own_rows(g, roles)
        both: dict[Role, Tensor] = dict(zip(("weight", "bias"), self._both(g), strict=True))
        return {role: both[role] for role in roles}

    def weight_rows(self, g: Tensor) -> Tensor:
        return self._both(g)[0]

    def bias_rows(self, g: Tensor) -> Tensor:
        return self._by_channel(g.flatten(2).sum(dim=-1) if g.dim() > 2 else g)

    def _both(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return gradients of γ and β by one backward pass, with every map as its own channel."""
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
        """Sum [b·r, channels] to [b, channels]."""
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
        width = math.prod(g.shape[g.dim() - self.normalized :])
        return self.samples_first(g).reshape(self.samples, -1, width).sum(dim=1)


@intercepts(F.batch_norm)
def _batch_norm(
    recorder: Recording,
    input: Tensor,  # noqa: A002
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    recorder.note_uncovered(input)
    known = [recorder.detached(v) for v in (weight, bias) if recorder.knows(v)]
    if training or running_mean is None or running_var is None or not known:
        recorder.note_uncovered(weight, bias)
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    slices = len(input)
    copies = torch.stack([vector.repeat(slices) for vector in known])
    if not copies.requires_grad:
        copies.requires_grad_()
    own = iter(copies)

    def repeated(vector: Tensor | None) -> Tensor | None:
        if vector is None:
            return None
        return next(own) if recorder.knows(vector) else vector.repeat(slices)

    y = F.batch_norm(
        input.reshape(1, -1, *input.shape[2:]),
        running_mean.repeat(slices), running_var.repeat(slices), repeated(weight), repeated(bias),
        eps=eps,
    )  # fmt: skip
    # recorded before it is reshaped: an in-place change gives a view another place in the graph
    y = recorder.keep(BatchNormCall, weight, bias, input, y, copies=copies)
    return y.reshape(input.shape)


@intercepts(F.group_norm)
def _group_norm(
    recorder: Recording,
    input: Tensor,  # noqa: A002
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    unit = F.group_norm(input, num_groups, eps=eps)
    shape = (1, -1) + (1,) * (input.dim() - 2)
    return _affine(recorder, input, unit, weight, bias, shape, ChannelNormCall)


@intercepts(F.instance_norm)
def _instance_norm(
    recorder: Recording,
    input: Tensor,  # noqa: A002
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats or running_mean is not None:
        recorder.note_uncovered(input, weight, bias)
        return F.instance_norm(
            input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        )
    unit = F.instance_norm(input, eps=eps)
    shape = (1, -1) + (1,) * (input.dim() - 2)
    return _affine(recorder, input, unit, weight, bias, shape, ChannelNormCall)


@intercepts(F.layer_norm)
def _layer_norm(
    recorder: Recording,
    input: Tensor,  # noqa: A002
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    unit = F.layer_norm(input, normalized_shape, eps=eps)
    shape = tuple(normalized_shape)
    return _affine(
        recorder, input, unit, weight, bias, shape, ElementNormCall, normalized=len(shape)
    )


@intercepts(F.rms_norm)
def _rms_norm(
    recorder: Recording,
    input: Tensor,  # noqa: A002
    normalized_shape: list[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    unit = F.rms_norm(input, normalized_shape, eps=eps)
    shape = tuple(normalized_shape)
    return _affine(
        recorder, input, unit, weight, None, shape, ElementNormCall, normalized=len(shape)
    )


def _affine(
    recorder: Recording,
    x: Tensor,
    unit: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    shape: tuple[int, ...],
    kind: type[Call],
    **geometry: int,
) -> Tensor:
    """Apply a gain and an offset of the given shape to `unit`, the normalised x, and record it."""
    recorder.note_uncovered(x)
    gain, offset = recorder.detached(weight), recorder.detached(bias)
    y = unit if gain is None else unit * gain.reshape(shape)
    if offset is not None:
        y = y + offset.reshape(shape)
    y = y.to(unit.dtype)
    return recorder.keep(kind, weight, bias, unit, y, **geometry)
