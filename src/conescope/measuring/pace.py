"""Pace: how often to measure, so that measuring keeps to a share of the wall time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from conescope.errors import RecipeError


class Pace:
    """Lets every moment pass, or every second, fourth, eighth … as time allows.

    Powers of two keep the lags between measurements regular when the pace changes. The first
    moment always passes, for nobody knows yet what it costs.

    Args:
        share: of the wall time since the first moment, in (0, 1); None for no limit.
        clock: gives the time in seconds.

    Attributes:
        stride: every how many moments one may pass.

    Raises:
        RecipeError: if `share` is none.
    """

    def __init__(self, share: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        if share is not None and not 0 < share < 1:
            raise RecipeError(f"budget is a share of the wall time between 0 and 1, not {share!r}")
        self.share, self.stride = share, 1
        self._clock, self._begun = clock, clock()
        self._moments, self._spent, self._cost = 0, 0.0, 0.0

    def passes(self) -> bool:
        """Whether to measure at this moment, the next one of the schedule."""
        number, self._moments = self._moments, self._moments + 1
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
        """Count the time of a measurement."""
        begun = self._clock()
        yield
        self._cost = self._clock() - begun
        self._spent += self._cost
