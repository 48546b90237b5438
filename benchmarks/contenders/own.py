"""conescope's engine."""

from __future__ import annotations

from torch import Tensor

from benchmarks.contenders.base import Contender


class Conescope(Contender):
    """`conescope.engine`, as a user calls it."""

    label = "conescope"
    package = "conescope"

    def setup(self) -> None:
        """Import the engine."""
        import conescope

        self.engine = conescope

    def operations(self) -> float:
        """The plan's count."""
        return float(self.engine.plan(self.model, self.x, outputs=self.outputs).flops)

    def run(self) -> Tensor:
        """One call."""
        return self.engine.entk(self.model, self.x, outputs=self.outputs).values
