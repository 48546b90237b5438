"""Kernel: the values of an eNTK together with the convention they were computed by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from conescope.argument_types import checked
from conescope.errors import KernelError

NamedOutputs = Literal["trace", "full", "sum"]
Outputs = NamedOutputs | int
"""Which outputs f_k enter the kernel (see `Kernel.outputs`)."""

BatchNorm = Literal["running", "recalibrated"]
"""Which statistics BatchNorm normalises by: its running ones, or ones estimated anew."""


@dataclass(frozen=True)
class Randomness:
    """The random numbers that an estimate was made with; estimates of one series share them.

    Attributes:
        kind: what was drawn: "random cotangents", or "a projection by 8 cotangents".
        seed: decides what was drawn.
    """

    kind: str
    seed: int

    def __str__(self) -> str:
        return f"{self.kind}, seed {self.seed}"


@checked
@dataclass(frozen=True)
class Kernel:
    """An empirical neural tangent kernel between samples x_1 … x_n and y_1 … y_m.

    Attributes:
        values: the kernel; [n, m], or [n, c, m, c] when `outputs` is "full".
        outputs: the convention, for a network with c outputs f_1 … f_c:

            - "trace": Σ_k ⟨∂f_k(x_i), ∂f_k(y_j)⟩, the class trace;
            - "full":  ⟨∂f_k(x_i), ∂f_l(y_j)⟩ for every pair of outputs;
            - "sum":   ⟨∂Σ_k f_k(x_i), ∂Σ_k f_k(y_j)⟩, the kernel of the summed output;
            - k:       ⟨∂f_k(x_i), ∂f_k(y_j)⟩, the kernel of output number k.
        by_layer: the same kernel of each layer's own parameters, shaped like `values`; they
            add up to `values`. Empty unless asked for.
        routes: parameter name → the route by which the engine took it. Empty if unknown.
        draws: the kernel of each of r random cotangents, [r, n, m], whose mean `values` is, for an
            estimate of the class trace; None for an exact kernel.
        randomness: what the draws were made with; None if unknown, or for an exact kernel.

    Raises:
        KernelError: if the shapes do not fit together, or the values are no real numbers.
    """

    values: Tensor
    outputs: Outputs = "trace"
    by_layer: Mapping[str, Tensor] = field(default_factory=dict)
    routes: Mapping[str, str] = field(default_factory=dict)
    draws: Tensor | None = None
    randomness: Randomness | None = None

    def __post_init__(self) -> None:
        dims = 4 if self.outputs == "full" else 2
        shape = tuple(self.values.shape)
        if self.values.dim() != dims:
            raise KernelError(
                f"a kernel with outputs={self.outputs!r} has {dims} dimensions, but these values "
                f"have shape {shape}; give values of that many, or the convention that they were "
                "computed by"
            )
        if not self.values.is_floating_point():
            raise KernelError(
                f"kernel values are real numbers, not {self.values.dtype}; convert them with "
                ".float()"
            )
        for name, part in self.by_layer.items():
            if part.shape != self.values.shape:
                raise KernelError(
                    f"the kernel of layer {name!r} has shape {tuple(part.shape)}, the whole kernel "
                    f"{shape}; give each layer the shape of the whole"
                )
        if self.draws is not None and (
            self.outputs != "trace"
            or self.draws.shape[1:] != shape
            or len(self.draws) == 0
            or not self.draws.is_floating_point()
        ):
            raise KernelError(
                f"draws of shape {tuple(self.draws.shape)} and type {self.draws.dtype} are no "
                f"estimate of a kernel of shape {shape} with outputs={self.outputs!r}; give real "
                f"numbers [r, n, m] of a class trace [n, m]"
            )

    @property
    def kernel(self) -> Kernel:
        """This kernel, under the name that results of `estimate_entk` have always had for it."""
        return self

    @property
    def standard_error(self) -> Tensor:
        """The standard error of each entry of `values`, from the spread of the draws; [n, m].

        Raises:
            KernelError: if the kernel is not an estimate by at least two draws.
        """
        if self.draws is None or len(self.draws) < 2:
            raise KernelError(
                "only a kernel that is estimated by at least two draws has a standard error; see "
                "conescope.estimate_entk"
            )
        return self.draws.std(dim=0) / math.sqrt(len(self.draws))

    @property
    def matrix(self) -> Tensor:
        """The values as one matrix: [n, m], or [n·c, m·c] for "full"."""
        if self.outputs != "full":
            return self.values
        n, c, m, d = self.values.shape
        return self.values.reshape(n * c, m * d)

    def check_finite(self) -> None:
        """Raise `KernelError` if any value is NaN or infinite."""
        if not bool(torch.isfinite(self.values).all()):
            raise KernelError(
                "the kernel holds NaN or infinite values: the network's weights or inputs do; "
                "look at the loss before this step"
            )

    def check_usable(self) -> None:
        """Raise `KernelError` if any value is NaN or infinite, or all are zero."""
        self.check_finite()
        if not bool(self.values.any()):
            raise KernelError(
                "the kernel is zero everywhere, so nothing can be compared with it: every gradient "
                "vanishes (a head and features that are zero, or rectifiers that are all off); "
                "look at the weights, or choose other outputs or parameters"
            )
