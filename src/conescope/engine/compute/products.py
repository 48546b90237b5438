"""Multiply matrices by the fastest exact means, and add the products into a kernel."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from conescope.engine.compute.allocator import return_freed_pages
from conescope.engine.compute.shape import LONG_SUM, Pairing

_TRIANGLE_ROWS = 96
"""Triangles of a symmetric product are split down to this size; smaller ones would be slower."""
_STEP_ROWS = 32
_MIRROR_ROWS = 64
_WORTH_A_CALL = 2**18
"""oneDNN is called for products of at least so many multiplications."""
_FEW_SUMS = 2**16
"""Up to so many elements of the result, oneDNN is the faster library on every processor."""
_LONG_MKL_SUM = 2**15
_FEW_ROWS = 16
"""With fewer rows, MKL adds up one number after the other: it loses 1e-6 from 2¹³ on."""

_COPIED = 2**22
_NARROW = 2**13
"""Long rows are copied in blocks of `_COPIED` elements, at least `_NARROW` wide, and multiplied."""


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply float32 numbers as such, whatever torch's settings allow the network itself.

    TF32 on a GPU keeps 11 bits of each factor, bfloat16 on a CPU 8.
    """
    matmuls: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", 0)]
    known = [(m, m.fp32_precision) for m in matmuls if hasattr(m, "fp32_precision")]
    if known and not any(set_to in ("tf32", "bf16") for _, set_to in known):
        yield
        return
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # set for one library only
        before = "highest"
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        for matmul, set_to in known:
            matmul.fp32_precision = set_to


class Scratch:
    """Buffers that are allocated once and used again, as fresh memory costs more than arithmetic.

    Args:
        limit: about how many elements should be taken at once.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._buffers: dict[str, Tensor] = {}

    def take(self, use: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return an uninitialised tensor, valid until the next call with the same `use`."""
        count = math.prod(shape)
        buffer = self._buffers.get(use)
        if (
            buffer is None
            or len(buffer) < count
            or (buffer.dtype, buffer.device) != (like.dtype, like.device)
        ):
            self._buffers.pop(use, None)
            buffer = self._buffers[use] = like.new_empty(count)
        return buffer[:count].view(shape)


class Memory:
    """Where factors wait for their products; `spill.TemporaryFile` is another place.

    Args:
        tight: whether what is free has to go back to the system each time, as the budget is small.
    """

    def __init__(self, tight: bool = False) -> None:
        self._tight = tight

    def take(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return an uninitialised tensor of a shape, of the dtype and device of another one."""
        return like.new_empty(shape)

    def keep(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the same values that may be kept until all products are made."""
        return tensor

    def release(self) -> None:
        """Let go of memory that is free, or that can be read again when it is needed.

        Factors that stay leave gaps between what the passes of each block of samples free.
        """
        if self._tight:
            return_freed_pages()

    def close(self) -> None:
        """Take no more factors."""


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """Multiply two matrices.

    On a CPU, torch's default library, MKL, is the fastest on Intel's processors, above all for
    small matrices. Elsewhere single and half precision go to oneDNN: MKL chooses its instructions
    by the vendor of the processor, and reaches half of the speed on AMD's with AVX-512.
    """
    if _by_onednn(left, right):
        return _linear(left, right.T)
    if _is_lossy(left, right):
        return (left.double() @ right.double()).to(left.dtype)
    return left @ right


def _is_lossy(left: Tensor, right: Tensor) -> bool:
    """Return whether MKL would lose digits of a product that is quick in float64, too."""
    small = len(left) * right.numel() < _WORTH_A_CALL
    single = left.dtype == torch.float32 and left.device.type == "cpu"
    return single and (small or min(len(left), right.shape[1]) < _FEW_ROWS)


def _linear(left: Tensor, weight: Tensor) -> Tensor:
    """Return left weightᵀ, by oneDNN."""
    if not weight.T.is_contiguous():
        weight = weight.contiguous()  # products of other strides are slow
    return torch.ops.mkldnn._linear_pointwise(left, weight, None, "none", [], "")


def multiply_long(left: Tensor, right: Tensor) -> Tensor:
    """Multiply two matrices, and add up long inner products in float64.

    Returns:
        The product, in float64 if a block of `LONG_SUM` does not hold all of an inner product,
        else in the dtype of the factors.
    """
    length = left.shape[1]
    if length <= LONG_SUM:
        return multiply(left, right)
    total = left.new_zeros(len(left), right.shape[1], dtype=torch.float64)
    for start in range(0, length, LONG_SUM):
        part = slice(start, start + LONG_SUM)
        total += multiply(left[:, part], right[part])
    return total


def multiply_batch(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Write left @ right to `out`, for batches of matrices."""
    if _by_onednn(left[0], right[0]):
        for product, a, b in zip(out, left, right, strict=True):
            product.copy_(multiply(a, b))
    else:
        torch.bmm(left, right, out=out)


def onednn_serves(like: Tensor) -> bool:
    """Return whether oneDNN is available and enabled for tensors like this one."""
    return (
        like.device.type == "cpu"
        and like.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and (like.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


@functools.cache
def mkl_on_intel() -> bool:
    """Return whether MKL is available and runs on a processor of Intel, its maker."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # missing in older torch
    intel = str(capabilities.get("cpu_name", "")).startswith("Intel")
    return intel and torch.backends.mkl.is_available()


def _by_onednn(left: Tensor, right: Tensor, even_on_intel: bool = False) -> bool:
    """Return whether oneDNN takes a product: a large one, and on Intel's processors if asked to."""
    large = len(left) * right.numel() >= _WORTH_A_CALL
    return large and (even_on_intel or not mkl_on_intel()) and onednn_serves(left)


def add_gram(out: Tensor, left: Tensor, right: Tensor | None) -> None:
    """Add left rightᵀ to `out`, for matrices [rows, p].

    Long inner products are computed in blocks of at most `LONG_SUM` columns, whose results are
    added up in float64, so that the digits do not depend on p.

    Args:
        out: [rows of left, rows of right], in the dtype of the factors or float64.
        left: [rows, p].
        right: [rows, p]; None for `left` itself, which fills the part of `out` on and below the
            diagonal, and a little above it.
    """
    columns = left.shape[1]
    few = out.numel() <= _FEW_SUMS
    by_onednn = _by_onednn(left, (left if right is None else right).T, even_on_intel=few)
    longest = LONG_SUM if by_onednn else _LONG_MKL_SUM
    if columns <= longest or left.dtype == torch.float64:
        _add_gram(out, left, right)
        return
    total = out if out.dtype == torch.float64 else torch.zeros_like(out, dtype=torch.float64)
    rows = max(len(left), 0 if right is None else len(right))
    width = min(longest, max(_NARROW, _COPIED // rows))
    for start in range(0, columns, width):
        part = slice(start, start + width)
        other = None if right is None else right[:, part].contiguous()
        _add_gram(total, left[:, part].contiguous(), other)
    if total is not out:
        out += total


def _add_gram(out: Tensor, left: Tensor, right: Tensor | None) -> None:
    few = out.numel() <= _FEW_SUMS
    if right is not None:
        _add_product(out, left, right, few)
    else:
        _add_triangle(out, left, few)


def _add_triangle(out: Tensor, left: Tensor, few: bool) -> None:
    """Add left leftᵀ below the diagonal: two triangles and the square between them, recursively."""
    if len(left) <= _TRIANGLE_ROWS:
        _add_product(out, left, left, few)
        return
    middle = math.ceil(len(left) / (2 * _STEP_ROWS)) * _STEP_ROWS
    upper, lower = slice(0, middle), slice(middle, len(left))
    _add_triangle(out[upper, upper], left[upper], few)
    _add_product(out[lower, upper], left[lower], left[upper], few)
    _add_triangle(out[lower, lower], left[lower], few)


def _add_product(out: Tensor, left: Tensor, right: Tensor, few: bool) -> None:
    if _by_onednn(left, right.T, even_on_intel=few):
        out += _linear(left, right)
    elif _is_lossy(left, right.T):
        out += left.double() @ right.double().T
    elif left.dtype == out.dtype:
        out.addmm_(left, right.T)
    else:
        out += left @ right.T


def mirror(values: Tensor) -> None:
    """Copy the lower triangle of a matrix onto the upper one, in place."""
    for start in range(0, len(values), _MIRROR_ROWS):
        strip = slice(start, start + _MIRROR_ROWS)
        block = values[strip, strip]
        values[:start, strip] = values[strip, :start].T
        block.copy_(torch.tril(block) + torch.tril(block, -1).T)


def tiles(rows: int, columns: int, step: int, symmetric: bool) -> Iterator[tuple[slice, slice]]:
    """Yield tiles of at most step × step; if symmetric, those that reach the lower triangle."""
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        for begin in range(0, stop if symmetric else columns, step):
            yield slice(start, stop), slice(begin, min(columns, begin + step))


def add_products(
    out: Tensor, part: slice, left: Tensor, right: Tensor | None, pairing: Pairing
) -> None:
    """Add the inner products of per-sample gradients of some cotangents.

    Args:
        out: the matrices of all cotangents, [matrices, n · rows, m · rows].
        part: which cotangents, as `Pairing.together` groups them.
        left: [n, q′, …].
        right: [m, q′, …]; None for `left` itself, as in `add_gram`.
        pairing: which cotangents are multiplied.
    """
    place = out[part.start if pairing is Pairing.APART else 0]
    rows = [None if r is None else r.flatten(0, 1) if pairing is Pairing.FULL else r
            for r in (left, right)]  # fmt: skip
    first, second = (None if r is None else r.flatten(1) for r in rows)
    assert first is not None
    add_gram(place, first, second)
