"""ViViT: Gram matrices of the generalised Gauss-Newton matrix's root, on top of BackPACK."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.contenders.base import Contender, Option
from benchmarks.problems import CLASSES

_WAYS = {
    "full": ["all outputs"],
    "trace": ["all outputs", "one output", "gradients"],
    "sum": ["one output", "gradients"],
}


class ViViT(Contender):
    """The Gram matrix of V = √2 J, which is the root for the summed squared error.

    For one output (a fixed linear head picks or sums), the same, or the Gram matrix of
    individual gradients; the class trace is then the sum over classes.
    """

    label = "ViViT"
    package = "vivit-for-pytorch"

    def setup(self) -> None:
        """Import the library and extend a plain copy of the sequence, with and without head."""
        from backpack import backpack, extend
        from backpack.extensions import BatchGrad
        from vivit.extensions.firstorder.batch_grad.gram_batch_grad import GramBatchGrad
        from vivit.extensions.secondorder.vivit import ViViTGGNExact

        if any(list(layer.children()) for layer in self.model):
            raise TypeError("ViViT takes plain sequences of layers only")
        self.backpack, self.batch_grad, self.gram_batch_grad = backpack, BatchGrad, GramBatchGrad
        self.ggn = ViViTGGNExact
        self.head = nn.Linear(CLASSES, 1, bias=False).requires_grad_(False)
        self.headed = extend(nn.Sequential(*self.model, self.head))
        self.model = extend(nn.Sequential(*self.model))
        self.loss = extend(nn.MSELoss(reduction="sum"))

    def options(self) -> list[Option]:
        """The ways to the same kernel."""
        return [{"by": way} for way in _WAYS[self.outputs]]

    def _of_outputs(self, model: nn.Module) -> Tensor:
        """J Jᵀ of a model's outputs, [c, n, c, n]."""
        grams: list[Tensor] = []

        def collect(module: nn.Module) -> None:
            for parameter in module.parameters(recurse=False):
                if parameter.requires_grad:
                    gram = parameter.vivit_ggn_exact["gram_mat"]()
                    del parameter.vivit_ggn_exact
                    if grams:
                        grams[0] += gram
                    else:
                        grams.append(gram)

        outputs = model(self.x)
        loss = self.loss(outputs, torch.zeros_like(outputs))
        with self.backpack(self.ggn(), extension_hook=collect):
            loss.backward()
        model.zero_grad()
        return grams[0] / 2

    def _of_direction(self, direction: Tensor) -> Tensor:
        """J Jᵀ of one linear combination of the outputs, [n, n]."""
        self.head.weight.copy_(direction)
        return self._of_outputs(self.headed)[0, :, 0]

    def _of_gradients(self, output: Tensor, retain: bool) -> Tensor:
        gram = self.gram_batch_grad(free_grad_batch=True)
        with self.backpack(self.batch_grad(), extension_hook=gram, retain_graph=retain):
            output.sum().backward(retain_graph=retain)
        self.model.zero_grad()
        return gram.get_result()

    def run(self, by: str) -> Tensor:
        """The kernel."""
        if by == "all outputs":
            full = self._of_outputs(self.model)
            return (
                full.permute(1, 0, 3, 2)
                if self.outputs == "full"
                else torch.einsum("cncm->nm", full)
            )
        if by == "one output":
            directions = torch.ones(1, CLASSES) if self.outputs == "sum" else torch.eye(CLASSES)
            return sum(self._of_direction(direction[None]) for direction in directions)
        logits = self.model(self.x)
        columns = [logits] if self.outputs == "sum" else list(logits.T)
        last = len(columns) - 1
        return sum(self._of_gradients(column, retain=k < last) for k, column in enumerate(columns))
