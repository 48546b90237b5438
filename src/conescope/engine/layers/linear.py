"""Linear maps: `F.linear`, and products of matrices with a parameter on the right."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from conescope.engine.compute.outer import Shape
from conescope.engine.layers.call import Interception, OuterCall, Recording, intercepts


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
    def shape(self) -> Shape:
        positions = math.prod(self.source.shape[:-1]) // self.samples
        return Shape(1, self.out_features, self.source.shape[-1], positions)

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


@intercepts(F.linear)
def _linear(
    recorder: Recording,
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    recorder.note_uncovered(input)
    if weight.dim() == 1:
        recorder.note_uncovered(weight, bias)
        return F.linear(input, weight, bias)
    y = F.linear(input, recorder.detached(weight), recorder.detached(bias))
    return recorder.keep(LinearCall, weight, bias, input, y, out_features=len(weight))


def _product(operation: Callable[..., Tensor]) -> Interception:
    def multiply(
        recorder: Recording,
        input: Tensor,  # noqa: A002
        other: Tensor | None = None,
        *,
        mat2: Tensor | None = None,
        **rest: Any,
    ) -> Tensor:
        weight = mat2 if other is None else other
        assert weight is not None
        recorder.note_uncovered(input)
        if rest or input.dim() < 2 or weight.dim() != 2 or recorder.name(weight) is None:
            recorder.note_uncovered(weight)
            return operation(input, weight, **rest)
        y = operation(input, recorder.detached(weight))
        return recorder.keep(ProductCall, weight, None, input, y, out_features=weight.shape[1])

    return multiply


intercepts(torch.matmul, Tensor.matmul)(_product(torch.matmul))
intercepts(torch.mm, Tensor.mm)(_product(torch.mm))


@intercepts(torch.addmm, Tensor.addmm)
def _added_product(
    recorder: Recording,
    input: Tensor,  # noqa: A002
    mat1: Tensor,
    mat2: Tensor,
    **rest: Any,
) -> Tensor:
    recorder.note_uncovered(mat1)
    bias = input if input.shape == mat2.shape[1:] else None
    if rest or recorder.name(mat2) is None or (bias is None and recorder.name(input)):
        recorder.note_uncovered(input, mat2)
        return torch.addmm(input, mat1, mat2, **rest)
    y = torch.addmm(recorder.detached(input), mat1, recorder.detached(mat2))
    return recorder.keep(ProductCall, mat2, bias, mat1, y, out_features=mat2.shape[1])
