"""Count the runs of a sweep by state, and list those at work and those that failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from conescope.experiments.stored import read_status
from conescope.experiments.sweep.sweep_folder import (
    ENDED,
    STATES,
    State,
    Sweep,
    SweepRun,
    stored_numbers,
)
from conescope.runs import contents
from conescope.runs.store import Folder


@dataclass(frozen=True)
class RunProgress:
    """A run that a process is at work on.

    Attributes:
        id: the run's id.
        done: iterations that are stored; kernels that are measured, if the run is a measurement.
        total: its length in iterations; None if not known.
        rate: how many of them a second of wall time, kernels included; 0 if not known yet.
    """

    id: str
    done: int
    total: int | None
    rate: float

    @property
    def seconds_left(self) -> float | None:
        """The expected time to its end, in seconds; None if not known yet."""
        if self.total is None or not self.rate:
            return None
        return (self.total - self.done) / self.rate


@dataclass(frozen=True)
class SweepProgress:
    """How far a sweep is.

    Attributes:
        counts: state → number of runs; of all states, in their order.
        running: the runs at work.
        failed: id → the line of the last error, of runs that have failed or diverged.
        seconds_left: expected time until all are done, as many at a time as now, in seconds; None
            if no run has ended yet or none is at work.
    """

    counts: Mapping[State, int]
    running: Sequence[RunProgress]
    failed: Mapping[str, str]
    seconds_left: float | None


def read_progress(sweep: Sweep, ended: dict[str, tuple[State, float]]) -> SweepProgress:
    """Read how far a sweep is.

    Args:
        sweep: the sweep.
        ended: state and seconds of runs known to have ended, by id; filled, for the next call.

    Raises:
        StoreError: if a journal cannot be read.
    """
    states: dict[str, State] = {}
    running = []
    for run in sweep.runs:
        if run.id not in ended:
            state = run.state()
            if state in ENDED:
                ended[run.id] = state, _seconds(run)
            elif state == "running":
                running.append(_progress(run))
            states[run.id] = state
        else:
            states[run.id] = ended[run.id][0]
    counts = Counter(states.values())
    failed = {run.id: run.error for run in sweep.runs if states[run.id] in ("failed", "diverged")}
    left = sum(state not in ENDED for state in states.values())
    each = fmean(seconds for _, seconds in ended.values()) if ended else None
    return SweepProgress(
        counts={state: counts[state] for state in STATES},
        running=running,
        failed=failed,
        seconds_left=each * left / len(running) if each is not None and running else None,
    )


def _seconds(run: SweepRun) -> float:
    """Return the wall time that a run took, in seconds."""
    numbers = stored_numbers(run.path)
    return numbers["seconds"] if numbers else read_status(run.path).seconds


def _progress(run: SweepRun) -> RunProgress:
    if not contents.has_run(Folder(run.path)):
        return RunProgress(run.id, 0, None, 0.0)
    status = read_status(run.path)
    begun = run.fields["branch"]["at"] if "branch" in run.fields else 0
    done, total = status.kernels, None
    if status.total_steps is not None:
        done, total = max(status.step - begun, 0), status.total_steps - begun
    return RunProgress(run.id, done, total, done / max(status.seconds, 1e-3))
