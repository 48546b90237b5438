"""asdfghjkl (ASDL): per-sample gradients and class-wise kernels by hooks."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.contenders.base import Contender, Option, halvings
from benchmarks.contenders.jacobian import Jacobian, chunk_options, kernel_by_chunks
from benchmarks.contenders.summed import Summed


class ASDL(Contender):
    """Class-wise kernels for the class trace and the sum; per-sample gradients for the rest.

    Its own function for the full kernel fails in this release, so that kernel is made from its
    per-sample gradients. Its Hadamard variant is approximate for convolutions (6 % for LeNet-5).
    """

    label = "ASDL"
    package = "asdfghjkl"

    def setup(self) -> None:
        """Import the library."""
        import asdl

        self.asdl = asdl
        self.model = Summed(self.model) if self.outputs == "sum" else self.model

    def options(self) -> list[Option]:
        """Chunk sizes."""
        if self.outputs == "full":
            return chunk_options(len(self.x), self.sample_bytes)
        return [{"chunk": chunk} for chunk in halvings(len(self.x), most=256)[:4]]

    def _jacobian(self, x: Tensor) -> Jacobian:
        name = self.asdl.OP_BATCH_GRADS
        with self.asdl.extend(self.model, name) as context:
            logits = self.model(x)
            whole: Jacobian = []
            for k in range(logits.shape[1]):
                logits[:, k].sum().backward(retain_graph=k + 1 < logits.shape[1])
                part = [context.batch_grads(m, flatten=True) for m in self.model.modules()]
                part = [gradient for gradient in part if gradient is not None]
                if not whole:
                    whole = [torch.empty(len(x), logits.shape[1], g.shape[1]) for g in part]
                for target, gradient in zip(whole, part, strict=True):
                    target[:, k] = gradient
                context.clear_batch_grads()
                self.model.zero_grad()
        return whole

    def run(self, chunk: int, stored: bool | None = None) -> Tensor:
        """The kernel; class-wise kernels have the shape [n, n, c]."""
        if stored is not None:
            return kernel_by_chunks(self._jacobian, self.x, self.outputs, chunk, stored)
        function = self.asdl.empirical_class_wise_direct_ntk
        return self.asdl.batch(function, self.model, self.x, batch_size=chunk).sum(-1)
