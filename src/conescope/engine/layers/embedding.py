"""Embeddings: `F.embedding`, a linear map of one-hot vectors that are never written out."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from conescope.engine.compute.outer import Shape
from conescope.engine.layers.call import OuterCall, Recording, intercepts


@dataclass
class EmbeddingCall(OuterCall):
    """Rows of W by token; a feature is the token itself, which stands for a one-hot vector."""

    transposed = True
    ties = True
    vocabulary: int = 0
    width: int = 0
    padding_idx: int | None = None

    def fits(self, samples: int, axis: int) -> bool:
        shape = self.source.shape
        if axis == 1:
            return len(shape) > 1 and shape[1] == samples
        return len(shape) > 0 and shape[0] % samples == 0

    @property
    def shape(self) -> Shape:
        positions = self.source.numel() // self.samples
        return Shape(1, self.width, self.vocabulary, positions, sparse=True)

    def write_features(self, out: Tensor, start: int, stop: int) -> None:
        out[:, 0, :, 0] = self._tokens()[start:stop]

    def cotangent(self, g: Tensor) -> Tensor:
        if self.batch_axis == 1:
            g = g.movedim(1, 0)
        g = g.reshape(self.samples, -1, self.width)
        if self.padding_idx is not None:
            g = g.masked_fill((self._tokens() == self.padding_idx)[..., None], 0.0)
        return g.mT[:, None]

    def weight_rows(self, g: Tensor) -> Tensor:
        cotangent = self.cotangent(g)[:, 0].mT
        rows = cotangent.new_zeros(self.samples, self.vocabulary, self.width)
        index = self._tokens()[..., None].expand_as(cotangent)
        return rows.scatter_add_(1, index, cotangent).flatten(1)

    def _tokens(self) -> Tensor:
        """Return the tokens as [b, T]."""
        source = self.source.movedim(1, 0) if self.batch_axis == 1 else self.source
        return source.reshape(self.samples, -1)


@intercepts(F.embedding)
def _embedding(
    recorder: Recording,
    input: Tensor,  # noqa: A002
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    if max_norm is not None or scale_grad_by_freq:
        recorder.note_uncovered(weight)
        return F.embedding(
            input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse
        )
    y = F.embedding(input, recorder.detached(weight), padding_idx)
    if padding_idx is not None and padding_idx < 0:
        padding_idx += len(weight)
    vocabulary, width = weight.shape
    return recorder.keep(
        EmbeddingCall, weight, None, input, y,
        vocabulary=vocabulary, width=width, padding_idx=padding_idx,
    )  # fmt: skip
