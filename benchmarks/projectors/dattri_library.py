"""dattri: projection of formed gradients, LoGra and FactGraSS on linear layers."""

from __future__ import annotations

import tempfile
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.projectors.base import Formed, Projector


class DattriFormed(Formed):
    """`dattri.func.projection.random_project`, on formed gradients."""

    label = "dattri, random_project"
    package = "dattri"

    def setup(self) -> None:
        """Make the projector, which on a CPU is dense."""
        from dattri.func.projection import random_project

        self.setting = f"rademacher, {self.block} samples a pass"
        like = torch.empty(1, self.columns)
        self.project = random_project(
            like, 1, self.dim, proj_max_batch_size=32, proj_type="rademacher"
        )

    def projected(self, gradients: Tensor) -> Tensor:
        """One call."""
        return self.project(gradients)


class LoGra(Projector):
    """`dattri.algorithm.logra.LoGraAttributor`, which projects both factors of every layer.

    Attributes:
        attributor: its module and class.
        columns: of every layer; None for an equal share of `dim`.
    """

    label = "dattri, LoGra"
    package = "dattri"
    attributor: ClassVar[tuple[str, str]] = ("dattri.algorithm.logra", "LoGraAttributor")
    columns: ClassVar[int | None] = None

    def setup(self) -> None:
        """Choose the layers, and compile for the shape of a batch."""
        import importlib

        module, name = self.attributor
        self.kind = getattr(importlib.import_module(module), name)
        layers = self.linear_layers()
        self.each = self.columns or self.side(len(layers)) ** 2
        self.scale = self.scales(layers)
        self.setting = f"{self.each:,} columns a layer, {self.block} samples a pass"
        self.folder = tempfile.TemporaryDirectory()

    def scales(self, layers: dict[str, nn.Linear]) -> Tensor:
        """The factors that make the products of a layer's columns unbiased."""
        return torch.ones(len(layers))

    def run(self, x: Tensor) -> Tensor:
        """Let the library collect the projected gradients; its Hessian is the identity."""
        from dattri.task import AttributionTask

        task = AttributionTask(
            loss_func=lambda _model, batch, _device: self.scalars(batch["ids"]).mean(),
            model=self.model,
            checkpoints=self.model.state_dict(),
        )
        found = self.kind(
            task, hessian="Identity", proj_dim=self.each, offload="none",
            cache_dir=tempfile.mkdtemp(dir=self.folder.name),
        )  # fmt: skip
        rows = [{"ids": row} for row in x]
        found.cache(DataLoader(rows, batch_size=min(self.block, len(x))))
        stored = found.offload_manager.cached_gradients
        values = torch.cat([stored[number] for number in sorted(stored)])
        return values * self.scale.repeat_interleave(self.each)


class LoGraWide(LoGra):
    """LoGra with its default, 4,096 columns for every layer."""

    label = "dattri, LoGra, its default"
    columns = 4096


class FactGraSS(LoGra):
    """FactGraSS: a random mask of both factors of every layer, then a dense projection."""

    label = "dattri, FactGraSS"
    attributor = ("dattri.algorithm.factgrass", "FactGraSSAttributor")

    def scales(self, layers: dict[str, nn.Linear]) -> Tensor:
        """A mask keeps k of d entries, so that products are k/d of what they estimate."""
        kept = self.each * 4
        sizes = [
            (layer.in_features + (layer.bias is not None)) * layer.out_features
            for layer in layers.values()
        ]
        return torch.tensor([(size / kept) ** 0.5 for size in sizes])
