"""What a recorder does in the place of an operation that a layer rule understands."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from conescope.engine.calls import EmbeddingCall, LinearCall, ProductCall
from conescope.engine.convolutions import ConvCall, TransposedConvCall
from conescope.engine.norms import BatchNormCall, ChannelNormCall, ElementNormCall

if TYPE_CHECKING:
    from conescope.engine.recorder import Recorder


def _linear(
    recorder: Recorder,
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    recorder.stray(input)
    if weight.dim() == 1:
        recorder.stray(weight)
        recorder.stray(bias)
        return F.linear(input, weight, bias)
    y = F.linear(input, recorder.known(weight), recorder.known(bias))  # pyright: ignore[reportArgumentType]
    return recorder.keep(LinearCall, weight, bias, input, y, out_features=len(weight))


def _product(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def multiply(
        recorder: Recorder,
        input: Tensor,  # noqa: A002
        other: Tensor | None = None,
        *,
        mat2: Tensor | None = None,
        **rest: Any,
    ) -> Tensor:
        weight = mat2 if other is None else other
        assert weight is not None
        recorder.stray(input)
        if rest or input.dim() < 2 or weight.dim() != 2 or recorder.name(weight) is None:
            recorder.stray(weight)
            return operation(input, weight, **rest)
        y = operation(input, recorder.known(weight))
        return recorder.keep(
            ProductCall, weight, None, input, y, out_features=weight.shape[1]
        )  # fmt: skip

    return multiply


def _added_product(
    recorder: Recorder,
    input: Tensor,  # noqa: A002
    mat1: Tensor,
    mat2: Tensor,
    **rest: Any,
) -> Tensor:
    recorder.stray(mat1)
    bias = input if input.shape == mat2.shape[1:] else None
    if rest or recorder.name(mat2) is None or (bias is None and recorder.name(input)):
        recorder.stray(input)
        recorder.stray(mat2)
        return torch.addmm(input, mat1, mat2, **rest)
    y = torch.addmm(recorder.known(input), mat1, recorder.known(mat2))  # pyright: ignore[reportArgumentType]
    return recorder.keep(ProductCall, mat2, bias, mat1, y, out_features=mat2.shape[1])


def _convolution(operation: Callable[..., Tensor], dimensions: int) -> Callable[..., Tensor]:
    def convolve(
        recorder: Recorder,
        input: Tensor,  # noqa: A002
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
    ) -> Tensor:
        recorder.stray(input)
        y = operation(
            input, recorder.known(weight), recorder.known(bias), stride, padding, dilation, groups
        )
        spread = _tuple(dilation, dimensions)
        return recorder.keep(
            ConvCall,
            weight,
            bias,
            input,
            y,
            weight_shape=tuple(weight.shape),
            stride=_tuple(stride, dimensions),
            padding=_total_padding(padding, tuple(weight.shape[2:]), spread),
            dilation=spread,
            groups=groups,
        )

    return convolve


def _transposed(operation: Callable[..., Tensor], dimensions: int) -> Callable[..., Tensor]:
    def convolve(
        recorder: Recorder,
        input: Tensor,  # noqa: A002
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        output_padding: int | tuple[int, ...] = 0,
        groups: int = 1,
        dilation: int | tuple[int, ...] = 1,
    ) -> Tensor:
        recorder.stray(input)
        y = operation(
            input, recorder.known(weight), recorder.known(bias), stride, padding,
            output_padding, groups, dilation,
        )  # fmt: skip
        return recorder.keep(
            TransposedConvCall,
            weight,
            bias,
            input,
            y,
            weight_shape=tuple(weight.shape),
            stride=_tuple(stride, dimensions),
            padding=tuple(2 * p for p in _tuple(padding, dimensions)),
            dilation=_tuple(dilation, dimensions),
            groups=groups,
        )

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


def _batch_norm(
    recorder: Recorder,
    input: Tensor,  # noqa: A002
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    recorder.stray(input)
    known = [
        vector
        for v in (weight, bias)
        if recorder.name(v) is not None and (vector := recorder.known(v)) is not None
    ]
    if training or running_mean is None or running_var is None or not known:
        recorder.stray(weight)
        recorder.stray(bias)
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    slices = len(input)
    copies = torch.stack([vector.repeat(slices) for vector in known])
    if not copies.requires_grad:
        copies.requires_grad_()
    own = iter(copies)

    def repeated(vector: Tensor | None) -> Tensor | None:
        if vector is None:
            return None
        return vector.repeat(slices) if recorder.name(vector) is None else next(own)

    y = F.batch_norm(
        input.reshape(1, -1, *input.shape[2:]),
        running_mean.repeat(slices), running_var.repeat(slices), repeated(weight), repeated(bias),
        eps=eps,
    )  # fmt: skip
    # recorded before it is reshaped: an in-place change gives a view another place in the graph
    y = recorder.keep(BatchNormCall, weight, bias, input, y, copies=copies)
    return y.reshape(input.shape)


def _group_norm(
    recorder: Recorder,
    input: Tensor,  # noqa: A002
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    def normalize(x: Tensor) -> Tensor:
        return F.group_norm(x, num_groups, eps=eps)

    shape = (1, -1) + (1,) * (input.dim() - 2)
    return _affine(recorder, normalize, input, weight, bias, shape, ChannelNormCall)


def _layer_norm(
    recorder: Recorder,
    input: Tensor,  # noqa: A002
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    def normalize(x: Tensor) -> Tensor:
        return F.layer_norm(x, normalized_shape, eps=eps)

    shape = tuple(normalized_shape)
    return _affine(recorder, normalize, input, weight, bias, shape, ElementNormCall)


def _rms_norm(
    recorder: Recorder,
    input: Tensor,  # noqa: A002
    normalized_shape: list[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    def normalize(x: Tensor) -> Tensor:
        return F.rms_norm(x, normalized_shape, eps=eps)

    shape = tuple(normalized_shape)
    return _affine(recorder, normalize, input, weight, None, shape, ElementNormCall)


def _affine(
    recorder: Recorder,
    normalize: Callable[[Tensor], Tensor],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    shape: tuple[int, ...],
    kind: type[ChannelNormCall] | type[ElementNormCall],
) -> Tensor:
    recorder.stray(x)
    normalized = normalize(x)
    gain, offset = recorder.known(weight), recorder.known(bias)
    y = normalized if gain is None else normalized * gain.reshape(shape)
    if offset is not None:
        y = y + offset.reshape(shape)
    y = y.to(normalized.dtype)
    extra = {"normalized": len(shape)} if kind is ElementNormCall else {}
    return recorder.keep(kind, weight, bias, normalized, y, **extra)


def _embedding(
    recorder: Recorder,
    input: Tensor,  # noqa: A002
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    if max_norm is not None or scale_grad_by_freq:
        recorder.stray(weight)
        return F.embedding(
            input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse
        )
    y = F.embedding(input, recorder.known(weight), padding_idx)  # pyright: ignore[reportArgumentType]
    if padding_idx is not None and padding_idx < 0:
        padding_idx += len(weight)
    vocabulary, width = weight.shape
    return recorder.keep(
        EmbeddingCall, weight, None, input, y,
        vocabulary=vocabulary, width=width, padding_idx=padding_idx,
    )  # fmt: skip


RULES: dict[Any, Callable[..., Tensor]] = {
    F.linear: _linear,
    F.conv1d: _convolution(F.conv1d, 1),
    F.conv2d: _convolution(F.conv2d, 2),
    F.conv3d: _convolution(F.conv3d, 3),
    F.conv_transpose1d: _transposed(F.conv_transpose1d, 1),
    F.conv_transpose2d: _transposed(F.conv_transpose2d, 2),
    F.conv_transpose3d: _transposed(F.conv_transpose3d, 3),
    F.batch_norm: _batch_norm,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.embedding: _embedding,
    torch.matmul: _product(torch.matmul),
    Tensor.matmul: _product(torch.matmul),
    torch.mm: _product(torch.mm),
    Tensor.mm: _product(torch.mm),
    torch.addmm: _added_product,
    Tensor.addmm: _added_product,
}
