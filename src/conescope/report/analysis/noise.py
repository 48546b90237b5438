"""Is it only noise? The motion of the kernel against the same with less of SGD's noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from conescope.kernel.series import KernelSeries
from conescope.runs.reader import Run
from conescope.statistics.cone import Cone, Contrast, cone, contrast
from conescope.statistics.cone.phases import MINIMUM


@dataclass(frozen=True)
class Stretch:
    """Kernels of a training at one learning rate, or while it rises.

    Attributes:
        rate: the learning rate at its end; NaN if it was not recorded.
        first: iteration of the evaluation that first saw it; 0 for the first.
        last: iteration of the evaluation that last saw it, or of the last kernel. Between
            the two evaluations that a drop lies between, no kernel counts.
        kernels: their number.
    """

    rate: float
    first: int
    last: int
    kernels: int


@dataclass(frozen=True)
class NoiseTest:
    """The motion, and the same with less noise.

    Attributes:
        name: of the test.
        less: what makes the noise less.
        alone: see `metrics.cone.contrast.contrast`.
        found: None if there are fewer than ten kernels on either side.
    """

    name: str
    less: Literal["averaging", "the drop"]
    alone: float
    found: Contrast | None


def stretches(run: Run) -> list[Stretch]:
    """The parts of a run between drops of its learning rate, as its evaluations saw them."""
    steps, rates = (np.asarray(run.scalars[name]) for name in ("step", "learning_rate"))
    kernels = np.array(run.series.steps)
    begins = [0, *(np.flatnonzero(np.diff(rates) < 0) + 1).tolist()]
    found = []
    for begin, end in zip(begins, [*begins[1:], len(steps)], strict=True):
        first = int(steps[begin]) if begin > 0 else 0
        last = int(steps[end - 1]) if end < len(steps) else int(kernels[-1])
        rate = float(rates[end - 1]) if len(rates) else math.nan
        count = int(np.count_nonzero((first <= kernels) & (kernels <= last)))
        found.append(Stretch(rate, first, last, count))
    return found


def motion_in(series: KernelSeries, part: Stretch) -> Cone | None:
    """The motion within a stretch; None if it has fewer than ten kernels."""
    return cone(series, span=(part.first, part.last)) if part.kernels >= MINIMUM else None


def noise_tests(
    run: Run, parts: Sequence[Stretch], cones: Sequence[Cone | None], phase: Cone
) -> list[NoiseTest]:
    """What the run has to tell noise by: averaged weights, and drops of the learning rate.

    Args:
        run: the run.
        parts: its stretches.
        cones: their motions; None for those of too few kernels.
        phase: the motion that averaged weights are set against.
    """
    tests = []
    if run.averaged is not None:
        calm = None
        if sum(phase.first <= step <= phase.last for step in run.averaged.steps) >= MINIMUM:
            calm = cone(run.averaged, span=(phase.first, phase.last))
        found = None if calm is None else contrast(phase, calm, 0.0)
        tests.append(NoiseTest("averaged weights", "averaging", 0.0, found))
    for (before, noisy), (after, calm) in pairwise(zip(parts, cones, strict=True)):
        alone = math.sqrt(after.rate / before.rate)
        found = None if noisy is None or calm is None else contrast(noisy, calm, alone)
        tests.append(
            NoiseTest(f"drop to {after.rate:g} at {after.first:,}", "the drop", alone, found)
        )
    return tests
