"""Series of kernels whose motion is known: the truth against which `cone` is judged."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

import conescope as cs

GAP = 100
"""Mean number of iterations between kernels."""

SIDE = 20
"""The kernels are [SIDE, SIDE] and symmetric: points of a space of 210 dimensions."""


@dataclass(frozen=True)
class Motion:
    """A sum of motions on the sphere of unit-length kernels.

    The unit of all squares is the squared chord. Directions have variances ∝ rank^(−tilt).
    """

    jitter: float = 0.0  # σ²
    confined: float = 0.0  # R²
    relaxation: float = 600.0  # τ, in iterations
    diffusion: float = 0.0  # mean squared displacement in 10,000 iterations
    drift: float = 0.0  # the same
    dimensions: int = 40
    tilt: float = 0.0
    entrance: int = 0  # kernels of a fast first phase

    @property
    def participation(self) -> float:
        """Participation ratio of the confined or diffusing motion."""
        shares = self._shares()
        return 1.0 / float(shares @ shares)

    def squared_displacement(self, lags: np.ndarray) -> np.ndarray:
        """E‖k(t + dt) − k(t)‖² of all but the jitter."""
        relaxed = 2 * self.confined * -np.expm1(-lags / self.relaxation)
        return relaxed + self.diffusion * lags / 1e4 + self.drift * (lags / 1e4) ** 2

    def extent(self, steps: np.ndarray) -> float:
        """Expected root-mean-square distance from the mean of kernels taken at these steps."""
        lags = np.abs(steps[:, None] - steps[None, :])
        count = len(steps)
        return float(
            np.sqrt(self.squared_displacement(lags).mean() / 2 + self.jitter * (count - 1) / count)
        )

    def points(self, steps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The motion in the tangent plane; [T, SIDE (SIDE + 1) / 2 − 1]."""
        space = SIDE * (SIDE + 1) // 2 - 1
        count, gaps = len(steps), np.diff(steps)[:, None]
        points = rng.standard_normal((count, space)) * np.sqrt(self.jitter / space)
        scales = np.sqrt(self._shares())
        noise = rng.standard_normal((count, self.dimensions))
        kept = np.exp(-gaps / self.relaxation)
        relaxing = noise.copy()
        for k in range(1, count):
            relaxing[k] = kept[k - 1] * relaxing[k - 1] + np.sqrt(1 - kept[k - 1] ** 2) * noise[k]
        walk = rng.standard_normal((count, self.dimensions))
        walk[0] = 0.0
        walk[1:] *= np.sqrt(self.diffusion / 1e4 * gaps)
        moving = np.sqrt(self.confined) * relaxing + walk.cumsum(axis=0)
        points[:, : self.dimensions] += moving * scales
        line = (steps - steps.mean()) / 1e4 * np.sqrt(self.drift)
        points[:, -1] += line
        return points

    def _shares(self) -> np.ndarray:
        shares = np.arange(1.0, self.dimensions + 1) ** -self.tilt
        return shares / shares.sum()


def steps(count: int, rng: np.random.Generator, *, even: bool) -> np.ndarray:
    """Iterations from 0 on, `GAP` apart, or as unevenly as half to three halves of it."""
    gaps = np.full(count - 1, GAP) if even else rng.integers(GAP // 2, 3 * GAP // 2, count - 1)
    return np.concatenate([[0], gaps.cumsum()])


def series(
    motion: Motion, count: int, seed: int, *, even: bool = True
) -> tuple[cs.KernelSeries, np.ndarray]:
    """A series of `count` kernels with this motion, and the unit kernels' points; [T, space]."""
    rng = np.random.default_rng(seed)
    when = steps(count, rng, even=even)
    points = motion.points(when[motion.entrance :], rng)
    if motion.entrance:
        points = np.vstack([_entrance(motion, points, rng), points])
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    on_sphere = np.hstack([np.cos(lengths), np.sinc(lengths / np.pi) * points])
    rotation = np.linalg.qr(rng.standard_normal((on_sphere.shape[1],) * 2))[0]
    on_sphere = on_sphere @ rotation
    return cs.KernelSeries(when.tolist(), [_kernel(p) for p in on_sphere]), on_sphere


def frozen(count: int, seed: int, *, even: bool = True) -> cs.KernelSeries:
    """One kernel, over and over, in float32 with rounding errors of a few units."""
    rng = np.random.default_rng(seed)
    kernel = _kernel(rng.standard_normal(SIDE * (SIDE + 1) // 2)).values
    epsilon = torch.finfo(torch.float32).eps
    kernels = [
        cs.Kernel((kernel * (1 + 3 * epsilon * torch.from_numpy(error))).float())
        for error in rng.standard_normal((count, SIDE, SIDE))
    ]
    return cs.KernelSeries(steps(count, rng, even=even).tolist(), kernels)


def _entrance(motion: Motion, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A first phase that walks ever slower to where the second begins, three times as fast."""
    count = motion.entrance
    step = points[1:] - points[:-1]
    usual = np.sqrt((step**2).sum(axis=1).mean())
    direction = rng.standard_normal(points.shape[1])
    direction /= np.linalg.norm(direction)
    walk = rng.standard_normal((count, points.shape[1])) / np.sqrt(points.shape[1])
    sizes = usual * np.linspace(2.2, 1.6, count)[::-1, None]
    return points[0] + (sizes * (walk + direction) / np.sqrt(2)).cumsum(axis=0)[::-1]


def _kernel(point: np.ndarray) -> cs.Kernel:
    """The symmetric matrix that has this point's coordinates, with the point's length."""
    values = np.zeros((SIDE, SIDE))
    rows, columns = np.tril_indices(SIDE)
    off = rows != columns
    values[rows, columns] = point / np.where(off, np.sqrt(2), 1.0)
    values[columns, rows] = values[rows, columns]
    return cs.Kernel(torch.from_numpy(values))


CONFINED = Motion(confined=0.02, jitter=1e-3)
MOTIONS: dict[str, Motion] = {
    "confined": CONFINED,
    "confined, tilted": replace(CONFINED, tilt=0.5),
    "confined, faster than the kernels": Motion(jitter=0.02),
    "free diffusion": Motion(diffusion=0.03, jitter=1e-3),
    "free diffusion, tilted": Motion(diffusion=0.03, jitter=1e-3, tilt=0.5),
    "drift": Motion(drift=0.05, jitter=1e-3),
    "mixed": Motion(confined=0.02, jitter=1e-3, drift=0.06),
    "change point, then confined": replace(CONFINED, entrance=20),
}
"""What is simulated for docs/cone.md, by name; the name begins with the right verdict."""
