"""conescope's projection, and the plain pass that costs are compared with."""

from __future__ import annotations

from torch import Tensor

from benchmarks.projectors.base import Projector


class PlainPass(Projector):
    """A forward and backward pass of the batches, with the gradients of all parameters."""

    label = "plain pass"
    package = "torch"

    def setup(self) -> None:
        """Nothing."""

    def run(self, x: Tensor) -> None:
        """The gradient of the sum over all samples, batch by batch."""
        for part in x.split(self.block):
            self.scalars(part).sum().backward()
        self.model.zero_grad(set_to_none=True)


class Conescope(Projector):
    """`conescope.project`, as a user calls it."""

    label = "conescope"
    package = "conescope"
    memory = "3GB"

    def setup(self) -> None:
        """Import the engine."""
        import conescope

        self.engine = conescope
        self.setting = f"memory={self.memory}"

    def run(self, x: Tensor) -> Tensor:
        """One call, with the cotangent of seed 0, which is the contest's."""
        return self.engine.project(self.model, x, dim=self.dim, seed=0, memory=self.memory).values


class ConescopeLinear(Conescope):
    """The same on the parameters that libraries cover by hooks on linear layers."""

    label = "conescope, linear layers"

    def setup(self) -> None:
        """Import the engine, and choose the linear layers."""
        super().setup()
        self.linear_layers()

    def run(self, x: Tensor) -> Tensor:
        """One call on the covered parameters."""
        found = self.engine.project(
            self.model, x, dim=self.dim, seed=0, params=self.covered, memory=self.memory
        )
        return found.values
