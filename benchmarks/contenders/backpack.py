"""BackPACK: per-sample gradients of one output after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.contenders.base import Contender, Option
from benchmarks.contenders.jacobian import Jacobian, chunk_options, kernel_by_chunks


class BackPACK(Contender):
    """`BatchGrad` for every output, then one matrix product a parameter."""

    label = "BackPACK"
    package = "backpack-for-pytorch"

    def setup(self) -> None:
        """Import the library and extend the model."""
        from backpack import backpack, extend
        from backpack.extensions import BatchGrad

        self.backpack, self.batch_grad = backpack, BatchGrad
        self.model = extend(self.model)

    def options(self) -> list[Option]:
        """Chunk sizes, with the Jacobian kept or recomputed."""
        return chunk_options(len(self.x), self.sample_bytes)

    def _gradients(self, output: Tensor, retain: bool) -> list[Tensor]:
        with self.backpack(self.batch_grad(), retain_graph=retain):
            output.sum().backward(retain_graph=retain)
        gradients = [p.grad_batch.flatten(1) for p in self.model.parameters()]
        for p in self.model.parameters():
            del p.grad_batch
            p.grad = None
        return gradients

    def _jacobian(self, x: Tensor) -> Jacobian:
        logits = self.model(x)
        columns = [logits] if self.outputs == "sum" else list(logits.T)
        whole: Jacobian = []
        for k, column in enumerate(columns):
            part = self._gradients(column, retain=k + 1 < len(columns))
            if not whole:
                whole = [torch.empty(len(x), len(columns), g.shape[1]) for g in part]
            for target, gradient in zip(whole, part, strict=True):
                target[:, k] = gradient
        return whole

    def run(self, chunk: int, stored: bool) -> Tensor:
        """The kernel from the Jacobian in chunks."""
        return kernel_by_chunks(self._jacobian, self.x, self.outputs, chunk, stored)
