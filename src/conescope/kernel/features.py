"""Features: a few numbers for each sample, whose products estimate a kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from conescope.argument_types import checked
from conescope.errors import KernelError
from conescope.kernel.matrix import Kernel, Randomness


@checked
@dataclass(frozen=True)
class Features:
    """Random projections of per-sample gradients, as `conescope.project` makes them.

    Their inner products estimate the class trace of the eNTK without bias. The columns are R equal
    groups; the products of each group, times R, are an unbiased estimate by themselves.

    Attributes:
        values: [n, dim], real numbers.
        groups: R, at least 2; it divides dim.
        randomness: what they were projected with; None if unknown.

    Raises:
        KernelError: if the shape, the type or the number of groups is wrong, or the values are not
            finite.
    """

    values: Tensor
    groups: int
    randomness: Randomness | None = None

    def __post_init__(self) -> None:
        values = self.values
        if values.dim() != 2 or not values.is_floating_point():
            raise KernelError(
                f"features are real numbers [n, dim], not {values.dtype} of shape "
                f"{tuple(values.shape)}; give a tensor such as conescope.project makes"
            )
        dim = values.shape[1]
        if self.groups < 2 or dim == 0 or dim % self.groups:
            raise KernelError(
                f"{dim} columns cannot be divided into {self.groups} equal groups; give at least "
                f"2 groups, and columns that are a multiple of them"
            )
        if not bool(torch.isfinite(values).all()):
            raise KernelError(
                "the features hold NaN or infinite values: the network's weights or inputs do; "
                "look at the loss before this step"
            )

    @property
    def kernel(self) -> Kernel:
        """The estimate of the class trace, with the estimates of the R groups as its draws.

        `values` is [n, n] and `draws` is [R, n, n], in the features' dtype and at least float32;
        sums are in float64. `Kernel.standard_error` covers the projection; where the groups have
        cotangents of their own, it covers the choice of the cotangents, too.
        """
        n, dtype = len(self.values), torch.promote_types(self.values.dtype, torch.float32)
        total = self.values.new_zeros(n, n, dtype=torch.float64)
        draws = self.values.new_empty(self.groups, n, n, dtype=dtype)
        for draw, part in zip(draws, self.values.chunk(self.groups, dim=1), strict=True):
            product = part.double() @ part.double().T
            total += product
            draw.copy_(product.mul_(self.groups))
        return Kernel(total.to(dtype), "trace", draws=draws, randomness=self.randomness)
