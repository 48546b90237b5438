"""contrast(): tell whether a motion is only SGD's noise, by a second motion with less noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from conescope.statistics.cone.cone_of_series import Cone
from conescope.statistics.cone.intervals import Estimate

Answer = Literal["yes", "no", "cannot be told", "no plateau", "slower"]
"""The answer to whether a number of the motion is noise alone.

"no plateau" and "slower" say why it cannot be told: one of the motions has no plateau, or a lower
learning rate, which is also the speed of any motion, explains the fall as well.
"""

SAME_GAP = 0.1
"""Relative difference up to which the gaps between kernels of two motions count as the same lag."""


@dataclass(frozen=True)
class Change:
    """A number of the motion, with SGD's noise and with less of it.

    Attributes:
        before: the number with the noise.
        after: the number with less noise.
        ratio: `after` / `before`. Its interval combines the two as if they were independent (Zou
            & Donner, Statistics in Medicine 27:1693, 2008), in logarithms.
        alone: the ratio if all of the number were noise; it is 1 if nothing is.
        line: the ratio half way between `alone` and 1, taken as lengths.
        is_noise: "yes" if the ratio's interval lies below the line, "no" if above.
    """

    before: Estimate
    after: Estimate
    ratio: Estimate
    alone: float
    line: float
    is_noise: Answer


@dataclass(frozen=True)
class Contrast:
    """How the motion changes when SGD's noise is reduced.

    Attributes:
        noisy: the motion with the noise.
        calm: the motion with less noise.
        radius: change of the plateau R. "no plateau" if in either motion diffusion outweighs
            confined motion, or the motion is probably too slow to be told from diffusion.
        half_angle: change of the cone's half-angle.
        floor: change of the mean S between neighbouring kernels, a squared length; None if the
            kernels' gaps differ. "slower" if it falls with the learning rate: that may be noise,
            or any motion, since the learning rate is also its speed.
    """

    noisy: Cone
    calm: Cone
    radius: Change
    half_angle: Change
    floor: Change | None


def contrast(noisy: Cone, calm: Cone, alone: float) -> Contrast:
    """Compare a motion with one that has less of SGD's noise.

    Args:
        noisy: the motion with the noise.
        calm: the motion with less noise.
        alone: the share of itself to which R would fall if it were noise alone: 0 if the noise is
            averaged away; √f if the learning rate falls to f times its value, since the variance
            of SGD's stationary noise is proportional to it (Mandt, Hoffman & Blei, JMLR 18:134,
            2017).
    """
    radius = _change(noisy.radius, calm.radius, alone)
    if not (_has_plateau(noisy) and _has_plateau(calm)):
        radius = replace(radius, is_noise="no plateau")
    floor = None
    if abs(calm.gap - noisy.gap) <= SAME_GAP * noisy.gap:
        floor = _change(noisy.neighbour_distance, calm.neighbour_distance, alone, power=2)
        if alone > 0 and floor.is_noise == "yes":
            floor = replace(floor, is_noise="slower")
    return Contrast(
        noisy=noisy,
        calm=calm,
        radius=radius,
        half_angle=_change(noisy.half_angle, calm.half_angle, alone),
        floor=floor,
    )


def _change(before: Estimate, after: Estimate, alone: float, power: int = 1) -> Change:
    """Return the change of a length, or of a power of a length."""
    ratio, line = _ratio(after, before), ((1 + alone) / 2) ** power
    answer: Answer = "cannot be told"
    if ratio.high < line:
        answer = "yes"
    elif ratio.low > line:
        answer = "no"
    return Change(before, after, ratio, alone**power, line, answer)


def _ratio(a: Estimate, b: Estimate) -> Estimate:
    value = a.value / b.value
    below = math.hypot(_logarithm(a.value, a.low), _logarithm(b.high, b.value))
    above = math.hypot(_logarithm(a.high, a.value), _logarithm(b.value, b.low))
    return Estimate(value, value * math.exp(-below), value * math.exp(min(above, 700.0)))


def _logarithm(larger: float, smaller: float) -> float:
    return math.log(larger / smaller) if smaller > 0 else math.inf


def _has_plateau(found: Cone) -> bool:
    """Return whether a plateau is seen: diffusion may hide that of a slow relaxation."""
    told = sum(found.probability.values()) - found.probability["free diffusion"]
    shares = found.shares
    return told >= 0.5 and shares["diffusion"] <= shares["confined"] + shares["noise"]
