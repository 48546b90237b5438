"""nngeometry: Gram matrices by hooks, for pairs of batches and pairs of outputs."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.contenders.base import Contender, Option, halvings
from benchmarks.problems import CLASSES


class NNGeometry(Contender):
    """`nngeometry.GramMatrix` with a dense representation."""

    label = "nngeometry"
    package = "nngeometry"

    def setup(self) -> None:
        """Import the library and describe the model's layers to it."""
        from nngeometry import GramMatrix
        from nngeometry.layercollection import LayerCollection

        self.gram_matrix = GramMatrix
        self.layers = LayerCollection.from_model(self.model)

    def options(self) -> list[Option]:
        """Batch sizes."""
        return [{"chunk": chunk} for chunk in halvings(len(self.x), most=256)[:3]]

    def _gram(self, function: Callable[[Tensor], Tensor], chunk: int) -> Tensor:
        loader = DataLoader(TensorDataset(self.x), batch_size=chunk)
        gram = self.gram_matrix(self.model, loader, function=function, layer_collection=self.layers)
        return gram.to_torch()

    def run(self, chunk: int) -> Tensor:
        """The kernel, the class trace class by class; the library's order is [c, n, c, n]."""
        if self.outputs == "full":
            return self._gram(self.model, chunk).permute(1, 0, 3, 2)
        if self.outputs == "sum":
            return self._gram(lambda x: self.model(x).sum(1, keepdim=True), chunk)[0, :, 0]
        kernels = (
            self._gram(lambda x, k=k: self.model(x)[:, [k]], chunk)[0, :, 0] for k in range(CLASSES)
        )
        return sum(kernels)
