"""Kernels as points in a plane or in space, at the distances of the kernels (figure 1c)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from conescope.errors import KernelError
from conescope.kernel.distance import Float64Array


@dataclass(frozen=True)
class Embedding:
    """T kernels as points, by classical multidimensional scaling.

    Attributes:
        coordinates: [T, d], centred; in units of the chord, ‖k_s − k_t‖ = √(2 S).
        shares: [d], share of the total variance on each axis; in [0, 1], falling.
    """

    coordinates: Float64Array
    shares: Float64Array


def classical_mds(distances: Float64Array, dimensions: int) -> Embedding:
    """Embed unit-length kernels by classical multidimensional scaling.

    Source: Torgerson, Psychometrika 17:401, 1952.

    Args:
        distances: [T, T] kernel distances S; the squared chord between two kernels is 2 S.
        dimensions: number of axes d, at least 1.

    Returns:
        The embedding; axes are signed so that the first kernel has no positive coordinate, and
        are zero where the kernels span fewer than d dimensions.

    Raises:
        KernelError: if there are fewer than two kernels, all are the same, or d is below 1.
    """
    count = len(distances)
    if count < 2:
        raise KernelError(
            f"an embedding needs at least two kernels, not {count}; measure more often"
        )
    if dimensions < 1:
        raise KernelError(f"an embedding has at least one dimension, not {dimensions}")
    squared_chords = 2.0 * distances
    row = squared_chords.mean(axis=0)
    gram = -0.5 * (squared_chords - row[:, None] - row[None, :] + row.mean())
    values, vectors = np.linalg.eigh(gram)
    values = np.clip(values[::-1], 0.0, None)
    total = values.sum()
    if total <= 0.0:
        raise KernelError(
            "all kernels are the same, so there is nothing to embed; look at whether the weights "
            "moved at all"
        )
    kept = min(dimensions, count)
    coordinates = np.zeros((count, dimensions))
    coordinates[:, :kept] = vectors[:, ::-1][:, :kept] * np.sqrt(values[:kept])
    coordinates *= np.where(coordinates[0] > 0, -1.0, 1.0)
    shares = np.zeros(dimensions)
    shares[:kept] = values[:kept] / total
    return Embedding(coordinates, shares)
