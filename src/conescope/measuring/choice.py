"""Choice: which kernel of a model is measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from conescope.errors import KernelError
from conescope.kernel.matrix import Kernel, Outputs
from conescope.measuring.adapt import Adapted, Pool, Select, adapt
from conescope.measuring.probe import Probe


@dataclass(frozen=True)
class Choice:
    """The kernel to measure, and how.

    Attributes:
        outputs: see `Kernel.outputs`.
        draws: number of random cotangents by which to estimate the class trace; None for the
            exact kernel.
        select: see `adapt`.
        pool: see `adapt`.
        params: see `adapt`.
        by_layer: whether to store the summand of each layer.
        memory: budget of the engine.

    Raises:
        KernelError: if something other than the class trace is to be estimated, or by fewer than
            two draws.
    """

    outputs: Outputs = "trace"
    draws: int | None = None
    select: Select | None = None
    pool: Pool | None = None
    params: str | Iterable[str] | None = None
    by_layer: bool = False
    memory: str | float | None = None

    def __post_init__(self) -> None:
        if self.draws is not None and (self.outputs != "trace" or self.by_layer):
            raise KernelError(
                "random cotangents estimate the class trace as a whole; leave out draws, or "
                'choose outputs="trace" without by_layer'
            )
        if self.draws is not None and self.draws < 2:
            raise KernelError(f"a standard error needs at least 2 draws, not {self.draws}")

    def adapt(self, model: nn.Module, probe: Probe) -> Adapted:
        """Make a model ready for the engine, see `conescope.measuring.adapt.adapt`."""
        return adapt(model, probe, select=self.select, pool=self.pool, params=self.params)

    def description(self) -> dict[str, Any]:
        """Return, beside `Adapted.description`, what makes two kernels comparable; plain values."""
        return {"outputs": self.outputs, "draws": self.draws, "by_layer": self.by_layer}

    def of(self, adapted: Adapted) -> Kernel:
        """Measure the kernel of a model as it stands."""
        if self.draws is not None:
            return adapted.estimate(self.draws, memory=self.memory)
        return adapted.kernel(self.outputs, by_layer=self.by_layer, memory=self.memory)
