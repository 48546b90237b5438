"""What every projector implements."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn


class Projector(ABC):
    """One way to project per-sample gradients, set up once for one model.

    The gradients are those of v·f(x_i), with the same cotangent v for all samples.

    Attributes:
        label: the name in tables.
        package: the distribution whose version is recorded.
        model: in evaluation mode; it may be changed, for example by hooks.
        cotangent: v, one number an output.
        dim: the columns that are wanted.
        block: samples of one forward pass, where the caller has to choose.
        covered: the names of the parameters whose gradients are projected.
        setting: what was chosen, in words.
    """

    label: ClassVar[str]
    package: ClassVar[str]

    def __init__(self, model: nn.Module, cotangent: Tensor, dim: int, block: int) -> None:
        self.model, self.cotangent, self.dim, self.block = model, cotangent, dim, block
        self.covered = [name for name, _ in model.named_parameters()]
        self.setting = f"{block} samples a pass"

    @abstractmethod
    def setup(self) -> None:
        """Import the library and prepare what a user would prepare once.

        Whatever this or `run` raises takes the projector out of the contest, with that reason.
        """

    @abstractmethod
    def run(self, x: Tensor) -> Tensor | None:
        """The features [n, k], whose products estimate the kernel without bias, if any."""

    def scalars(self, x: Tensor) -> Tensor:
        """v·f(x_i) of every sample, [n], with a graph."""
        return self.model(x) @ self.cotangent

    def linear_layers(self) -> dict[str, nn.Linear]:
        """The layers that hook-based libraries cover, by name; sets `covered` accordingly."""
        layers = {
            name: layer
            for name, layer in self.model.named_modules()
            if isinstance(layer, nn.Linear)
        }
        self.covered = [
            f"{name}.{kind}"
            for name, layer in layers.items()
            for kind, _ in layer.named_parameters()
        ]
        return layers

    def side(self, layers: int) -> int:
        """The side k of k × k numbers a layer, so that all layers have at most `dim`."""
        return max(1, math.isqrt(self.dim // layers))


class Formed(Projector):
    """A projector of formed gradients of all parameters, [n, p]."""

    def gradients(self, x: Tensor) -> Tensor:
        """The per-sample gradients, one sample at a time."""
        parameters = list(self.model.parameters())
        rows = []
        for i in range(len(x)):
            found = torch.autograd.grad(self.scalars(x[i : i + 1])[0], parameters)
            rows.append(torch.cat([gradient.flatten() for gradient in found]))
        return torch.stack(rows)

    @property
    def columns(self) -> int:
        """The number of parameters."""
        return sum(p.numel() for p in self.model.parameters())

    def run(self, x: Tensor) -> Tensor:
        """Form and project a batch at a time."""
        return torch.cat([self.projected(self.gradients(part)) for part in x.split(self.block)])

    @abstractmethod
    def projected(self, gradients: Tensor) -> Tensor:
        """The features [n, dim] of gradients [n, p]."""
