"""Error bars of the kernel distance S, over the choice of the probe, and its floor by rounding.

With the probe's samples drawn from a population, ⟨K, K′⟩ = Σ_ij K_ij K′_ij is a V-statistic of
degree two: its diagonal pairs a sample with itself, and biases it. Without the diagonal it is a
U-statistic, whose mean is the population's value (Hoeffding, Annals of Mathematical Statistics
19:293, 1948). A resampled probe only changes the weights on K ∘ K′, so no kernel has to be computed
again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import stdtrit

from conescope.errors import KernelError
from conescope.kernel.distance import Float64Array, check_square
from conescope.kernel.estimates import (
    Measured,
    jackknife,
    measured_distance,
    parts_of,
    without_parts,
)
from conescope.kernel.features import Features
from conescope.kernel.matrix import Kernel

ROUNDING = 8.0
"""Relative error of a kernel's entries, in machine epsilons of its floating-point type: float32
kernels were off by 2e-7 to 8e-7 against float64."""


@dataclass(frozen=True)
class SampledDistance:
    """The kernel distance S between two kernels, as an estimate from a probe of n samples.

    Attributes:
        plain: S of the kernels as they are, diagonal included.
        unbiased: S by products without the diagonal, the estimate for the population.
        standard_error: standard error of `unbiased`, over resampled probes and, of estimates,
            over their draws.
        low: lower end of the confidence interval of the population's S.
        high: upper end of the confidence interval.
        floor: the S that rounding alone makes; a smaller S tells nothing.
    """

    plain: float
    unbiased: float
    standard_error: float
    low: float
    high: float
    floor: float


def sampled_distance(
    a: Measured, b: Measured, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> SampledDistance:
    """Return S between two kernels, with error bars over the choice of the probe's samples.

    The standard error is the bootstrap's over samples (Efron & Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 6); a sample and its own copy in a resample make no pair. The
    interval takes log S as Student's t with n − 1 degrees of freedom. Of two estimates by the same
    R draws, S has no bias by their noise, and the jackknife's error over the draws, with R − 1
    degrees of freedom, adds in squares: probe and draws are chosen independently.

    Args:
        a: a kernel of n samples with themselves, [n, n] or [n, c, n, c], or features [n, dim]; n at
            least 10.
        b: a kernel of the same samples and convention, or features of the same dimensions.
        level: confidence of the interval, in (0, 1).
        resamples: number of resampled probes, at least 100.
        seed: seed of the resampling.

    Raises:
        KernelError: if the kernels cannot be compared, are not square kernels of at least ten
            samples, or an argument is out of range.
    """
    plain = measured_distance(a, b)
    first, second = _kernel(a), _kernel(b)
    _check(first, level, resamples)
    products = [
        _products_by_sample(*pair) for pair in ((first, second), (first, first), (second, second))
    ]
    n = first.values.shape[0]
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(n, np.full(n, 1.0 / n), size=resamples).astype(float)
    draws = _distance(*(((weights @ p) * weights).sum(axis=1) for p in products))
    unbiased = float(_distance(*(p.sum() for p in products)))
    error = float(draws.std(ddof=1))
    width = float(stdtrit(n - 1, (1 + level) / 2)) * error
    if (parts := parts_of([a, b])) is not None:
        unbiased, over_draws = _over_draws(a, b, unbiased)
        width = math.hypot(width, float(stdtrit(parts - 1, (1 + level) / 2)) * over_draws)
        error = math.hypot(error, over_draws)
    factor = math.exp(min(width / unbiased, 700.0)) if unbiased > 0 else 1.0
    return SampledDistance(
        plain=plain,
        unbiased=unbiased,
        standard_error=error,
        low=unbiased / factor,
        high=unbiased * factor,
        floor=numerical_floor([a, b]),
    )


def numerical_floor(kernels: Sequence[Measured]) -> float:
    """Return the S that rounding alone makes between two kernels of the same weights.

    Two kernels whose entries have independent relative errors δ lie S = δ² apart. δ is eight times
    the machine epsilon of the least precise kernel, as measured. S can exceed this where rounding
    flips the ReLU or the max-pooling of a sample that lies on the edge.

    Args:
        kernels: the kernels, or features whose products estimate them; at least one.
    """
    epsilon = max(torch.finfo(kernel.values.dtype).eps for kernel in kernels)
    return (ROUNDING * epsilon) ** 2


def _kernel(one: Measured) -> Kernel:
    return Kernel(one.values @ one.values.mT) if isinstance(one, Features) else one


def _over_draws(a: Measured, b: Measured, whole: float) -> tuple[float, float]:
    """Return S by products without the diagonal, without the draws' bias, and its error."""
    without = []
    for first, second in zip(without_parts(a), without_parts(b), strict=True):
        pairs = ((first, second), (first, first), (second, second))
        without.append(_distance(*(_products_by_sample(*pair).sum() for pair in pairs)))
    value, error = jackknife(np.array(whole), np.array(without))
    return max(float(value), 0.0), float(error)


def _check(kernel: Kernel, level: float, resamples: int) -> None:
    check_square(kernel)
    rows = kernel.values.shape[0]
    if rows < 10:
        raise KernelError(f"{rows} samples are too few to resample; take a probe of at least 10")
    if not 0 < level < 1:
        raise KernelError(f"the confidence level lies between 0 and 1, not {level}")
    if resamples < 100:
        raise KernelError(f"{resamples} resamples give no interval; take at least 100")


def _products_by_sample(a: Kernel, b: Kernel) -> Float64Array:
    """Return K ∘ K′, summed over outputs, with zeros on the diagonal; [n, n]."""
    product = a.values.detach().cpu().double() * b.values.detach().cpu().double()
    if a.outputs == "full":
        product = product.sum(dim=(1, 3))
    return product.fill_diagonal_(0.0).numpy()


def _distance(cross: Float64Array, first: Float64Array, second: Float64Array) -> Float64Array:
    return 1.0 - cross / np.sqrt(first * second)
