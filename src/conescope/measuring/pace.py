"""Decide how often to measure, so that measuring keeps to a share of the wall time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from conescope.errors import RecipeError


class Pace:
    """A decision, at each scheduled iteration, whether there is time to measure.

    Every scheduled iteration is measured, or every second, fourth, eighth … as time allows: powers
    of two keep the lags between measurements regular when the pace changes. The first one is always
    measured, since it shows what a measurement costs.

    Args:
        share: the share of the wall time since the first scheduled iteration that measuring may
            take, in (0, 1); None for no limit.
        clock: returns the time in seconds.

    Attributes:
        stride: at most one of so many scheduled iterations is measured.

    Raises:
        RecipeError: if `share` is no number between 0 and 1.
    """

    def __init__(self, share: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        if share is not None and not 0 < share < 1:
            raise RecipeError(f"budget is a share of the wall time between 0 and 1, not {share!r}")
        self.share, self.stride = share, 1
        self._clock, self._begun = clock, clock()
        self._asked, self._spent, self._cost = 0, 0.0, 0.0

    def passes(self) -> bool:
        """Return whether to measure at the next scheduled iteration; call it once for each."""
        number, self._asked = self._asked, self._asked + 1
        if number == 0:
            self._begun = self._clock()
        if self.share is None or number == 0:
            return True
        elapsed = self._clock() - self._begun
        between = max((elapsed - self._spent) / number, 1e-9)
        least = self._cost * (1 - self.share) / (self.share * between)
        self.stride = 2 ** math.ceil(math.log2(max(least, 1)))
        within = self._spent + self._cost <= self.share * (elapsed + self._cost)
        return within and number % self.stride == 0

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Count the time that passes inside as that of a measurement."""
        begun = self._clock()
        yield
        self._cost = self._clock() - begun
        self._spent += self._cost
