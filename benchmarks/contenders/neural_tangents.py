"""neural-tangents on JAX: three implementations of the finite-width kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.contenders.base import Contender, Option, halvings
from benchmarks.problems import CLASSES


class NeuralTangents(Contender):
    """`empirical_ntk_fn`, compiled, with each of its implementations."""

    label = "neural-tangents"
    package = "neural-tangents"

    def setup(self) -> None:
        """Import the library and translate the model."""
        import jax
        import neural_tangents as nt

        from benchmarks.contenders.jax_network import translate

        self.jax, self.nt = jax, nt
        logits, self.params = translate(self.model)
        if self.outputs == "sum":
            self.function = lambda params, x: logits(params, x).sum(1, keepdims=True)
        else:
            self.function = logits
        self.images = jax.numpy.asarray(self.x.numpy())
        self.compiled: dict[tuple[str, int], Callable] = {}

    def options(self) -> list[Option]:
        """Implementations and chunk sizes."""
        n = len(self.x)
        ways = ("STRUCTURED_DERIVATIVES", "JACOBIAN_CONTRACTION", "NTK_VECTOR_PRODUCTS")
        chunks = dict.fromkeys([*halvings(n)[:2], n if n <= 64 else halvings(n)[0]])
        return [{"way": way, "chunk": chunk} for way in ways for chunk in chunks]

    def _kernel_function(self, way: str, chunk: int) -> Callable:
        axes = () if self.outputs == "full" else (1,)
        function = self.nt.empirical_ntk_fn(
            self.function,
            trace_axes=axes,
            vmap_axes=0,
            implementation=self.nt.NtkImplementation[way],
        )
        if chunk == len(self.x):
            return self.jax.jit(lambda x, params: function(x, None, params))
        block = self.jax.jit(lambda x1, x2, params: function(x1, x2, params))
        return lambda x, params: self._tiled(block, x, params, chunk)

    def _tiled(self, block: Callable, x, params, chunk: int):
        """Blocks of the lower triangle, each used twice."""
        starts = range(0, len(x), chunk)
        flip = (2, 3, 0, 1) if self.outputs == "full" else (1, 0)
        blocks = {}
        for i in starts:
            for j in starts[: i // chunk + 1]:
                kernel = torch.from_dlpack(
                    self._axes(block(x[i : i + chunk], x[j : j + chunk], params))
                )
                blocks[i, j], blocks[j, i] = kernel, kernel.permute(flip)
        column = len(flip) // 2
        return torch.cat([torch.cat([blocks[i, j] for j in starts], column) for i in starts])

    def _axes(self, kernel):
        """The library's order is [n, n, c, c]."""
        return kernel.transpose(0, 2, 1, 3) if self.outputs == "full" else kernel

    def run(self, way: str, chunk: int) -> Tensor:
        """The kernel; tracing divides by the number of outputs, so multiply by it."""
        if (way, chunk) not in self.compiled:
            self.compiled[way, chunk] = self._kernel_function(way, chunk)
        kernel = self.compiled[way, chunk](self.images, self.params)
        if not isinstance(kernel, Tensor):
            kernel = torch.from_dlpack(self._axes(kernel))
        return kernel * CLASSES if self.outputs == "trace" else kernel
