"""Models of motion: sums of jitter, confined motion, diffusion and drift, fitted by likelihood.

The mean squared displacement of a sum of independent motions is the sum of theirs:

    E‖k(t + dt) − k(t)‖² = 2 σ² + 2 R² (1 − exp(−dt / τ)) + b dt + v² dt²,   dt > 0

The power g_k in mode of time k is about s_k χ²(q_k) / q_k, so that the log-likelihood is
−½ Σ_k q_k (log s_k + g_k / s_k), as Whittle's is (Arkiv för Matematik 2:423, 1953).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.optimize import minimize

from conescope.kernel.distance import Float64Array
from conescope.statistics.cone.dimension import concentration
from conescope.statistics.cone.time_modes import Modes

Parts = tuple[str, ...]
"""The names of the motions that a model sums, its parts."""

MODELS: tuple[Parts, ...] = (
    ("jitter",),
    ("jitter", "confined"),
    ("jitter", "diffusion"),
    ("jitter", "drift"),
    ("jitter", "confined", "diffusion"),
    ("jitter", "confined", "drift"),
    ("jitter", "diffusion", "drift"),
    ("jitter", "confined", "diffusion", "drift"),
)
"""The models, every sum of motions with jitter, without which nothing is measured."""

FULL = MODELS[-1]
GRID = 25
"""Number of values of a shape parameter at which spectra are computed, with splines between."""
TINY = 1e-12
"""Smallest power of a mode, and smallest amplitude, in units of the mean power."""


class Spectra:
    """The expected power in each mode of a motion's parts, at amplitude 1.

    The parts and their amplitudes are "jitter", σ²; "confined", R², with the shape parameter log τ;
    "diffusion", b L; "drift", (v L)²; and "power", the mean squared displacement at the lag L of a
    motion ∝ dt^α, with the shape parameter α. L is the length of the phase.
    """

    def __init__(self, modes: Modes) -> None:
        lags = np.abs(modes.times[:, None] - modes.times[None, :])
        relative = lags / modes.duration
        line = np.arange(len(modes.power)) == 0
        self._fixed = {
            "jitter": np.ones(len(modes.power)),
            "diffusion": modes.variances(relative),
            "drift": np.where(line, modes.variances(relative**2), 0.0),
        }
        # Relaxation within a third of a gap is jitter: 95 % of the way is done after 3 τ.
        times = np.linspace(np.log(modes.gap / 3), np.log(modes.duration), GRID)
        powers = np.linspace(0.05, 2.0, GRID)
        self.grids = {"confined": times, "power": powers}
        self._shaped = {
            "confined": CubicSpline(
                times, [modes.variances(2 - 2 * np.exp(-lags / np.exp(time))) for time in times]
            ),
            "power": CubicSpline(powers, [modes.variances(relative**power) for power in powers]),
        }
        self._slopes = {part: spline.derivative() for part, spline in self._shaped.items()}

    def grid(self, parts: Parts) -> Float64Array:
        """Return values of these parts' shape parameter, rising, [GRID]; [0] if there is none."""
        return next((self.grids[part] for part in parts if part in self.grids), np.zeros(0))

    def of(self, part: str, shape: float) -> Float64Array:
        """Return the expected power of a part in each mode; [T − 1]."""
        if part in self._fixed:
            return self._fixed[part]
        return np.clip(self._shaped[part](shape), 0.0, None)

    def slope(self, part: str, shape: float) -> Float64Array:
        """Return the derivative of `of` by the shape parameter; [T − 1]."""
        return self._slopes[part](shape)


@dataclass(frozen=True)
class Fit:
    """A sum of motions at the maximum of its likelihood.

    Attributes:
        parts: the motions in the sum; at most one has a shape parameter.
        amplitudes: part → its amplitude, as in `Spectra`.
        shape: the shape parameter, log τ or α; NaN if no part has one.
        powers: [P, T − 1], each part's expected power in each mode.
        deviance: −2 log-likelihood, up to a constant that all models share.
        freedom: number F of parameters: the amplitudes, then the shape if it is free.
        covariance: [F, F], of the logarithms of the amplitudes and of the shape; the inverse of
            the expected information.
        information: [F, T − 1], the information of each mode on each parameter alone.
        dimensions: [T − 1], degrees of freedom of each mode's power. A drift does not vary at
            random, so that the first mode has more of them where there is a drift.
    """

    parts: Parts
    amplitudes: dict[str, float]
    shape: float
    powers: Float64Array
    deviance: float
    freedom: int
    covariance: Float64Array
    information: Float64Array
    dimensions: Float64Array

    @property
    def random(self) -> tuple[Float64Array, Float64Array]:
        """The expected power of jitter and of slow random motion in each mode; [T − 1] each."""
        slow = [
            power
            for part, power in zip(self.parts, self.powers, strict=True)
            if part not in ("jitter", "drift")
        ]
        return self.powers[0], np.sum(slow, axis=0) if slow else np.zeros(self.powers.shape[1])

    @property
    def steady(self) -> float:
        """The expected power of the drift in the first mode."""
        return float(self.powers[self.parts.index("drift"), 0]) if "drift" in self.parts else 0.0

    def squared_displacement(self, lags: Float64Array, duration: float) -> Float64Array:
        """Return E‖k(t + dt) − k(t)‖² of the whole motion, as `displacement_by_part`."""
        return np.sum(list(self.displacement_by_part(lags, duration).values()), axis=0)

    def displacement_by_part(self, lags: Float64Array, duration: float) -> dict[str, Float64Array]:
        """Return each part's E‖k(t + dt) − k(t)‖², of the shape of `lags`.

        Args:
            lags: the lags dt > 0, in iterations, of any shape.
            duration: the length L of the phase, in iterations.
        """
        relative = lags / duration
        unit = {
            "jitter": np.full_like(lags, 2.0),
            "confined": -2 * np.expm1(-lags / np.exp(self.shape)),
            "diffusion": relative,
            "drift": relative**2,
        }
        return {part: amplitude * unit[part] for part, amplitude in self.amplitudes.items()}


class Likelihood:
    """The likelihood of sums of motions, given the modes of one phase."""

    def __init__(self, modes: Modes) -> None:
        self.modes = modes
        self.spectra = Spectra(modes)
        self.scale = float(modes.power.mean())
        self.power = modes.power / self.scale
        self.dimensions = np.ones(len(self.power))
        full = self.fit(FULL)
        jitter, slow = full.random
        concentrated = concentration(modes.gram[1:, 1:], jitter[1:], slow[1:])
        self.dimensions = concentrated.dimensions(jitter, slow)

    def fit(self, parts: Parts, shape: float | None = None) -> Fit:
        """Maximise the likelihood of a sum of motions.

        Args:
            parts: the motions in the sum.
            shape: the value at which the shape parameter is held; by default it is fitted.
        """
        grid = self.spectra.grid(parts)
        if len(grid) == 0:
            return self._maximise(parts, 0.0, free=False)
        if shape is not None:
            return self._maximise(parts, shape, free=False)
        starts = grid[[GRID // 5, GRID // 2, 4 * GRID // 5]]
        return min((self._maximise(parts, s, free=True) for s in starts), key=lambda f: f.deviance)

    def _maximise(self, parts: Parts, shape: float, *, free: bool) -> Fit:
        count = len(parts)
        unit = np.array([self.spectra.of(part, shape).mean() for part in parts])
        start = np.append(-np.log(unit * count), shape)
        limits = [(first + np.log(TINY), first + 12.0) for first in start[:count]]
        grid = self.spectra.grid(parts)
        limits.append((grid[0], grid[-1]) if free else (shape, shape))
        found = minimize(
            self._objective, start, (parts,), jac=True, method="L-BFGS-B", bounds=limits
        )
        return self._summary(parts, found.x, 2.0 * float(found.fun), free=free)

    def _objective(self, parameters: Float64Array, parts: Parts) -> tuple[float, Float64Array]:
        powers, by_shape = self._powers(parameters, parts)
        total = powers.sum(axis=0) + TINY
        ratio = self.power / total
        value = 0.5 * float(self.dimensions @ (np.log(total) + ratio))
        slopes = 0.5 * self.dimensions * (1.0 - ratio) / total
        return value, np.append(powers @ slopes, by_shape @ slopes)

    def _powers(self, parameters: Float64Array, parts: Parts) -> tuple[Float64Array, Float64Array]:
        """Return each part's power in each mode, [P, T − 1], and their derivative by the shape."""
        amplitudes, shape = np.exp(parameters[:-1]), float(parameters[-1])
        powers = np.array([self.spectra.of(part, shape) for part in parts]) * amplitudes[:, None]
        by_shape = np.zeros(powers.shape[1])
        for amplitude, part in zip(amplitudes, parts, strict=True):
            if part in self.spectra.grids:
                by_shape = amplitude * self.spectra.slope(part, shape)
        return powers, by_shape

    def _summary(
        self, parts: Parts, parameters: Float64Array, deviance: float, *, free: bool
    ) -> Fit:
        powers, by_shape = self._powers(parameters, parts)
        total = powers.sum(axis=0) + TINY
        dimensions = self.dimensions.copy()
        if "drift" in parts:
            steady = powers[parts.index("drift"), 0]
            random = total[0] - steady
            # Var ‖m + x‖² = 2 s²/q + 4 m² s/q for a fixed m and random x: a non-central χ².
            dimensions[0] *= total[0] ** 2 / (random**2 + 2 * random * steady)
        rows = [*powers, by_shape] if free else [*powers]
        slopes = np.array(rows) / total
        covariance = np.linalg.pinv(0.5 * (slopes * dimensions) @ slopes.T, hermitian=True)
        amplitudes = np.exp(parameters[:-1]) * self.scale
        return Fit(
            parts=parts,
            amplitudes=dict(zip(parts, amplitudes.tolist(), strict=True)),
            shape=float(parameters[-1]) if free else float("nan"),
            powers=powers * self.scale,
            deviance=deviance,
            freedom=len(rows),
            covariance=covariance,
            information=0.5 * dimensions * slopes**2,
            dimensions=dimensions,
        )
