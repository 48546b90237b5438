"""Forecast a sweep: each distinct cost once, not each run."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from conescope.errors import ConescopeError, TrainingError
from conescope.experiments.forecast import Forecast, forecast
from conescope.experiments.sweep.sweep_folder import SweepRun

_ENOUGH_SECONDS = 5.0
"""The time after which no further forecast is begun: a plan is there to be read at once."""

_FREE = ("seed", "name", "description", "optimizer.lr", "optimizer.weight_decay")
"""Fields that change no cost, as those of the learning-rate schedule do not."""


@dataclass(frozen=True)
class SweepCost:
    """What the runs that are left will cost on this machine, each counted from its beginning.

    Attributes:
        kinds: the number of distinct costs among them.
        timed: how many of these were forecast, drawn by chance; the others count as their mean. 0
            if every trial ended by an error that is passed over.
        shortest: expected time of the shortest run, in seconds.
        longest: expected time of the longest run, in seconds.
        seconds: expected time of all runs one after the other, in seconds.
        stored_bytes: what they store, in bytes.
        memory: most bytes that one kernel takes beside model and result; 0 for projections.
    """

    kinds: int
    timed: int
    shortest: float
    longest: float
    seconds: float
    stored_bytes: float
    memory: int

    def wall_seconds(self, slots: int) -> float:
        """Return the expected time on so many slots, in seconds."""
        return max(self.longest, self.seconds / slots)


def cost_of_recipe(run: SweepRun) -> Forecast:
    """Forecast a run that trains."""
    return forecast(run.recipe)


def forecast_sweep(
    runs: list[SweepRun],
    cost_of: Callable[[SweepRun], Forecast] = cost_of_recipe,
    passed_over: type[ConescopeError] = TrainingError,
) -> SweepCost:
    """Forecast what runs will cost, from a trial of each distinct cost.

    Args:
        runs: at least one.
        cost_of: makes the trial of a run.
        passed_over: errors that end one run and not the sweep; by default, that a trial diverges,
            as the run may.

    Raises:
        ConescopeError: if one of those tried cannot be carried out here.
    """
    counts = Counter(_cost_of(run) for run in runs)
    examples = {_cost_of(run): run for run in reversed(runs)}
    found: dict[str, Forecast] = {}
    begun = time.monotonic()
    first, *others = counts
    for key in (first, *Random(0).sample(others, len(others))):
        if found and time.monotonic() - begun > _ENOUGH_SECONDS:
            break
        try:
            found[key] = cost_of(examples[key])
        except passed_over:
            continue
    timed = sum(counts[key] for key in found)
    scale = len(runs) / timed if timed else 0.0
    seconds = [one.seconds for one in found.values()]
    return SweepCost(
        kinds=len(counts),
        timed=len(found),
        shortest=min(seconds, default=0.0),
        longest=max(seconds, default=0.0),
        seconds=scale * sum(counts[key] * one.seconds for key, one in found.items()),
        stored_bytes=scale * sum(counts[key] * one.stored_bytes for key, one in found.items()),
        memory=max((one.kernel.bytes for one in found.values() if one.kernel), default=0),
    )


def _cost_of(run: SweepRun) -> str:
    """Return a text that two runs share if they cost the same."""
    costly = {
        name: value
        for name, value in run.values.items()
        if name not in _FREE and not name.startswith("lr_schedule.")
    }
    return json.dumps([id(run.base), costly], sort_keys=True)
