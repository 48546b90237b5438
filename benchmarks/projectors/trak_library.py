"""TRAK: its projector for machines without a GPU, on formed gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.projectors.base import Formed


class TRAK(Formed):
    """`trak.projectors.BasicProjector`, whose random matrix is made anew block by block."""

    label = "TRAK, BasicProjector"
    package = "traker"

    def setup(self) -> None:
        """Make the projector with blocks of its default size."""
        from trak.projectors import BasicProjector, ProjectionType

        self.setting = f"rademacher, {self.block} samples a pass"
        self.projector = BasicProjector(
            self.columns, self.dim, seed=0, proj_type=ProjectionType.rademacher,
            device=torch.device("cpu"),
        )  # fmt: skip

    def projected(self, gradients: Tensor) -> Tensor:
        """One call; the library leaves out the factor 1/√dim."""
        return self.projector.project(gradients, model_id=0) / self.dim**0.5
