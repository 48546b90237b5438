"""The factors of weights whose gradient is a sum of outer products over positions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from conescope.engine.calls import DenseCall, EmbeddingCall, OuterCall
from conescope.engine.convolutions import FEW_COTANGENTS, ConvCall
from conescope.engine.products import Scratch, multiply_batch
from conescope.engine.survey import Shape

FEATURE_ELEMENTS = 2**21

Places = Sequence[tuple[slice, Tensor]]
"""Some of the cotangents, and the tensor that takes their gradients; several together take all."""


class Factors:
    """The two factors of a weight whose gradient is Σ_t cotangent[t] ⊗ feature[t].

    Args:
        shape: of the weight.
        samples: n.
        directions: q.
        allocate: makes the tensor of cotangents, [n, q, g, o, T], from its shape.
    """

    def __init__(
        self,
        shape: Shape,
        samples: int,
        directions: int,
        allocate: Callable[[tuple[int, ...]], Tensor],
    ) -> None:
        self.shape = shape
        self.features = Features(shape)
        self.sparse = shape.sparse
        self.samples = samples
        self.cotangents = allocate(
            (samples, directions, shape.groups, shape.outputs, shape.positions)
        )

    @property
    def positions(self) -> int:
        """T, over all calls."""
        return self.features.positions

    def jacobian(
        self, outputs: slice, places: Places, scratch: Scratch, known: Tensor | None = None
    ) -> None:
        """Write the per-sample gradients of some outputs' weights.

        Args:
            outputs: which outputs, o′ of them.
            places: where the gradients of some cotangents go, [n, q′, g, o′, a].
            scratch: buffers.
            known: the features of all samples, where they have been written before.
        """
        if self.by_convolution:
            for directions, rows in places:
                self._convolve(outputs, directions, rows)
            return
        n, _, g, _, t = self.cotangents.shape
        a = self.features.width
        step = n if known is not None else max(1, FEATURE_ELEMENTS // (g * a * t))
        for start in range(0, n, step):
            part = slice(start, min(n, start + step))
            features = known
            if features is None:
                like = self.cotangents
                features = self.features.write(part.start, part.stop, like, scratch, "features")
            for directions, rows in places:
                _, q, _, o, _ = rows.shape
                cotangents = self.cotangents[part, directions, :, outputs]
                if g == 1:
                    left = cotangents.reshape(-1, q * o, t)
                    multiply_batch(rows[part].view(-1, q * o, a), left, features[:, 0])
                else:
                    rows[part] = cotangents @ features[:, None]

    @property
    def by_convolution(self) -> bool:
        """Whether convolutions form the gradients, one cotangent at a time, without features."""
        return self.cotangents.shape[1] <= min(self.shape.convolved, FEW_COTANGENTS)

    def _convolve(self, outputs: slice, directions: slice, rows: Tensor) -> None:
        inputs = self.features.inputs
        cotangents = self.cotangents[:, directions, :, outputs]
        if rows.shape[-1] > inputs:
            rows[..., inputs] = cotangents.sum(dim=-1)
        for block, calls in self.features.blocks:
            for k in range(rows.shape[1]):
                for use, call in enumerate(calls):
                    assert isinstance(call, ConvCall)
                    cotangent = cotangents[block, k, ..., self.features.spans[use]]
                    place = rows[block, k, ..., :inputs]
                    add = place.add_ if use else place.copy_
                    add(call.gradients(cotangent))

    def place(self, use: int, block: slice, direction: int) -> Tensor:
        """Where the cotangents of one call belong, [b, g, o, T]."""
        return self.cotangents[block, direction, :, :, self.features.spans[use]]


class Features:
    """Features of many samples, block by block, written out where they are needed.

    Args:
        shape: of the weight.
    """

    def __init__(self, shape: Shape) -> None:
        self.groups, self.outputs, self.width = shape.groups, shape.outputs, shape.inputs
        self.positions = shape.positions
        self.spans: list[slice] = []
        self.blocks: list[tuple[slice, Sequence[OuterCall]]] = []

    def append(self, block: slice, calls: Sequence[OuterCall]) -> None:
        """Take in a block of samples."""
        self.blocks.append((block, calls))
        ends = list(itertools.accumulate(call.positions for call in calls))
        self.spans = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]

    @property
    def elements(self) -> int:
        """Numbers that a sample's features take when they are written out."""
        return self.groups * self.positions * self.width

    @property
    def inputs(self) -> int:
        """The features without the bias's."""
        return self.blocks[0][1][0].shape[2]

    def write(self, start: int, stop: int, like: Tensor, scratch: Scratch, use: str) -> Tensor:
        """[stop − start, g, T, a], valid until the scratch is used for the same again."""
        shape = (stop - start, self.groups, self.positions, self.width)
        out = scratch.take(use, shape, like)
        inputs = self.inputs
        out[..., inputs:] = 1.0  # the bias's feature
        for block, calls in self.blocks:
            first, last = max(start, block.start), min(stop, block.stop)
            if first < last:
                for span, call in zip(self.spans, calls, strict=True):
                    assert isinstance(call, DenseCall)
                    part = out[first - start : last - start, :, span, :inputs]
                    call.write_features(part, first - block.start, last - block.start)
        return out

    def tokens(self) -> Tensor:
        """[n, T], for an embedding."""
        rows = [
            torch.cat([call.tokens() for call in calls if isinstance(call, EmbeddingCall)], dim=1)
            for _, calls in self.blocks
        ]
        return torch.cat(rows)
