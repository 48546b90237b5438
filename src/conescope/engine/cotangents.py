"""The cotangents of a kernel: the vectors v whose gradients ∂(v·f)/∂θ make it up."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from conescope.errors import KernelError
from conescope.kernel.matrix import Outputs


@dataclass(frozen=True)
class Cotangents:
    """Vectors over the outputs, made a few at a time: a vocabulary's identity would fill memory.

    Attributes:
        count: q, the number of vectors.
        width: c, the number of outputs of a sample.
        like: an empty tensor of the outputs' dtype and device.
        chosen: the vectors [q, c], where they are few; None for the c unit vectors.
    """

    count: int
    width: int
    like: Tensor
    chosen: Tensor | None = None

    @classmethod
    def of(cls, outputs: Outputs, width: int, like: Tensor) -> Cotangents:
        """The cotangents that a convention means.

        Raises:
            KernelError: if `outputs` is no convention, or an index outside 0 … c − 1.
        """
        if outputs in ("trace", "full"):
            return cls(width, width, like.new_empty(0))
        if outputs == "sum":
            return cls.from_matrix(like.new_ones(1, width))
        if isinstance(outputs, bool) or not isinstance(outputs, Integral):
            raise KernelError(
                f'outputs is "trace", "full", "sum" or the index of one output, not {outputs!r}'
            )
        if not 0 <= outputs < width:
            raise KernelError(
                f"output {outputs} is out of range: the model has {width} outputs, "
                f"numbered 0 to {width - 1}"
            )
        v = like.new_zeros(1, width)
        v[0, int(outputs)] = 1
        return cls.from_matrix(v)

    @classmethod
    def signs(cls, count: int, width: int, seed: int, like: Tensor) -> Cotangents:
        """Random vectors of independent signs ±1, the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (count, width), generator=generator, device="cpu")
        return cls.from_matrix((2 * signs - 1).to(like))

    @classmethod
    def normal(cls, width: int, seed: int, like: Tensor) -> Cotangents:
        """One random vector of independent normal entries, the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        return cls.from_matrix(torch.randn(1, width, generator=generator, device="cpu").to(like))

    @classmethod
    def from_matrix(cls, chosen: Tensor) -> Cotangents:
        """The rows of a matrix [q, c]."""
        return cls(len(chosen), chosen.shape[1], chosen.new_empty(0), chosen)

    def __len__(self) -> int:
        return self.count

    def part(self, start: int, stop: int) -> Tensor:
        """The vectors start … stop − 1, [stop − start, c]."""
        stop = min(stop, self.count)
        if self.chosen is not None:
            return self.chosen[start:stop]
        vectors = self.like.new_zeros(stop - start, self.width)
        numbers = torch.arange(start, stop, device=vectors.device)
        vectors[numbers - start, numbers] = 1
        return vectors
