"""torch.func, the way of PyTorch's tutorial "Neural Tangent Kernels", and lightly fixed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from benchmarks.contenders.base import Contender, Option, halvings
from benchmarks.contenders.jacobian import Jacobian, chunk_options, kernel_by_chunks


class _TorchFunc(Contender):
    package = "torch"

    def setup(self) -> None:
        """Take the parameters out of the model."""
        self.params = {name: p.detach() for name, p in self.model.named_parameters()}
        self.buffers = dict(self.model.named_buffers())

    def _single(self, params: dict[str, Tensor], sample: Tensor) -> Tensor:
        state = {**params, **self.buffers}
        logits = functional_call(self.model, state, (sample.unsqueeze(0),)).squeeze(0)
        return logits.sum(0, keepdim=True) if self.outputs == "sum" else logits

    def _jacobian(self, x: Tensor) -> Jacobian:
        jacobians = vmap(jacrev(self._single), (None, 0))(self.params, x)
        return [j.detach().flatten(2) for j in jacobians.values()]


class Tutorial(_TorchFunc):
    """The tutorial's Jacobian contraction: both Jacobians afresh, one einsum a parameter.

    Between chunks of samples, every pair of them, since the whole rarely fits in memory.
    """

    label = "torch.func, tutorial"

    def options(self) -> list[Option]:
        """All samples at once, or chunks."""
        n = len(self.x)
        return [{"chunk": chunk} for chunk in dict.fromkeys([n, *halvings(n)[:3]])]

    def _contract(self, x1: Tensor, x2: Tensor) -> Tensor:
        rule = "Naf,Maf->NM" if self.outputs == "trace" else "Naf,Mbf->NaMb"
        pairs = zip(self._jacobian(x1), self._jacobian(x2), strict=True)
        return torch.stack([torch.einsum(rule, j1, j2) for j1, j2 in pairs]).sum(0)

    def run(self, chunk: int) -> Tensor:
        """All pairs of chunks."""
        chunks = self.x.split(chunk)
        column = 1 if self.outputs == "trace" else 2
        lines = [torch.cat([self._contract(a, b) for b in chunks], dim=column) for a in chunks]
        kernel = torch.cat(lines)
        return kernel[:, 0, :, 0] if self.outputs == "sum" else kernel


class TorchFunc(_TorchFunc):
    """One Jacobian, in chunks, and one matrix product a parameter."""

    label = "torch.func, fixed"

    def options(self) -> list[Option]:
        """Chunk sizes, with the Jacobian kept or recomputed."""
        return chunk_options(len(self.x), self.sample_bytes)

    def run(self, chunk: int, stored: bool) -> Tensor:
        """The kernel from the Jacobian in chunks."""
        return kernel_by_chunks(self._jacobian, self.x, self.outputs, chunk, stored)
