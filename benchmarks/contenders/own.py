"""conescope's engine."""

from __future__ import annotations

from torch import Tensor

from benchmarks.contenders.base import Contender


class Conescope(Contender):
    """`conescope.entk`, as a user calls it."""

    label = "conescope"
    package = "conescope"

    def setup(self) -> None:
        """Import the engine."""
        from conescope import entk

        self.engine = entk

    def operations(self) -> float | None:
        """The plan's count, where the engine has a plan."""
        if not hasattr(self.engine, "plan"):
            return None
        return float(self.engine.plan(self.model, self.x, outputs=self.outputs).flops)

    def run(self) -> Tensor:
        """One call."""
        return self.engine.entk(self.model, self.x, outputs=self.outputs).values
