"""Kernels from explicit Jacobians, for the peers that stop at per-sample gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.contenders.base import Option, halvings
from benchmarks.machine import total_memory

Jacobian = list[Tensor]
"""One tensor [b, c, p_l] a parameter, for b samples and c outputs."""

_WORTH_RECOMPUTING = 4 * 10**9


def product(rows: Jacobian, columns: Jacobian, outputs: str) -> Tensor:
    """Σ_l J_l J_lᵀ between two sets of samples: [a, b], or [a, c, b, c] for "full"."""
    kept = 2 if outputs == "full" else 1
    kernel = sum(
        torch.mm(r.flatten(0, kept - 1).flatten(1), c.flatten(0, kept - 1).flatten(1).T)
        for r, c in zip(rows, columns, strict=True)
    )
    return kernel.reshape(*rows[0].shape[:kept], *columns[0].shape[:kept])


def chunk_options(n: int, sample_bytes: int) -> list[Option]:
    """Keep the whole Jacobian, filled chunk by chunk, or recompute it for pairs of chunks.

    Args:
        n: number of samples.
        sample_bytes: size of one sample's Jacobian.
    """
    room = total_memory() // 2
    chunks = halvings(n)
    options: list[Option] = []
    if n * sample_bytes <= room:
        options += [{"chunk": chunk, "stored": True} for chunk in chunks[:3]]
    if n * sample_bytes > _WORTH_RECOMPUTING:
        pairs = [chunk for chunk in chunks if chunk < n and 2 * chunk * sample_bytes <= room]
        options += [{"chunk": chunk, "stored": False} for chunk in pairs[:2]]
    return options or [{"chunk": chunks[-1], "stored": False}]


def kernel_by_chunks(
    jacobian: Callable[[Tensor], Jacobian], x: Tensor, outputs: str, chunk: int, stored: bool
) -> Tensor:
    """The kernel from a function that gives the Jacobian of some samples."""
    if stored:
        whole = _fill(jacobian, x, chunk)
        return product(whole, whole, outputs)
    return _pairs(jacobian, x, outputs, chunk)


def _fill(jacobian: Callable[[Tensor], Jacobian], x: Tensor, chunk: int) -> Jacobian:
    if chunk == len(x):
        return jacobian(x)
    whole: Jacobian = []
    for start in range(0, len(x), chunk):
        part = jacobian(x[start : start + chunk])
        if not whole:
            whole = [p.new_empty(len(x), *p.shape[1:]) for p in part]
        for target, p in zip(whole, part, strict=True):
            target[start : start + chunk] = p
    return whole


def _pairs(jacobian: Callable[[Tensor], Jacobian], x: Tensor, outputs: str, chunk: int) -> Tensor:
    chunks = x.split(chunk)
    blocks: dict[tuple[int, int], Tensor] = {}
    for i, rows in enumerate(chunks):
        left = jacobian(rows)
        blocks[i, i] = product(left, left, outputs)
        for j in range(i):
            block = product(left, jacobian(chunks[j]), outputs)
            half = block.dim() // 2
            blocks[i, j] = block
            blocks[j, i] = block.permute(*range(half, 2 * half), *range(half))
    lines = [
        torch.cat([blocks[i, j] for j in range(len(chunks))], dim=blocks[i, 0].dim() // 2)
        for i in range(len(chunks))
    ]
    return torch.cat(lines)
