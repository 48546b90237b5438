"""ViViT: Gram matrices of the generalised Gauss-Newton matrix's root, on top of BackPACK."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.contenders.base import Contender, Option


class ViViT(Contender):
    """The Gram matrix of V = √2 J, which is the root for the summed squared error.

    For one output, and for the class trace one output at a time, its Gram matrix of
    individual gradients.
    """

    label = "ViViT"
    package = "vivit-for-pytorch"

    def setup(self) -> None:
        """Import the library and extend a plain copy of the sequence."""
        from backpack import backpack, extend
        from backpack.extensions import BatchGrad
        from vivit.extensions.firstorder.batch_grad.gram_batch_grad import GramBatchGrad
        from vivit.extensions.secondorder.vivit import ViViTGGNExact

        if any(list(layer.children()) for layer in self.model):
            raise TypeError("ViViT takes plain sequences of layers only")
        self.backpack, self.batch_grad, self.gram_batch_grad = backpack, BatchGrad, GramBatchGrad
        self.ggn = ViViTGGNExact
        self.model = extend(nn.Sequential(*self.model))
        self.loss = extend(nn.MSELoss(reduction="sum"))

    def options(self) -> list[Option]:
        """The class trace from the full kernel or class by class."""
        if self.outputs == "trace":
            return [{"by_class": True}, {"by_class": False}]
        return [{"by_class": self.outputs == "sum"}]

    def _full(self) -> Tensor:
        """J Jᵀ, [c, n, c, n]."""
        grams: list[Tensor] = []

        def collect(module: nn.Module) -> None:
            for parameter in module.parameters(recurse=False):
                gram = parameter.vivit_ggn_exact["gram_mat"]()
                del parameter.vivit_ggn_exact
                if grams:
                    grams[0] += gram
                else:
                    grams.append(gram)

        logits = self.model(self.x)
        loss = self.loss(logits, torch.zeros_like(logits))
        with self.backpack(self.ggn(), extension_hook=collect):
            loss.backward()
        self.model.zero_grad()
        return grams[0] / 2

    def _single(self, output: Tensor, retain: bool) -> Tensor:
        gram = self.gram_batch_grad(free_grad_batch=True)
        with self.backpack(self.batch_grad(), extension_hook=gram, retain_graph=retain):
            output.sum().backward(retain_graph=retain)
        self.model.zero_grad()
        return gram.get_result()

    def run(self, by_class: bool) -> Tensor:
        """The kernel."""
        if by_class:
            logits = self.model(self.x)
            columns = [logits] if self.outputs == "sum" else list(logits.T)
            last = len(columns) - 1
            return sum(self._single(column, retain=k < last) for k, column in enumerate(columns))
        if self.outputs == "trace":
            return torch.einsum("cncm->nm", self._full())
        return self._full().permute(1, 0, 3, 2)
