"""Convolutions and transposed convolutions in one to three dimensions."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from conescope.engine.compute.factors import FEW_COTANGENTS
from conescope.engine.compute.products import mkl_on_intel, onednn_serves
from conescope.engine.compute.shape import Shape
from conescope.engine.layers.call import Call, Interception, OuterCall, Recording, intercepts

_ONEDNN_CHANNELS = 16
_SMALL_WEIGHT = 2**16


@dataclass
class _SlidingCall(Call):
    """A call whose weight slides over its input; `padding` is of both sides together."""

    weight_shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    def fits(self, samples: int, axis: int) -> bool:
        return self.source.dim() == len(self.weight_shape) and super().fits(samples, axis)


@dataclass
class ConvCall(_SlidingCall, OuterCall):
    """y = W ∗ x + b in one to three dimensions, any stride, padding, dilation and groups.

    A feature is a patch with the channels innermost, so that a copy of it reads long runs of
    memory; no kernel depends on the order.
    """

    @property
    def shape(self) -> Shape:
        out, *kernel = self.weight_shape
        positions = len(self.source) // self.samples * math.prod(self._output_size())
        g, o, a = self.groups, out // self.groups, math.prod(kernel)
        return Shape(g, o, a, positions, convolved=self._convolved())

    def write_features(self, out: Tensor, start: int, stop: int) -> None:
        repeats = len(self.source) // self.samples
        x = self.source[start * repeats : stop * repeats]
        kernel = self.weight_shape[2:]
        windows = patches(x, kernel, self.stride, self.padding, self.dilation)
        windows = windows.unflatten(-1, (self.groups, -1)).unflatten(0, (stop - start, repeats))
        windows = windows.movedim(-2, 1)
        out.view(windows.shape).copy_(windows)

    def cotangent(self, g: Tensor) -> Tensor:
        repeats = len(g) // self.samples
        by_group = g.reshape(self.samples, repeats, self.groups, -1, math.prod(g.shape[2:]))
        return by_group.permute(0, 2, 3, 1, 4).flatten(3)

    def _convolved(self) -> int:
        """Return up to how many cotangents `gradients` is faster than products of patches.

        It is, in oneDNN, for small weights whose channels are multiples of 16.
        """
        fast = (
            onednn_serves(self.source)
            and self.source.dtype == torch.float32
            and all(count % _ONEDNN_CHANNELS == 0 for count in self.weight_shape[:2])
            and math.prod(self.weight_shape) <= _SMALL_WEIGHT
            and all(p % 2 == 0 for p in self.padding)
        )
        return 0 if not fast else FEW_COTANGENTS if mkl_on_intel() else sys.maxsize

    def gradients(self, cotangent: Tensor) -> Tensor:
        """Form gradients of some outputs' weights by a convolution in which each sample is a group.

        Args:
            cotangent: of these outputs, [b, g, o′, T].

        Returns:
            [b, g, o′, a], the channels outermost.
        """
        images = self.by_sample(self.source).transpose(0, 1).flatten(1, 2)
        b, g, o, _ = cotangent.shape
        maps = cotangent.unflatten(-1, (-1, *self._output_size())).movedim(3, 0).flatten(1, 3)
        weight = images.new_empty(1).expand(b * g * o, *self.weight_shape[1:])
        padding = [p // 2 for p in self.padding]
        _, weights, _ = torch.ops.aten.convolution_backward(
            maps.to(images.dtype), images, weight, None, self.stride, padding, self.dilation,
            False, [0] * len(padding), b * g, (False, True, False),
        )  # fmt: skip
        return weights.view(b, g, o, -1)

    def arranged(self, gradients: Tensor) -> Tensor:
        return gradients.unflatten(3, (math.prod(self.weight_shape[2:]), -1)).mT.flatten(1)

    def weight_rows(self, g: Tensor) -> Tensor:
        return self.arranged(super().gradients(self.cotangent(g)))

    def _output_size(self) -> list[int]:
        return output_size(
            self.source.shape[2:], self.weight_shape[2:], self.stride, self.padding, self.dilation
        )


@dataclass
class TransposedConvCall(_SlidingCall):
    """y = Wᵀ ∗ x + b: the convolution with input and output exchanged."""

    output_shape: tuple[int, ...] = ()

    @property
    def cotangent_elements(self) -> int:
        return len(self.source) // self.samples * math.prod(self.output_shape)

    def weight_rows(self, g: Tensor) -> Tensor:
        windows = patches(g, self.weight_shape[2:], self.stride, self.padding, self.dilation)
        for axis, size in enumerate(self.source.shape[2:], start=1):
            windows = windows.narrow(axis, 0, size)
        positions = math.prod(self.source.shape[2:])
        windows = windows.unflatten(-1, (self.groups, -1)).movedim(-2, 1).movedim(-1, 2)
        windows = windows.reshape(len(g), self.groups, windows.shape[2], positions, -1)
        x = self.source.to(g.dtype).reshape(len(g), self.groups, -1, positions)
        rows = torch.einsum("zgit,zgotk->zgiok", x, windows).flatten(1)
        return self.by_sample(rows).sum(dim=1)

    def bias_rows(self, g: Tensor) -> Tensor:
        return self.by_sample(g.flatten(2).sum(dim=-1)).sum(dim=1)


def output_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """Return the windows along each dimension; `padding` is that of both sides together."""
    along = zip(size, kernel, stride, padding, dilation, strict=True)
    return [(length + p - d * (k - 1) - 1) // s + 1 for length, k, s, p, d in along]


def patches(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return every window, as a view of the padded input with channels innermost.

    Args:
        x: [b, channels, *size].
        kernel: the window's size.
        stride: steps between windows.
        padding: zeros added on both sides together.
        dilation: steps within a window.

    Returns:
        [b, *positions, *kernel, channels].
    """
    padded = [length + p for length, p in zip(x.shape[2:], padding, strict=True)]
    pixels = (x.new_zeros if any(padding) else x.new_empty)(len(x), *padded, x.shape[1])
    inside = pixels
    for axis, (length, p) in enumerate(zip(x.shape[2:], padding, strict=True), start=1):
        inside = inside.narrow(axis, p // 2, length)
    inside.copy_(x.movedim(1, -1))
    _, *steps, _ = pixels.stride()
    between = [step * s for step, s in zip(steps, stride, strict=True)]
    within = [step * d for step, d in zip(steps, dilation, strict=True)]
    return pixels.as_strided(
        (len(x), *output_size(x.shape[2:], kernel, stride, padding, dilation), *kernel, x.shape[1]),
        (pixels.stride(0), *between, *within, 1),
    )


def _convolution(operation: Callable[..., Tensor], dimensions: int) -> Interception:
    def convolve(
        recorder: Recording,
        input: Tensor,  # noqa: A002
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
    ) -> Tensor:
        recorder.note_uncovered(input)
        y = operation(
            input, recorder.detached(weight), recorder.detached(bias), stride, padding, dilation,
            groups,
        )  # fmt: skip
        spread = _tuple(dilation, dimensions)
        return recorder.keep(
            ConvCall, weight, bias, input, y,
            weight_shape=tuple(weight.shape),
            stride=_tuple(stride, dimensions),
            padding=_total_padding(padding, tuple(weight.shape[2:]), spread),
            dilation=spread,
            groups=groups,
        )  # fmt: skip

    return convolve


def _transposed(operation: Callable[..., Tensor], dimensions: int) -> Interception:
    def convolve(
        recorder: Recording,
        input: Tensor,  # noqa: A002
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        output_padding: int | tuple[int, ...] = 0,
        groups: int = 1,
        dilation: int | tuple[int, ...] = 1,
    ) -> Tensor:
        recorder.note_uncovered(input)
        y = operation(
            input, recorder.detached(weight), recorder.detached(bias), stride, padding,
            output_padding, groups, dilation,
        )  # fmt: skip
        return recorder.keep(
            TransposedConvCall, weight, bias, input, y,
            weight_shape=tuple(weight.shape),
            stride=_tuple(stride, dimensions),
            padding=tuple(2 * p for p in _tuple(padding, dimensions)),
            dilation=_tuple(dilation, dimensions),
            groups=groups,
            output_shape=tuple(y.shape[1:]),
        )  # fmt: skip

    return convolve


def _tuple(value: int | tuple[int, ...], dimensions: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dimensions if len(values) == 1 else values


def _total_padding(
    padding: int | tuple[int, ...] | str, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, ...]:
    if padding == "same":
        return tuple(d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
    if isinstance(padding, str):
        return (0,) * len(kernel)
    return tuple(2 * p for p in _tuple(padding, len(kernel)))


for _dimensions, _operation, _transpose in (
    (1, F.conv1d, F.conv_transpose1d),
    (2, F.conv2d, F.conv_transpose2d),
    (3, F.conv3d, F.conv_transpose3d),
):
    intercepts(_operation)(_convolution(_operation, _dimensions))
    intercepts(_transpose)(_transposed(_transpose, _dimensions))
