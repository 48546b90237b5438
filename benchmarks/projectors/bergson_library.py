"""Bergson: random projections of both factors of the gradients of linear layers."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from benchmarks.projectors.base import Projector


class Bergson(Projector):
    """The hooks of `bergson.collector.collector.HookCollectorBase`, kept in memory.

    Attributes:
        width: the side of a layer's k × k columns; None for an equal share of `dim`.
    """

    label = "Bergson"
    package = "bergson"
    width: ClassVar[int | None] = None

    def setup(self) -> None:
        """Make a collector that only keeps what the library computes."""
        from bergson.collector.collector import HookCollectorBase
        from bergson.gradients import GradientProcessor

        layers = self.linear_layers()
        side = self.width or self.side(len(layers))
        self.setting = (
            f"projection_dim={side} ({side * side:,} columns a layer), biases included, "
            f"{self.block} samples a pass"
        )

        class Collector(HookCollectorBase):
            def setup(self) -> None:
                """Nothing to prepare."""

            def teardown(self) -> None:
                """Nothing to end."""

            def process_batch(self, indices: list[int], **kwargs: object) -> None:
                """Nothing to write."""

            def backward_hook(self, module: nn.Module, g: Tensor) -> None:
                self.mod_grads[module._name] = self._compute_gradient(module, g)

        self.collector = Collector(
            self.model,
            target_modules=set(layers),
            processor=GradientProcessor(projection_dim=side, include_bias=True),
        )
        self.model.requires_grad_(False)
        for module in self.model.modules():
            if isinstance(module, nn.Embedding):
                module.requires_grad_(True)  # as the library's own worker: backward needs a start

    def run(self, x: Tensor) -> Tensor:
        """Collect batch by batch."""
        parts = []
        for part in x.split(self.block):
            with self.collector:
                self.scalars(part).sum().backward()
            found = self.collector.mod_grads
            parts.append(torch.cat([found[name] for name in sorted(found)], dim=1))
            found.clear()
        self.model.zero_grad(set_to_none=True)
        return torch.cat(parts)


class BergsonWide(Bergson):
    """Bergson with the `projection_dim` of its TrackStar command, 16."""

    label = "Bergson, its default"
    width = 16
