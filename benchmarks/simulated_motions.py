"""Simulated series of kernels with known motion, the truth for tests and benchmarks of `cone`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch

import conescope as cs

GAP = 100
"""Mean number of iterations between kernels."""

SIDE = 20
"""The kernels are [SIDE, SIDE] and symmetric: points of a space of 210 dimensions."""

SPACE = SIDE * (SIDE + 1) // 2 - 1
"""Dimensions of the unit kernels' sphere."""


@dataclass(frozen=True)
class Motion:
    """A sum of motions on the sphere of unit-length kernels, in units of the squared chord.

    Confined motion and diffusion move along `dimensions` axes, whose variances are ∝ rank^(−tilt);
    jitter moves along all axes of the space, a drift along an axis of its own.
    """

    jitter: float = 0.0  # σ²
    confined: float = 0.0  # R²
    relaxation: float = 600.0  # τ, in iterations
    diffusion: float = 0.0  # mean squared displacement in 10,000 iterations
    drift: float = 0.0  # the same
    dimensions: int = 40
    tilt: float = 0.0
    entrance: int = 0  # number of kernels of a first phase, which moves faster

    def squared_displacement(self, lags: np.ndarray) -> np.ndarray:
        """Return E‖k(t + dt) − k(t)‖² of all parts but the jitter; [T, T], as `lags`."""
        relaxed = -2 * self.confined * np.expm1(-lags / self.relaxation)
        return relaxed + self.diffusion * lags / 1e4 + self.drift * (lags / 1e4) ** 2

    def kind(self, duration: float) -> str:
        """Return the right verdict for a phase of this many iterations."""
        confined = -2 * self.confined * np.expm1(-duration / self.relaxation) + 2 * self.jitter
        parts = {
            "confined": confined,
            "free diffusion": self.diffusion * duration / 1e4,
            "drift": self.drift * (duration / 1e4) ** 2,
        }
        ruling = max(parts, key=lambda part: parts[part])
        return ruling if parts[ruling] >= 2 / 3 * sum(parts.values()) else "mixed"

    def extent(self, steps: np.ndarray) -> float:
        """Return the expected root mean square distance of kernels from their mean."""
        slow = self.squared_displacement(np.abs(steps[:, None] - steps[None, :])).mean() / 2
        return float(np.sqrt(slow + self.jitter * (1 - 1 / len(steps))))

    def participation(self, steps: np.ndarray) -> float:
        """Return the participation ratio over these steps of a motion without drift."""
        jitter = self.jitter * (1 - 1 / len(steps)) / self.extent(steps) ** 2
        concentration = float(self._shares() @ self._shares())
        mixed = (jitter**2 + 2 * jitter * (1 - jitter)) / SPACE
        return 1.0 / (mixed + (1 - jitter) ** 2 * concentration)

    def points(self, steps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return a realisation of the motion in the tangent plane; [T, SPACE]."""
        count, gaps = len(steps), np.diff(steps)[:, None]
        points = rng.standard_normal((count, SPACE)) * np.sqrt(self.jitter / SPACE)
        noise, walk = rng.standard_normal((2, count, self.dimensions))
        kept = np.exp(-gaps / self.relaxation)
        relaxing = noise.copy()
        for k in range(1, count):
            relaxing[k] = kept[k - 1] * relaxing[k - 1] + np.sqrt(1 - kept[k - 1] ** 2) * noise[k]
        walk[0] = 0.0
        walk[1:] *= np.sqrt(self.diffusion / 1e4 * gaps)
        moving = np.sqrt(self.confined) * relaxing + walk.cumsum(axis=0)
        points[:, : self.dimensions] += moving * np.sqrt(self._shares())
        points[:, -1] += np.sqrt(self.drift) * (steps - steps.mean()) / 1e4
        return points

    def _shares(self) -> np.ndarray:
        shares = np.arange(1.0, self.dimensions + 1) ** -self.tilt
        return shares / shares.sum()


@dataclass(frozen=True)
class Simulated:
    """A series with the truth about it: its motion, and the mean S to its first kernel."""

    series: cs.KernelSeries
    motion: Motion
    start_distance: float

    @property
    def late(self) -> np.ndarray:
        """The steps of the second phase; [T]."""
        return np.array(self.series.steps[self.motion.entrance :], dtype=float)


def simulate(motion: Motion, count: int, seed: int, *, even: bool = True) -> Simulated:
    """Simulate a series of `count` kernels with this motion, evenly spaced or not."""
    rng = np.random.default_rng(seed)
    when = steps(count, rng, even=even)
    points = motion.points(when[motion.entrance :], rng)
    if motion.entrance:
        points = np.vstack([_entrance(motion.entrance, points, rng), points])
    spread = motion.confined + motion.jitter
    start = 1 - (1 - spread / 2) * float(np.cos(np.linalg.norm(points[0])))
    return Simulated(_series(when, points), motion, start)


def simulate_drop(before: Motion, after: Motion, counts: tuple[int, int], seed: int) -> Simulated:
    """Simulate a series whose motion changes after `counts[0]` kernels; the truth is `after`.

    Confined motion relaxes from its place at the change, and diffusion goes on from there.
    """
    rng = np.random.default_rng(seed)
    when = steps(sum(counts), rng, even=True)
    early, late = (
        motion.points(part, rng)
        for motion, part in zip((before, after), np.split(when, counts[:1]), strict=True)
    )
    since = (when[counts[0] :] - when[counts[0] - 1])[:, None]
    late += early[-1] * np.exp(-since / after.relaxation)
    return Simulated(_series(when, np.vstack([early, late])), after, float("nan"))


def frozen(count: int, seed: int, *, even: bool = True) -> cs.KernelSeries:
    """Return `count` copies of one kernel in float32, with rounding errors of a few units."""
    rng = np.random.default_rng(seed)
    kernel = _kernel(rng.standard_normal(SPACE + 1)).values
    errors = 3 * torch.finfo(torch.float32).eps * rng.standard_normal((count, SIDE, SIDE))
    kernels = [cs.Kernel((kernel * (1 + torch.from_numpy(error))).float()) for error in errors]
    return cs.KernelSeries(steps(count, rng, even=even).tolist(), kernels)


def steps(count: int, rng: np.random.Generator, *, even: bool) -> np.ndarray:
    """Return iterations from 0 on, `GAP` apart, or unevenly by half of it to three halves."""
    gaps = np.full(count - 1, GAP) if even else rng.integers(GAP // 2, 3 * GAP // 2, count - 1)
    return np.concatenate([[0], gaps.cumsum()])


def _series(when: np.ndarray, points: np.ndarray) -> cs.KernelSeries:
    """Return the series of the kernels at these points of the tangent plane."""
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    units = np.hstack([np.cos(lengths), np.sinc(lengths / np.pi) * points])
    return cs.KernelSeries(when.tolist(), [_kernel(unit) for unit in units @ _rotation()])


@cache
def _rotation() -> np.ndarray:
    """Return an orthogonal matrix, so that no axis of a motion is an entry of the kernels."""
    return np.linalg.qr(np.random.default_rng(0).standard_normal((SPACE + 1, SPACE + 1)))[0]


def _entrance(count: int, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a first phase that moves to the second's start, in steps about twice as long."""
    usual = np.sqrt((np.diff(points, axis=0) ** 2).sum(axis=1).mean())
    direction = rng.standard_normal(SPACE)
    direction /= np.linalg.norm(direction)
    walk = rng.standard_normal((count, SPACE)) / np.sqrt(SPACE) + direction
    sizes = usual * np.linspace(1.6, 2.2, count)[:, None]
    return points[0] + (sizes * walk / np.sqrt(2)).cumsum(axis=0)[::-1]


def _kernel(point: np.ndarray) -> cs.Kernel:
    """Return the symmetric matrix with this point's coordinates and length."""
    values = np.zeros((SIDE, SIDE))
    rows, columns = np.tril_indices(SIDE)
    values[rows, columns] = point / np.where(rows != columns, np.sqrt(2), 1.0)
    values[columns, rows] = values[rows, columns]
    return cs.Kernel(torch.from_numpy(values))


CONFINED = Motion(confined=0.02, jitter=1e-3)
DIFFUSION = Motion(diffusion=0.03, jitter=1e-3)
MOTIONS: dict[str, Motion] = {
    "confined": CONFINED,
    "confined, few directions": replace(CONFINED, tilt=0.5),
    "confined, faster than the kernels": Motion(jitter=0.02),
    "free diffusion": DIFFUSION,
    "free diffusion, few directions": replace(DIFFUSION, tilt=0.5),
    "drift": Motion(drift=0.08, jitter=1e-3),
    "mixed": replace(CONFINED, relaxation=300.0, drift=0.045),
    "change point, then confined": replace(CONFINED, entrance=20),
}
"""The motions of the table in docs/cone.md, by name; its row "frozen" comes from `frozen`."""
