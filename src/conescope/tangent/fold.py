"""Fold a BatchNorm with frozen statistics into the convolution before it.

    BatchNorm(W ∗ x + b) = W̃ ∗ x + b̃,   W̃ = W γ/σ,   b̃ = (b − μ) γ/σ + β

Derivatives go through W̃ and b̃, so that the BatchNorm needs no passes over the activations. The
value is computed as the network does, to the last bit: if rounding changed the sign of a
pre-activation near zero, a ReLU would have another derivative there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from conescope.tangent import dual
from conescope.tangent.dual import Dual


def folded(
    norm: Any, weight: Dual, bias: Dual | None, gamma: Dual | None, beta: Dual | None
) -> tuple[Dual, Dual]:
    """Return W̃ and b̃ with their tangents.

    Args:
        norm: the BatchNorm, whose running statistics are used.
        weight: W, [o, …].
        bias: b, [o], None for none.
        gamma: γ, [o], None for 1.
        beta: β, [o], None for 0.
    """
    inverse = torch.rsqrt(norm.running_var + norm.eps)
    by_output = (-1, *[1] * (weight.primal.dim() - 1))

    def fold_weight(weight: Tensor, gamma: Tensor | None) -> Tensor:
        scale = inverse if gamma is None else inverse * gamma
        return weight * scale.view(by_output)

    def fold_bias(bias: Tensor | None, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
        shift = -norm.running_mean if bias is None else bias - norm.running_mean
        shift = shift * inverse if gamma is None else shift * inverse * gamma
        return shift if beta is None else shift + beta

    return dual.call(fold_weight, weight, gamma), dual.call(fold_bias, bias, gamma, beta)


class NormalisedConvolution(torch.autograd.Function):
    """The value of `norm(convolution(x))` with the gradients of W̃ ∗ x + b̃."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, _weight: Tensor, _bias: Tensor, convolution: nn.Module, norm: nn.Module
    ) -> Tensor:
        """Return the network's own value, from x, W̃ and b̃."""
        return norm(convolution(x))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        """Keep what the gradients need."""
        x, weight, _, ctx.convolution, _ = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, W̃ and b̃, where they are needed."""
        (gradient,) = gradients
        x, weight = (saved.to(gradient.dtype) for saved in ctx.saved_tensors)  # if under autocast
        of = ctx.convolution
        results = torch.ops.aten.convolution_backward(
            gradient, x, weight, [len(weight)],
            of.stride, of.padding, of.dilation, False, [0] * len(of.stride), of.groups,
            ctx.needs_input_grad[:3],
        )  # fmt: skip
        return (*results, None, None)
