"""Is the motion only noise? Two motions, the second one with less of SGD's noise than the first."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from conescope.statistics.cone.analysis import Cone
from conescope.statistics.cone.estimate import Estimate

Answer = Literal["yes", "no", "cannot be told", "no plateau", "slower"]
"""Whether a number of the motion is noise, or why that cannot be told."""

SAME_GAP = 0.1
"""Relative difference up to which two gaps between kernels count as one lag."""


@dataclass(frozen=True)
class Change:
    """A number of the motion with the noise, and with less of it.

    Attributes:
        before: with the noise.
        after: with less of it.
        ratio: `after` as a share of `before`. Its interval puts the two together as if they were
            independent (Zou & Donner, Statistics in Medicine 27:1693, 2008), in logarithms.
        alone: the ratio that would be if all of it were noise; 1 if none were.
        line: half way between the two, as a length.
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
    """What becomes of the motion when SGD's noise is made less.

    Attributes:
        noisy: the motion with the noise.
        calm: the motion with less of it.
        radius: change of the plateau R. There is none if in either phase a diffusion outweighs
            what is confined, or the motion is more likely than not too slow to be told from one.
        half_angle: change of the cone's half-angle.
        floor: change of the mean S between neighbouring kernels, a squared length; None if the
            kernels' gaps differ. Where it falls with the learning rate it may be noise, or any
            other motion at one lag, since that rate is also its speed: "slower".
    """

    noisy: Cone
    calm: Cone
    radius: Change
    half_angle: Change
    floor: Change | None


def contrast(noisy: Cone, calm: Cone, alone: float) -> Contrast:
    """Set a motion against one with less of SGD's noise.

    Args:
        noisy: the motion with the noise.
        calm: the motion with less of it.
        alone: to which share of itself R would fall if it were noise alone: 0 if the noise is
            taken away, √f if the learning rate, to which the variance of a noise ball is
            proportional, falls to f times its value (Mandt, Hoffman & Blei, JMLR 18:134, 2017).
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
    """The change of a length, or of a power of one."""
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
    """Whether there is a plateau to be seen: a diffusion may hide that of a slow relaxation."""
    told = sum(found.probability.values()) - found.probability["free diffusion"]
    shares = found.shares
    return told >= 0.5 and shares["diffusion"] <= shares["confined"] + shares["noise"]
