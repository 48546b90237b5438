"""Operations that act on each element by itself and broadcast: sums, products and the like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from conescope.engine.layers.call import INTERLEAVED, Call, Interception, Recording, intercepts

_NAMES = (
    "add", "sub", "subtract", "rsub", "mul", "multiply", "div", "divide", "true_divide", "pow",
    "addcmul", "addcdiv", "lerp", "where", "maximum", "minimum", "fmax", "fmin", "clamp", "clip",
    "clamp_min", "clamp_max", "logaddexp", "logaddexp2", "hypot", "atan2", "arctan2", "xlogy",
    "fmod", "remainder", "broadcast_tensors",
)  # fmt: skip
_REFLECTED = ("__rsub__", "__rdiv__", "__rtruediv__", "__rpow__")


@dataclass
class CopiedCall(Call):
    """A parameter that enters an operation as one copy for each slice along an axis.

    Autograd's gradients of the copies are those of the samples.

    Attributes:
        axis: the axis along which the copies lie; the source is the copies.
    """

    axis: int = 0

    def fits(self, samples: int, axis: int) -> bool:
        return axis % INTERLEAVED == self.axis and self.source.shape[self.axis] % samples == 0

    def weight_rows(self, g: Tensor) -> Tensor:
        g = self.samples_first(g)
        return (g if self.axis == 1 else g.sum(dim=1)).flatten(1)


def _elementwise(operation: Callable[..., Tensor]) -> Interception:
    in_place = operation.__name__.endswith("_") and not operation.__name__.endswith("__")

    def operate(recorder: Recording, *args: Any, **kwargs: Any) -> Tensor:
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        known = [t for t in tensors if recorder.knows(t)]
        if not (in_place and recorder.knows(args[0])) and kwargs.get("out") is None:
            shape = torch.broadcast_shapes(*(t.shape for t in tensors))
            copies = recorder.copies(known, shape)
            if copies is not None:
                named = {key: copies.get(id(value), value) for key, value in kwargs.items()}
                result = operation(*(copies.get(id(value), value) for value in args), **named)
                return _unpromoted(result, tensors)
        recorder.note_uncovered(*known)
        return operation(*args, **kwargs)

    return operate


def _unpromoted(result: Any, tensors: Sequence[Tensor]) -> Any:
    """Return a result in the dtype that it has without copies.

    A tensor without axes does not widen those with axes, but its copies, which have some, do.
    """
    widest = [t.dtype for t in tensors if t.dim() > 0 and t.is_floating_point()]
    scalars = [t.dtype for t in tensors if t.dim() == 0 and t.is_floating_point()]
    if not widest or not isinstance(result, Tensor) or not set(scalars) - set(widest):
        return result
    return result.to(reduce(torch.promote_types, widest))


@intercepts(torch.masked_fill, Tensor.masked_fill)
def _masked_fill(
    recorder: Recording,
    input: Tensor,  # noqa: A002
    mask: Tensor,
    value: Tensor | float,
) -> Tensor:
    with recorder:  # the operation itself takes no copies of a value
        return torch.where(mask, value, input)


@intercepts(Tensor.expand_as)
def _expand_as(recorder: Recording, tensor: Tensor, other: Tensor) -> Tensor:
    with recorder:
        return torch.broadcast_tensors(tensor, other)[0]


for _place in (torch, Tensor):
    for _name in (*_NAMES, *(f"{name}_" for name in _NAMES), *_REFLECTED):
        _operation = getattr(_place, _name, None)
        if _operation is not None:
            intercepts(_operation)(_elementwise(_operation))
