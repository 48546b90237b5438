"""cone(): from a series of kernels to what motion it makes, with error bars."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from conescope.errors import KernelError
from conescope.kernel.distance import Float64Array, unit_vector
from conescope.kernel.matrix import Kernel
from conescope.statistics.cone import intervals
from conescope.statistics.cone.displacement import Displacement, mean_squared_displacement
from conescope.statistics.cone.estimate import Estimate
from conescope.statistics.cone.geometry import tangents_at_axis
from conescope.statistics.cone.models import MODELS, Fit, Likelihood
from conescope.statistics.cone.modes import time_modes
from conescope.statistics.cone.phases import MINIMUM, phase_boundary
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


class Series(Protocol):
    """What is read of a `KernelSeries`."""

    steps: tuple[int, ...]
    kernels: tuple[Kernel, ...]

    def distances(self) -> Float64Array:
        """[T, T], kernel distances S between all pairs."""
        ...


@dataclass(frozen=True)
class Cone:
    """What kind of motion the kernel makes in phase II.

    Lengths are those of chords between unit-length kernels, ‖k_s − k_t‖ = √(2 S), and angles
    on their sphere; for the small S of phase II the two agree.

    Attributes:
        verdict: "frozen", "confined", "free diffusion", "drift", "mixed" or "undecided";
            always the last if phase II has fewer than 20 kernels that are not frozen.
        probability: kind of motion → its probability; what lacks to 1 is undecided.
        shares: "noise", "confined", "diffusion", "drift" → share of the mean squared
            displacement at a lag of phase II's own length, averaged over the models; they add
            up to 1.
        evidence: the models weighed, best first.
        boundary: t*, the iteration at which phase II begins; None if the velocity has no change
            point, and then all kernels count as phase II.
        first: first iteration of phase II.
        last: its last iteration.
        exponent: α in 2 σ² + A dt^α, the power law of the mean squared displacement with
            jitter; 0 confined, 1 free diffusion, 2 drift. An interval from 0 to 2 says that
            jitter alone is enough.
        radius: R, half of the confined motion's plateau is R² (jitter included); R² is the
            floor of S(t, t + dt) in figure 1b.
        relaxation_time: τ_c in iterations. From 0 if the motion relaxes faster than kernels
            are taken; None if no part of the motion is seen to relax.
        axis: [T], weights w of the cone's axis Σ_t w_t k_t / ‖k_t‖, of length 1; 0 outside
            phase II.
        angles: [T], angle between each kernel and the axis, in radians; also outside phase II.
        half_angle: root mean square of phase II's angles, in radians.
        dimension: participation ratio of the motion's covariance, at least 1.
        start_distance: mean over phase II of S to the series' first kernel, H(0).
        gap: the mean number of iterations between neighbouring kernels of phase II.
        neighbour_distance: mean S between neighbouring kernels; the floor of figure 1b.
        floor: the S below which motion is noise.
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
        """[J], the best model's mean squared displacement, the sum of its parts'."""
        return np.sum(list(self.fitted_parts.values()), axis=0)


def cone(
    series: Series,
    *,
    span: tuple[int, int] | None = None,
    floor: float | None = None,
    level: float = 0.95,
) -> Cone:
    """Say what kind of motion the kernel makes in phase II, and how sure that is.

    Everything is computed from the matrix of distances. The method and its sources are in
    docs/cone.md, with a table of how often it is right on simulated series.

    Args:
        series: at least ten kernels, no two of them identical.
        span: first and last iteration of the stretch of training in which the boundary and phase
            II are looked for, such as one of constant learning rate; by default from 0 on.
        floor: the S that noise in the measurement alone makes; by default that of the kernels'
            numerical precision (`numerical_floor`).
        level: confidence of all intervals, in (0, 1).

    Raises:
        KernelError: if there are fewer than ten kernels in the span, some are identical, hold
            NaN or are zero, or an argument is out of range.
    """
    steps = np.array(series.steps)
    begin, end = _places(steps, span)
    _check(series, end - begin, floor, level)
    distances = _distances(series)
    boundary = phase_boundary(
        steps[begin:end], distances[begin:end, begin:end], level, 0 if span is None else span[0]
    )
    start = begin if boundary is None else begin + boundary.index
    noise = numerical_floor(series.kernels) if floor is None else floor
    late, within = steps[start:end], distances[start:end, start:end]
    tangents = tangents_at_axis(within)
    modes = time_modes(late, tangents.gram)
    likelihood = Likelihood(modes)
    fits = [likelihood.fit(parts) for parts in MODELS]
    size = float(likelihood.dimensions.sum())
    evidence = weigh(fits, size, modes.duration, noise)
    weights = np.array([model.probability for model in evidence])
    best = fits[int(weights.argmax())]
    probability = probabilities(evidence)
    displacement = mean_squared_displacement(late, within)
    axis = np.zeros(len(steps))
    axis[start:end] = tangents.axis
    angles = np.arccos(np.clip((1.0 - distances) @ axis, -1.0, 1.0))
    angles[start:end] = tangents.angles
    return Cone(
        verdict=decide(probability, len(late)),
        probability=probability,
        shares=mean_shares(evidence),
        evidence=tuple(sorted(evidence, key=lambda model: model.criterion)),
        boundary=None if boundary is None else boundary.step,
        first=int(late[0]),
        last=int(late[-1]),
        exponent=intervals.of_shape(likelihood, ("jitter", "power"), level),
        radius=intervals.of_radius(fits, weights, level),
        relaxation_time=_relaxation_time(likelihood, fits, weights, level),
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


def _places(steps: np.ndarray, span: tuple[int, int] | None) -> tuple[int, int]:
    """Place of the first kernel of a span, and of the first one behind it."""
    if span is None:
        return 0, len(steps)
    return int(np.searchsorted(steps, span[0])), int(np.searchsorted(steps, span[1], "right"))


def _check(series: Series, count: int, floor: float | None, level: float) -> None:
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
            "a kernel of one number has no direction that could move (S = 0 between any two); "
            "measure at least two samples"
        )
    seen: dict[bytes, int] = {}
    for step, kernel in zip(series.steps, series.kernels, strict=True):
        earlier = seen.setdefault(_fingerprint(kernel), step)
        if earlier != step:
            raise KernelError(
                f"the kernels at steps {earlier} and {step} are identical to the last digit: "
                "that is the same file twice, not a lazy network; look at where the weights "
                "come from, and leave one of the two out"
            )


def _fingerprint(kernel: Kernel) -> bytes:
    values = kernel.values.detach().cpu().contiguous()
    return hashlib.blake2b(values.view(torch.uint8).numpy().data, digest_size=16).digest()


def _distances(series: Series) -> Float64Array:
    """The series' distances; an error that one kernel is to blame for names its step."""
    try:
        return series.distances()
    except KernelError:
        for step, kernel in zip(series.steps, series.kernels, strict=True):
            try:
                unit_vector(kernel)
            except KernelError as error:
                raise KernelError(f"at step {step}, {error}") from error
        raise


def _relaxation_time(
    likelihood: Likelihood, fits: Sequence[Fit], weights: Float64Array, level: float
) -> Estimate | None:
    """τ_c: resolved if the best model has confined motion; a bound if it has jitter alone."""
    best = fits[int(weights.argmax())].parts
    if "confined" in best:
        relaxing = np.array(["confined" in fit.parts for fit in fits])
        chosen = [fit for fit in fits if "confined" in fit.parts]
        return intervals.of_relaxation(chosen, weights[relaxing], level)
    if "diffusion" in best:
        return None
    without_jitter = ("confined", *best[1:])
    high = math.exp(intervals.of_shape(likelihood, without_jitter, level).high)
    return Estimate(0.0, 0.0, high)
