"""Fingerprints of checkpoints: what each tensor holds, in so few numbers that a series fits.

A tensor's fingerprint has a digest, by which equal values are found, and a count sketch, by which
the distance between two checkpoints follows without having both in memory (Charikar, Chen and
Farach-Colton, 2002): the values, each times a random sign, are summed into 127 buckets. The squared
distance between two sketches has the squared distance of the tensors as its mean, and a relative
standard deviation of at most about √(2 / 127) = 13 %; of many tensors together it is less.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from conescope.errors import CheckpointError
from conescope.measuring.checkpoints.weight_files import read_tensors

BUCKETS = 127
"""Numbers in a sketch; a prime, so that no column of a matrix falls into one bucket."""

_ROWS = 8192
_SEED = 20_250_316
_DIGEST = 32


@dataclass(frozen=True)
class TensorPrint:
    """The fingerprint of one tensor.

    Attributes:
        shape: its shape.
        dtype: its type, such as `float32`.
        digest: the first 32 hexadecimal digits of the SHA-256 of its values' bytes.
        not_finite: how many of its values are NaN or infinite.
        file: the name of the file that holds it.
        sketch: [up to 127], its count sketch; empty if it holds no real numbers, or not only
            finite ones.
    """

    shape: tuple[int, ...]
    dtype: str
    digest: str
    not_finite: int
    file: str
    sketch: np.ndarray

    @property
    def numel(self) -> int:
        """The number of values."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_real(self) -> bool:
        """Whether the values are floating-point numbers, as those of parameters are."""
        return "float" in self.dtype


Fingerprint = dict[str, TensorPrint]
"""The fingerprint of a checkpoint: tensor name → its fingerprint."""


def fingerprint_of(files: Sequence[Path]) -> Fingerprint:
    """Read a checkpoint tensor by tensor, and return the fingerprint of each.

    No more than a few megabytes of values are held at a time, if the format lets tensors be read
    one by one: safetensors, and files that torch ≥ 1.6 saved.

    Args:
        files: the file of a checkpoint, or all its shards.

    Raises:
        CheckpointError: as `read_weights`.
    """
    found: Fingerprint = {}
    for file in files:
        for name, tensor in read_tensors(file).items():
            if not isinstance(tensor, Tensor):
                continue
            if name in found:
                raise CheckpointError(
                    f"{file} holds {name}, which {found[name].file} holds, too; leave out the one "
                    f"that belongs to another checkpoint"
                )
            found[name] = _print_of(tensor, file.name)
    return found


def _print_of(tensor: Tensor, file: str) -> TensorPrint:
    flat = tensor.detach().reshape(-1)
    dtype = str(tensor.dtype).removeprefix("torch.")
    digest, not_finite = hashlib.sha256(), 0
    sketch = np.zeros(min(BUCKETS, len(flat)) if "float" in dtype else 0)
    for index, chunk in enumerate(flat.split(_ROWS * BUCKETS)):
        digest.update(_bytes_of(chunk))
        if len(sketch):
            values = chunk.double()
            not_finite += int((~torch.isfinite(values)).sum())
            sketch += _sketched(values, index)[: len(sketch)]
    if not_finite:
        sketch = np.zeros(0)
    hexadecimal = digest.hexdigest()[:_DIGEST]
    return TensorPrint(tuple(tensor.shape), dtype, hexadecimal, not_finite, file, sketch)


def _sketched(values: Tensor, index: int) -> np.ndarray:
    """Return the sketch of the chunk number `index` of a tensor, [127]."""
    signs, of_chunks = _signs()
    rows = -(-len(values) // BUCKETS)
    padded = torch.nn.functional.pad(values, (0, rows * BUCKETS - len(values)))
    summed = (padded.view(rows, BUCKETS) * signs[:rows]).sum(dim=0).numpy()
    return summed * of_chunks[index % len(of_chunks)]


@lru_cache(maxsize=1)
def _signs() -> tuple[Tensor, np.ndarray]:
    """Return the signs of the values in a chunk, [8192, 127], and those of the chunks."""
    drawn = np.random.Generator(np.random.PCG64(_SEED)).integers(0, 2, (_ROWS + 64) * BUCKETS)
    signs = drawn.astype(np.float64) * 2 - 1
    return torch.from_numpy(signs[: _ROWS * BUCKETS]).view(_ROWS, BUCKETS), signs[_ROWS * BUCKETS :]


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of the values of a tensor on the CPU, in their order."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
