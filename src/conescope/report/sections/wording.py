"""Numbers as text, in the same way in all sections."""

from __future__ import annotations

import numpy as np

from conescope.statistics.cone import Estimate


def text_of(estimate: Estimate, unit: str = "") -> str:
    """Return an estimate with its interval, such as "0.12 (0.1 to 0.15)"."""
    value, low, high = map(digits, (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low} to {high}){unit and ' ' + unit}"


def digits(value: float) -> str:
    """Return three digits, or all of a whole number; 0 and ∞ for ends that nothing bounds."""
    if value > 0 and not 1e-15 < value < 1e15:
        return "0" if value < 1 else "∞"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def course(values: np.ndarray) -> str:
    """Return the first and the last of some values, [T], or the only one."""
    if len(values) == 1:
        return digits(values[0])
    return f"{digits(values[0])} at first, {digits(values[-1])} at last"
