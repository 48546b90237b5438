"""cone(): the test for the cone, from a series of kernels to a verdict and its numbers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from conescope.argument_types import checked
from conescope.errors import KernelError
from conescope.kernel.distance import Float64Array
from conescope.kernel.estimates import Measured
from conescope.kernel.series import KernelSeries
from conescope.statistics.cone import intervals
from conescope.statistics.cone.displacement import Displacement, mean_squared_displacement
from conescope.statistics.cone.intervals import Estimate
from conescope.statistics.cone.motions import MODELS, Fit, Likelihood
from conescope.statistics.cone.of_estimates import over_draws
from conescope.statistics.cone.phases import MINIMUM, Boundary, phase_boundary
from conescope.statistics.cone.tangent_plane import Tangents, tangents_at_axis
from conescope.statistics.cone.time_modes import time_modes
from conescope.statistics.cone.verdict import (
    Evidence,
    Kind,
    Verdict,
    decide,
    mean_shares,
    probabilities,
    weigh,
)
from conescope.statistics.uncertainty import numerical_floor


@checked
@dataclass(frozen=True)
class Cone:
    """The verdict on the kernel's motion in phase II, and its numbers with intervals.

    Lengths are those of chords between unit-length kernels, ‖k_s − k_t‖ = √(2 S). Angles are
    those on the sphere of unit-length kernels; for the small S of phase II the two agree.

    Attributes:
        verdict: "frozen", "confined", "free diffusion", "drift", "mixed" or "undecided"; always
            "undecided" if phase II has fewer than 20 kernels and is not frozen.
        probability: kind of motion → its probability; 1 minus their sum is undecided.
        shares: "noise", "confined", "diffusion", "drift" → share of the mean squared
            displacement at a lag as long as phase II, averaged over the models; they add up to 1.
        evidence: the models, by their criterion, the best first.
        boundary: t*, the iteration at which phase II begins; None if the velocity has no change
            point, and then all kernels count as phase II.
        first: the first iteration of phase II.
        last: the last iteration of phase II.
        exponent: α in 2 σ² + A dt^α, the power law of the mean squared displacement with
            jitter; 0 confined, 1 free diffusion, 2 drift. An interval from 0 to 2 says that
            jitter alone is enough.
        radius: R. The mean squared displacement of confined motion, jitter included, rises to
            the plateau 2 R², so that S(t, t + dt) in figure 1b rises to R².
        relaxation_time: τ_c in iterations. From 0 if the motion relaxes faster than kernels
            are taken; None if no part of the motion is seen to relax.
        axis: [T], weights w of the cone's axis Σ_t w_t k_t / ‖k_t‖, of length 1; 0 outside
            phase II.
        angles: [T], angle between each kernel and the axis, in radians; also outside phase II.
        half_angle: root mean square of phase II's angles, in radians.
        dimension: participation ratio of the motion's covariance, at least 1.
        start_distance: mean over phase II of S to H(0), the first kernel of the series.
        gap: mean number of iterations between neighbouring kernels of phase II.
        neighbour_distance: mean S between neighbouring kernels of phase II; the floor of
            figure 1b.
        floor: the S that noise in the measurement alone makes.
        displacement: the mean squared displacement against lag in phase II.
        fitted_parts: part of the best model → its mean squared displacement at the same lags, [J].
    """

    verdict: Verdict
    probability: dict[Kind, float]
    shares: dict[str, float]
    evidence: tuple[Evidence, ...]
    boundary: Estimate | None
    first: int
    last: int
    exponent: Estimate
    radius: Estimate
    relaxation_time: Estimate | None
    axis: Float64Array
    angles: Float64Array
    half_angle: Estimate
    dimension: Estimate
    start_distance: Estimate
    gap: float
    neighbour_distance: Estimate
    floor: float
    displacement: Displacement
    fitted_parts: dict[str, Float64Array]

    @property
    def fitted(self) -> Float64Array:
        """The best model's mean squared displacement, the sum over its parts; [J]."""
        return np.sum(list(self.fitted_parts.values()), axis=0)


@dataclass(frozen=True)
class _Motion:
    """The motion of one phase: its kernels seen from their axis, and all models fitted to it."""

    tangents: Tangents
    likelihood: Likelihood
    fits: Sequence[Fit]
    evidence: Sequence[Evidence]

    @property
    def weights(self) -> Float64Array:
        """The models' probabilities, in the order of the fits."""
        return np.array([model.probability for model in self.evidence])

    @property
    def best(self) -> Fit:
        """The most probable model."""
        return self.fits[int(self.weights.argmax())]


@checked
def cone(
    series: KernelSeries,
    *,
    span: tuple[int, int] | None = None,
    floor: float | None = None,
    level: float = 0.95,
) -> Cone:
    """Say what kind of motion the kernel makes in phase II, and how sure that is.

    Everything is computed from the matrix of distances. The method and its sources are in
    docs/cone.md, with a table of how often it is right on simulated series. Of a series of
    estimates, the uncertainty of the draws is in the verdict and in the intervals.

    Args:
        series: at least ten kernels, no two of them identical.
        span: first and last iteration of the stretch of training in which the boundary and phase
            II are looked for, such as one of constant learning rate; by default from 0 on.
        floor: the S that noise in the measurement alone makes; by default that of the kernels'
            numerical precision (`numerical_floor`).
        level: confidence of all intervals, in (0, 1).

    Raises:
        KernelError: if there are fewer than ten kernels in the span, some are identical, NaN or
            zero, phase II's differ in scale only, or an argument is out of range.
    """
    steps = np.array(series.steps)
    begin, end = _places(steps, span)
    _check(series, end - begin, floor, level)
    origin = 0 if span is None else span[0]

    def boundary_of(distances: Float64Array) -> Boundary | None:
        return phase_boundary(steps[begin:end], distances[begin:end, begin:end], level, origin)

    distances = series.distances() if series.draws is None else series.estimated.plain
    boundary = boundary_of(distances)
    start = begin if boundary is None else begin + boundary.index
    noise = numerical_floor(series.measured) if floor is None else floor
    place = _Place(steps, start, end, None if boundary is None else boundary.step)
    found = _read(distances, place, noise, level)
    if series.draws is None:
        return found
    rest = series.estimated.without
    boundaries = [other.step for other in map(boundary_of, rest) if other is not None]
    return over_draws(found, [_read(one, place, noise, level) for one in rest], boundaries, level)


@dataclass(frozen=True)
class _Place:
    """The part of a series that is phase II, from its first kernel to the one after its last."""

    steps: np.ndarray
    start: int
    end: int
    boundary: Estimate | None


def _read(distances: Float64Array, place: _Place, noise: float, level: float) -> Cone:
    """Return the cone of a series' distances, [T, T], whose phase II is known."""
    start, end = place.start, place.end
    late, within = place.steps[start:end], distances[start:end, start:end]
    motion = _fit_motion(late, within, noise)
    likelihood, best, modes = motion.likelihood, motion.best, motion.likelihood.modes
    probability = probabilities(motion.evidence)
    displacement = mean_squared_displacement(late, within)
    axis, angles = _axis_and_angles(distances, start, end, motion.tangents)
    return Cone(
        verdict=decide(probability, len(late)),
        probability=probability,
        shares=mean_shares(motion.evidence),
        evidence=tuple(sorted(motion.evidence, key=lambda model: model.criterion)),
        boundary=place.boundary,
        first=int(late[0]),
        last=int(late[-1]),
        exponent=intervals.of_shape(likelihood, ("jitter", "power"), level),
        radius=intervals.of_radius(motion.fits, motion.weights, level),
        relaxation_time=_relaxation_time(motion, level),
        axis=axis,
        angles=angles,
        half_angle=intervals.of_extent(likelihood, best, level),
        dimension=intervals.of_dimension(likelihood, best, level),
        start_distance=intervals.of_mean(distances[max(start, 1) : end, 0], level),
        gap=modes.duration / (len(late) - 1),
        neighbour_distance=intervals.of_mean_square(within.diagonal(1), level),
        floor=noise,
        displacement=displacement,
        fitted_parts=best.displacement_by_part(displacement.lags, modes.duration),
    )


def _fit_motion(steps: np.ndarray, distances: Float64Array, floor: float) -> _Motion:
    """Fit all models to the motion of one phase, and weigh them.

    Raises:
        KernelError: if all distances are zero.
    """
    if not distances.any():
        raise KernelError(
            f"from step {steps[0]} to {steps[-1]} the kernels differ in their scale only (S = 0 "
            "between any two), so there is no motion to tell; measure more samples"
        )
    tangents = tangents_at_axis(distances)
    likelihood = Likelihood(time_modes(steps, tangents.gram))
    fits = [likelihood.fit(parts) for parts in MODELS]
    size = float(likelihood.dimensions.sum())
    return _Motion(tangents, likelihood, fits, weigh(fits, size, likelihood.modes.duration, floor))


def _axis_and_angles(
    distances: Float64Array, start: int, end: int, tangents: Tangents
) -> tuple[Float64Array, Float64Array]:
    """Return `Cone.axis` and `Cone.angles` of all kernels, given those from `start` to `end`."""
    axis = np.zeros(len(distances))
    axis[start:end] = tangents.axis
    angles = np.arccos(np.clip((1.0 - distances) @ axis, -1.0, 1.0))
    angles[start:end] = tangents.angles
    return axis, angles


def _places(steps: np.ndarray, span: tuple[int, int] | None) -> tuple[int, int]:
    """Return the places of the first kernel of a span and of the first kernel after it."""
    if span is None:
        return 0, len(steps)
    return int(np.searchsorted(steps, span[0])), int(np.searchsorted(steps, span[1], "right"))


def _check(series: KernelSeries, count: int, floor: float | None, level: float) -> None:
    if count < MINIMUM:
        raise KernelError(
            f"the motion of {count} kernels tells nothing: at least {MINIMUM} are needed; take "
            "kernels more often, or train on"
        )
    if floor is not None and not (floor >= 0 and math.isfinite(floor)):
        raise KernelError(f"the noise floor is a distance S of at least 0, not {floor}")
    if not 0 < level < 1:
        raise KernelError(f"the confidence level lies between 0 and 1, not {level}")
    if series.kernels[0].values.numel() == 1:
        raise KernelError(
            "a kernel of one number has no direction that could change (S = 0 between any two); "
            "measure at least two samples"
        )
    seen: dict[bytes, int] = {}
    for step, kernel in zip(series.steps, series.measured, strict=True):
        earlier = seen.setdefault(_fingerprint(kernel), step)
        if earlier != step:
            raise KernelError(
                f"the kernels at steps {earlier} and {step} are identical to the last digit: "
                "that is the same file twice, not a lazy network; look at where the weights "
                "come from, and leave one of the two out"
            )


def _fingerprint(kernel: Measured) -> bytes:
    values = kernel.values.detach().cpu().contiguous()
    return hashlib.blake2b(values.view(torch.uint8).numpy().data, digest_size=16).digest()


def _relaxation_time(motion: _Motion, level: float) -> Estimate | None:
    """Return τ_c: an estimate if the best model has confined motion, a bound if only jitter."""
    best = motion.best.parts
    if "confined" in best:
        relaxing = np.array(["confined" in fit.parts for fit in motion.fits])
        chosen = [fit for fit in motion.fits if "confined" in fit.parts]
        return intervals.of_relaxation(chosen, motion.weights[relaxing], level)
    if "diffusion" in best:
        return None
    without_jitter = ("confined", *best[1:])
    high = math.exp(intervals.of_shape(motion.likelihood, without_jitter, level).high)
    return Estimate(0.0, 0.0, high)
