"""The tangent plane, at the cone's axis, of the sphere of unit-length kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from conescope.kernel.distance import Float64Array


@dataclass(frozen=True)
class Tangents:
    """Unit-length kernels of one phase, as points of the tangent plane at the phase's axis.

    Attributes:
        axis: [T], the weights w of the axis Σ_t w_t k_t, which is itself of length 1.
        angles: [T], angle between each kernel and the axis, in radians.
        gram: [T, T], inner products of the kernels' points in the tangent plane. A point's length
            is the angle of its kernel to the axis.
    """

    axis: Float64Array
    angles: Float64Array
    gram: Float64Array


def tangents_at_axis(distances: Float64Array) -> Tangents:
    """Map unit-length kernels to the tangent plane at their axis, by the sphere's logarithm map.

    The axis is the direction of the mean kernel (Mardia & Jupp, Directional Statistics, 2000,
    section 9.2). A great circle through it becomes a straight line, so that a steady drift on
    the sphere is one in the plane too. Everything is computed from the centred Gram matrix of
    the chords (Torgerson, 1952), which keeps its digits however small the distances are.

    Args:
        distances: [T, T], kernel distances S; the squared chord is 2 S.
    """
    chords = 2.0 * distances
    row = chords.mean(axis=0)
    centred = -0.5 * (chords - row[:, None] - row[None, :] + row.mean())
    squares = centred.diagonal()
    length = math.sqrt(1.0 - row.mean() / 2)
    along = (1.0 - length**2 - squares) / (2 * length)
    across = centred - np.outer(along, along)
    sines = np.sqrt(np.clip(across.diagonal(), 0.0, None))
    angles = np.arctan2(sines, length + along)
    stretch = np.divide(angles, sines, out=np.ones_like(angles), where=sines > 0)
    axis = np.full(len(distances), 1.0 / (len(distances) * length))
    return Tangents(axis, angles, across * np.outer(stretch, stretch))
