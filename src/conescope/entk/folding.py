"""A BatchNorm in evaluation mode folded into the convolution before it.

Its cotangent goes to the convolution's input in one step instead of two. The convolution's own
output stays as it is: whatever else the model makes of it takes its usual way through the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Convolved:
    """A convolution that has just been made.

    Attributes:
        output: W ∗ x + b.
        version: of the output, when it was made.
        input: x, in the graph of autograd.
        weight, bias: as the model has them.
        kernel: the weight, detached, in the order of memory that was used.
        geometry: what a `ConvCall` is told of it.
    """

    output: Tensor
    version: int
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    kernel: Tensor
    geometry: dict[str, Any]

    def takes(self, image: Tensor) -> bool:
        """Whether a BatchNorm of this image can be folded: it is the output and nothing else."""
        untouched = image is self.output and image._version == self.version
        even = all(padding % 2 == 0 for padding in self.geometry["padding"])
        return untouched and even and not image._backward_hooks


def fold(convolved: Convolved, scale: Tensor, shift: Tensor) -> Tensor:
    """Scale · (W ∗ x + b) + shift by channels, as a function of x alone."""
    return _Folded.apply(convolved.input, convolved, scale, shift)


class _Folded(torch.autograd.Function):
    """The smaller of kernel and image takes up the scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, convolved: Convolved, scale: Tensor, shift: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        shape = (-1,) + (1,) * (x.dim() - 2)
        kernel, image = convolved.kernel, convolved.output.detach()
        ctx.size, ctx.geometry = x.shape, convolved.geometry
        ctx.in_kernel = kernel.numel() <= image.numel()
        if ctx.in_kernel:
            kernel = kernel * scale.view(-1, 1, *shape[1:])
        ctx.save_for_backward(kernel, scale.view(shape))
        return torch.addcmul(shift.view(shape), image, scale.view(shape))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        kernel, scale = ctx.saved_tensors
        geometry = ctx.geometry
        if not ctx.in_kernel:
            g = g * scale
        padding = [p // 2 for p in geometry["padding"]]
        unread = g.new_empty(1).expand(ctx.size)
        cotangent, _, _ = torch.ops.aten.convolution_backward(
            g, unread, kernel, None, geometry["stride"], padding, geometry["dilation"],
            False, [0] * len(padding), geometry["groups"], [True, False, False],
        )  # fmt: skip
        return cotangent, None, None, None
