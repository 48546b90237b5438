"""The moving-block bootstrap of a mean over time, the rival of the intervals of `cone`.

Source: Künsch, Annals of Statistics 17:1217 (1989).
"""

from __future__ import annotations

import math

import numpy as np

RESAMPLES = 999


def interval(values: np.ndarray, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of the mean of a stationary series, [T]."""
    means = resampled_means(values, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled_means(values: np.ndarray, seed: int) -> np.ndarray:
    """Return the means of series put together from blocks of this series; [RESAMPLES]."""
    count, length = len(values), block_length(values)
    starts = np.random.default_rng(seed).integers(
        0, count - length + 1, (RESAMPLES, math.ceil(count / length))
    )
    places = (starts[:, :, None] + np.arange(length)).reshape(RESAMPLES, -1)[:, :count]
    return values[places].mean(axis=1)


def block_length(values: np.ndarray) -> int:
    """Return the block length that makes the error of the bootstrap's variance least.

    Politis & White, Econometric Reviews 23:53 (2004), as corrected by Patton, Politis & White,
    Econometric Reviews 28:372 (2009): b = (2 G² / D)^⅓ T^⅓ with G = Σ λ(k / M) |k| R(k) and
    D = 4/3 (Σ λ(k / M) R(k))²; λ is the flat-top window, and M twice the lag beyond which the
    autocorrelations are insignificant.
    """
    count = len(values)
    centred = values - values.mean()
    run = max(5, math.ceil(math.sqrt(math.log10(count))))
    most = min(math.ceil(math.sqrt(count)) + run, count - 1)
    covariance = np.array([centred[k:] @ centred[: count - k] for k in range(most + 1)]) / count
    bound = 2 * math.sqrt(math.log10(count) / count)
    large = np.flatnonzero(np.abs(covariance[1:]) > bound * covariance[0]) + 1
    last = 0
    for lag in large:  # significant ones after `run` insignificant ones in a row do not count
        if lag > last + run:
            break
        last = int(lag)
    width = min(2 * max(last, 1), most)
    lags = np.arange(width + 1)
    weighted = np.clip(2 * (1 - lags / width), 0, 1) * covariance[: width + 1]
    g = 2 * float(lags @ weighted)
    total = 2 * float(weighted.sum()) - float(weighted[0])
    length = (1.5 * g**2 / total**2 * count) ** (1 / 3) if total > 0 else math.inf
    longest = math.ceil(min(3 * math.sqrt(count), count / 3))
    return round(min(max(length, 1), longest))
