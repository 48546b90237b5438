"""A forward pass in which every operation that a layer rule understands leaves a record.

The rules attach to operations, not to modules: whatever code calls `F.linear(x, W)` with a
parameter W is seen, and a parameter that takes part in anything else is seen as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from conescope.entk.calls import Call, EmbeddingCall, LinearCall
from conescope.entk.convolutions import ConvCall, TransposedConvCall
from conescope.entk.norms import BatchNormCall, ChannelNormCall, ElementNormCall


class Recorder(TorchFunctionMode):
    """Records calls of known operations on known parameters while it is entered.

    Known parameters enter recorded operations detached, so that a graph of autograd that still
    reaches one of them shows a use which no rule has seen.

    Args:
        parameters: the parameters that rules may take, by name.
        anchor: a zero that requires a gradient; makes outputs of first layers part of a graph.
        attached: whether known parameters stay part of the graph, so that autograd gives their
            gradients beside those that rules take.

    Attributes:
        calls: the records, in the order of execution.
        strays: names of parameters that took part in an operation without a rule.
        picks: whether an operation picked or placed entries by an index.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], anchor: Tensor, attached: bool = False
    ) -> None:
        super().__init__()
        self.attached = attached
        self.names = {id(p): name for name, p in parameters.items()}
        self.anchor = anchor
        self.calls: list[Call] = []
        self.strays: set[str] = set()
        self.picks = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self.picks |= _picks(func, args, kwargs)
        rule = _RULES.get(func)
        named = {self.names[id(t)] for t in _tensors((args, kwargs)) if id(t) in self.names}
        if rule is None or not named or not torch.is_grad_enabled() or _inside_a_transform():
            result = func(*args, **kwargs)
            if named and next(_tensors(result), None) is not None:
                self.strays |= named
            return result
        return rule(self, *args, **kwargs)

    def name(self, parameter: Tensor | None) -> str | None:
        """The parameter's name, None for any other tensor."""
        return None if parameter is None else self.names.get(id(parameter))

    def known(self, parameter: Tensor | None) -> Tensor | None:
        """The parameter detached, unless they stay attached; any other tensor as it is."""
        if parameter is None or self.attached or self.name(parameter) is None:
            return parameter
        return parameter.detach()

    def stray(self, tensor: Tensor | None) -> None:
        """Note that a parameter is used as data."""
        name = self.name(tensor)
        if name is not None:
            self.strays.add(name)

    def keep(
        self,
        kind: type[Call],
        weight: Tensor | None,
        bias: Tensor | None,
        source: Tensor,
        output: Tensor,
        **geometry: Any,
    ) -> Tensor:
        """Record a call; returns the output as part of a graph of autograd."""
        if not output.requires_grad:
            output = output + self.anchor
        names = self.name(weight), self.name(bias)
        edge = get_gradient_edge(output)
        self.calls.append(kind(*names, source.detach(), edge, **geometry))
        return output


def _inside_a_transform() -> bool:
    """Whether a transform of torch.func is at work: its tensors have a graph of their own."""
    level = torch._C._functorch.maybe_current_level()  # pyright: ignore[reportAttributeAccessIssue]
    return level is not None


def _picks(func: Any, args: tuple[Any, ...], kwargs: Any) -> bool:
    """Whether an operation picks or places entries by a tensor of indices."""
    name = getattr(func, "__name__", "").strip("_")
    if name in ("getitem", "setitem"):
        return next(_tensors(args[1]), None) is not None
    return name in _PICKING and next(_tensors((args[1:], kwargs)), None) is not None


def _tensors(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, (tuple, list)):
        for item in nested:
            yield from _tensors(item)
    elif isinstance(nested, dict):
        yield from _tensors(tuple(nested.values()))


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


_PICKING = {
    "gather", "index_add", "index_copy", "index_put", "index_select", "masked_scatter",
    "masked_select", "scatter", "scatter_add", "take", "take_along_dim",
}  # fmt: skip

_RULES: dict[Any, Callable[..., Tensor]] = {
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
}
