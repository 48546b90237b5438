"""Choice: which kernel of a model is measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from conescope.engine.tracing.untouched import outputs_of
from conescope.errors import KernelError
from conescope.kernel.estimates import PROJECTED_DRAWS, SEED, Measured, check_estimate
from conescope.kernel.matrix import Outputs
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
        projection: number of dimensions to which per-sample gradients are projected at random, to
            estimate the class trace; None for no projection.

    Raises:
        KernelError: as `check_estimate`.
    """

    outputs: Outputs = "trace"
    draws: int | None = None
    select: Select | None = None
    pool: Pool | Tensor | None = None
    params: str | Iterable[str] | None = None
    by_layer: bool = False
    memory: str | float | None = None
    projection: int | None = None

    def __post_init__(self) -> None:
        check_estimate(
            self.outputs, by_layer=self.by_layer, draws=self.draws, projection=self.projection
        )

    def adapt(self, model: nn.Module, probe: Probe) -> Adapted:
        """Make a model ready for the engine, see `conescope.measuring.adapt.adapt`."""
        return adapt(model, probe, select=self.select, pool=self.pool, params=self.params)

    def description(self) -> dict[str, Any]:
        """Return, beside `Adapted.description`, what makes two kernels comparable; plain values."""
        noted: dict[str, Any] = {"outputs": self.outputs, "draws": self.draws}
        if self.projection is not None:
            noted["projection"] = (
                f"{self.projection} dimensions, {PROJECTED_DRAWS} cotangents, seed {SEED}"
            )
        return {**noted, "by_layer": self.by_layer}

    def of(self, adapted: Adapted, preconditioner: Mapping[str, Tensor] | None = None) -> Measured:
        """Measure the kernel of a model as it stands.

        Args:
            adapted: the model and its probe.
            preconditioner: see `conescope.entk`; not with a projection.

        Raises:
            ModelError: as `Adapted.kernel`.
            KernelError: if it is zero or not finite; otherwise as `Adapted.kernel`.
        """
        more: Any = {"memory": self.memory, "preconditioner": preconditioner}
        if self.projection is not None:
            if preconditioner is not None:
                raise KernelError(
                    "a projection is one of plain gradients; leave it out, or take draws, for a "
                    "preconditioned kernel"
                )
            return adapted.project(self.projection, memory=self.memory)
        if self.draws is not None:
            kernel = adapted.estimate(self.draws, **more)
        else:
            kernel = adapted.kernel(self.outputs, by_layer=self.by_layer, **more)
        kernel.check_usable()
        return kernel

    def with_outputs(
        self, adapted: Adapted, preconditioner: Mapping[str, Tensor] | None = None
    ) -> tuple[Measured, Tensor | None]:
        """Measure the kernel, and the outputs on the probe, [n, c], if they are to be stored.

        Raises:
            ConescopeError: as `of`.
        """
        kernel, x = self.of(adapted, preconditioner), adapted.x.to(adapted.device)
        return kernel, outputs_of(adapted.module, x)
