"""The three signs of lazy training, each with an interval, and the verdict that they give.

Training is lazy if the network stays, all the way, what its first-order model at the start is
(Chizat, Oyallon & Bach, arXiv:1812.07956). So the kernel must not move, the two must end as the
same function, and as equally good classifiers. Malladi et al. (arXiv:2210.05643) ask the same of
language models: that the first order describes the training, and that the gradients stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import ndtri, stdtrit

from conescope.kernel.distance import Float64Array

LEVEL = 0.95
"""The confidence of all intervals."""

SAME_FUNCTION = 0.1
"""Below this share of the way that training took in function space, fine-tuned model and
linearisation count as one function: a tenth of what was learned is what the first order misses."""

SAME_KERNEL = 0.02
"""Below this S(T, 0) the kernel counts as constant. √(2 S) is how far the kernel has turned, as a
share of its size: 0.2 here. A kernel that turns steadily is on the way half as far off as at the
end, and with it the function: so this is the same tolerance as `SAME_FUNCTION`."""

SAME_ACCURACY = 0.05
"""Below this difference two test accuracies count as equal: five points, which a hundred test
samples can just tell. It is the coarsest of the signs, since labels hide how far the logits are."""

RESAMPLES = 1000
"""Bootstrap samples of the test set."""

Answer = Literal["yes", "no", "cannot tell"]
"""Whether a sign says that training was lazy."""

Verdict = Literal["lazy", "not lazy", "cannot tell"]
"""Whether training was lazy."""


@dataclass(frozen=True)
class Interval:
    """A number with its interval of confidence `LEVEL`.

    Attributes:
        value: the mean over seeds.
        low: the lower end.
        high: the upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Sign:
    """One of the signs.

    Attributes:
        name: "kernel", "function" or "accuracy".
        measured: what was measured.
        tolerance: below it, in size, training was lazy by this sign.
    """

    name: str
    measured: Interval
    tolerance: float

    @property
    def says_lazy(self) -> Answer:
        """Whether the whole interval lies within the tolerance, or all of it beyond."""
        low, high = self.measured.low, self.measured.high
        if -self.tolerance < low and high < self.tolerance:
            return "yes"
        if low > self.tolerance or high < -self.tolerance:
            return "no"
        return "cannot tell"


def verdict(signs: Sequence[Sign]) -> Verdict:
    """Return the verdict of kernel, function and accuracy, in this order.

    One "no" makes it "not lazy". It is "lazy" if kernel and function say yes: accuracy follows from
    the function, and small test sets leave it open.
    """
    answers = [sign.says_lazy for sign in signs]
    if "no" in answers:
        return "not lazy"
    return "lazy" if answers[:2] == ["yes", "yes"] else "cannot tell"


def reasons(signs: Sequence[Sign]) -> str:
    """Say what each sign says, such as "by the kernel no, by the accuracy yes"."""
    return ", ".join(f"by the {sign.name} {sign.says_lazy}" for sign in signs)


def interval(values: Sequence[float] | Float64Array, error: float, least: float = 0.0) -> Interval:
    """Return the mean over R seeds, with an interval that covers seeds and samples.

    The two are independent, so their half-widths add in squares: t_{R−1} s / √R by Student for the
    spread s over seeds, and z times the error by the choice of the samples, which all seeds share.
    One seed has no spread, and its interval is of the samples alone.

    Args:
        values: [R], a number for each seed.
        error: the standard error by the choice of the samples.
        least: the least number possible, at which the interval ends.
    """
    values = np.asarray(values, dtype=np.float64)
    mean, count = float(values.mean()), len(values)
    width = float(ndtri((1 + LEVEL) / 2)) * error
    if count > 1:
        spread = float(values.std(ddof=1)) / math.sqrt(count)
        width = math.hypot(width, float(stdtrit(count - 1, (1 + LEVEL) / 2)) * spread)
    if not math.isfinite(mean) or not math.isfinite(width):
        return Interval(mean, -math.inf, math.inf)
    return Interval(mean, max(mean - width, least), mean + width)


def accuracy(correct: Float64Array) -> Interval:
    """Return the test accuracy over seeds.

    The error by the choice of the test samples is that of a binomial with two successes and two
    failures added (Agresti & Coull, American Statistician 52:119, 1998), about which the interval
    then lies; so it is not empty where all or none are correct.

    Args:
        correct: [R, m], whether each of m test samples is classified correctly, 0 or 1.
    """
    m = correct.shape[1]
    share = (correct.sum(axis=1) + 2) / (m + 4)
    mean = float(share.mean())
    found = interval(share, math.sqrt(mean * (1 - mean) / (m + 4)))
    return Interval(float(correct.mean()), found.low, min(found.high, 1.0))


def accuracy_difference(a: Float64Array, b: Float64Array) -> Interval:
    """Return the difference of two test accuracies on the same samples, over seeds.

    Half a sample is added to each cell of the table of agreement, which makes two more samples, one
    for each side (Agresti & Min, Statistics in Medicine 24:729, 2005); of several seeds, a sample
    counts with its mean difference.

    Args:
        a: [R, m], whether each test sample is classified correctly, 0 or 1.
        b: the same of the other classifier.
    """
    apart = a - b
    m, mean = apart.shape[1] + 2, apart.mean(axis=0)
    variance = ((mean**2).sum() + 1 - mean.sum() ** 2 / m) / m**2
    found = interval(apart.mean(axis=1), math.sqrt(variance), least=-1.0)
    return Interval(found.value, found.low, min(found.high, 1.0))


def function_distance(a: Float64Array, b: Float64Array) -> Float64Array:
    """Return the distance between two functions on each of m samples, squared: [m].

    d_i² = (1/c) Σ_k (f̃_k(x_i) − g̃_k(x_i))², where f̃ are logits minus their mean over the c
    outputs, which a softmax does not see. The distance of the functions is √(Σ_i d_i² / m), in
    nats.

    Args:
        a: logits f, [m, c].
        b: logits g, [m, c].
    """
    difference = a - b
    difference = difference - difference.mean(axis=1, keepdims=True)
    return (difference**2).mean(axis=1)


def relative_distance(
    start: Float64Array, tuned: Float64Array, linear: Float64Array
) -> tuple[float, float]:
    """Return D = d(f_T, f_lin,T) / d(f_T, f_0) on the test samples, and its standard error.

    The error is that of the bootstrap over the test samples, NaN for a single one. D is NaN if
    training has not changed the function, so that there is nothing to compare.

    Args:
        start: logits f_0 at the start, [m, c].
        tuned: logits f_T of the fine-tuned model at the end.
        linear: logits f_lin,T of the linearised model at the end.
    """
    apart, moved = function_distance(tuned, linear), function_distance(tuned, start)
    rounding = np.finfo(np.float32).eps * max(float(np.abs(start).max()), 1e-30)
    if math.sqrt(moved.mean()) <= 8 * rounding:
        return math.nan, math.nan
    ratio = math.sqrt(apart.mean() / moved.mean())
    m = len(apart)
    if m == 1:
        return ratio, math.nan
    rng = np.random.default_rng(0)
    weights = rng.multinomial(m, np.full(m, 1.0 / m), size=RESAMPLES).astype(float)
    resampled = weights @ moved
    ratios = np.sqrt((weights @ apart)[resampled > 0] / resampled[resampled > 0])
    return ratio, float(ratios.std(ddof=1))
