"""over_seeds(): one verdict and one set of numbers from runs that differ only in their seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtrit

from conescope.errors import KernelError
from conescope.statistics.cone.cone_of_series import Cone
from conescope.statistics.cone.intervals import Estimate
from conescope.statistics.cone.verdict import CERTAIN, Kind, Verdict


@dataclass(frozen=True)
class SeedCone:
    """The cones of several runs, combined.

    Every interval is that of the mean over seeds, by Student's t with one degree of freedom
    fewer than seeds. It covers what differs from run to run, which the interval of one run does
    not. It ends at 0 for quantities that cannot be negative.

    Attributes:
        verdict: the verdict by the mean probabilities; "undecided" if the seeds disagree.
        probability: kind of motion → its mean probability.
        shares: part → its mean share, as in `Cone`.
        boundary: mean of t*; None if any run has none.
        exponent: mean of α, as in `Cone`.
        radius: mean of R, as in `Cone`.
        half_angle: mean of the half-angle, in radians.
        start_distance: mean of S to H(0), as in `Cone`.
    """

    verdict: Verdict
    probability: dict[Kind, float]
    shares: dict[str, float]
    boundary: Estimate | None
    exponent: Estimate
    radius: Estimate
    half_angle: Estimate
    start_distance: Estimate


def over_seeds(cones: Sequence[Cone], level: float = 0.95) -> SeedCone:
    """Combine the cones of runs that differ only in their seed.

    Args:
        cones: the cones, at least two, each of another run.
        level: confidence of the intervals, in (0, 1).

    Raises:
        KernelError: if there are fewer than two, or the level is out of range.
    """
    if len(cones) < 2:
        raise KernelError(
            f"an interval over seeds needs at least two runs, not {len(cones)}; run more seeds"
        )
    if not 0 < level < 1:
        raise KernelError(f"the confidence level lies between 0 and 1, not {level}")

    def mean(read: Callable[[Cone], Estimate], least: float = 0.0) -> Estimate:
        return mean_over_seeds([read(cone).value for cone in cones], level, least)

    probability: dict[Kind, float] = {
        kind: fmean(cone.probability[kind] for cone in cones) for kind in cones[0].probability
    }
    best = max(probability, key=lambda kind: probability[kind])
    boundaries = [cone.boundary.value for cone in cones if cone.boundary is not None]
    return SeedCone(
        verdict=best if probability[best] >= CERTAIN else "undecided",
        probability=probability,
        shares={part: fmean(cone.shares[part] for cone in cones) for part in cones[0].shares},
        boundary=mean_over_seeds(boundaries, level) if len(boundaries) == len(cones) else None,
        exponent=mean(lambda cone: cone.exponent, -math.inf),
        radius=mean(lambda cone: cone.radius),
        half_angle=mean(lambda cone: cone.half_angle),
        start_distance=mean(lambda cone: cone.start_distance),
    )


def mean_over_seeds(
    values: Sequence[float], level: float, least: float = 0.0, most: float = math.inf
) -> Estimate:
    """Return the mean of at least two values with its interval by Student's t.

    Args:
        values: a value for each seed.
        level: confidence of the interval, in (0, 1).
        least: where the interval ends at the latest, for quantities that cannot be lower.
        most: the same, for quantities that cannot be higher.
    """
    quantile = float(stdtrit(len(values) - 1, (1 + level) / 2))
    mean, width = fmean(values), quantile * stdev(values) / math.sqrt(len(values))
    return Estimate(mean, max(mean - width, least), min(mean + width, most))
