"""Carry out the runs of a sweep by a backend, and judge what becomes of each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from conescope.errors import StoreError
from conescope.experiments.sweep.single_run import RunTask, note_error
from conescope.experiments.sweep.sweep_folder import (
    State,
    Sweep,
    SweepRun,
    stored_numbers,
)
from conescope.runs.journal import Kind
from conescope.runs.store import Folder

_MOST_ALIKE = 2
"""The number of times in a row that a run may end in the same way, at the same place."""

_MOST_ENDS = 5
"""The same in whatever way, deaths of its process among them: machines may be lost by chance."""

_NO_ERROR = "the task ended without an error, and without the end of the run"

_WAIT_SECONDS = 0.2

_PROGRESS = [kind for kind in Kind if kind is not Kind.SESSION]


@dataclass(frozen=True)
class Ended:
    """A run whose task has ended, well or not; its folder says how far it is.

    Attributes:
        name: the run's id.
        lost: how its process died, such as "killed by SIGKILL"; empty if it returned or raised.
        error: the line of the error that it raised, which its folder holds too unless that could
            not be written.
    """

    name: str
    lost: str = ""
    error: str = ""


class Backend(Protocol):
    """A place where tasks are carried out."""

    def has_room(self) -> bool:
        """Return whether another task may be submitted now."""
        ...

    def submit(self, task: RunTask) -> None:
        """Begin a task, or queue it."""

    def wait(self, seconds: float) -> list[Ended]:
        """Return the tasks that have ended since the last call, after at most `seconds`."""
        ...

    def stop(self) -> None:
        """Ask all tasks to store their state and stop; those that wait do not begin."""

    def close(self) -> None:
        """End what is left at once, and free the backend."""


Told = Callable[[SweepRun, State], None]
"""Is told each run that comes to an end in this sweep, and how."""


def carry_out_sweep(
    sweep: Sweep,
    backend: Backend,
    task_of: Callable[[SweepRun], RunTask],
    *,
    told: Told = lambda *_: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Carry out all runs of a sweep that have not ended.

    A run whose process dies goes on; one that diverges is left; one that ends twice in the same
    way, or five times in any, and got no further meanwhile, is given up. A run that another sweep
    is at work on is waited for.

    Args:
        sweep: the sweep.
        backend: where to carry them out; closed at the end.
        task_of: makes the task of a run.
        told: is told each run that ends, is given up, or is stopped.
        should_stop: asked again and again; on true all runs store their state and stop.

    Returns:
        Whether it was not stopped.

    Raises:
        StoreError: if a journal cannot be read.
    """
    work = _Work(sweep, backend, task_of, told)
    stopping = False
    try:
        while work.waiting or work.active or work.storing:
            work.submit()
            ended = backend.wait(_WAIT_SECONDS)
            if should_stop() and not stopping:
                stopping = True
                work.waiting.clear()
                backend.stop()
            for one in ended:
                work.judge(one, stopping=stopping)
            work.tell_stored()
    finally:
        backend.close()
    return not stopping


class _Work:
    """The runs that wait, those that are carried out, and those that still store their state."""

    def __init__(
        self, sweep: Sweep, backend: Backend, task_of: Callable[[SweepRun], RunTask], told: Told
    ) -> None:
        self.waiting = deque(run for run in sweep.runs if stored_numbers(run.path) is None)
        self.active: dict[str, SweepRun] = {}
        self.storing: list[SweepRun] = []
        self._backend, self._task_of, self._told = backend, task_of, told
        self._ends: dict[str, tuple[int, list[str]]] = {}

    def submit(self) -> None:
        """Submit runs that wait, as long as there is room, and none owns their folders."""
        for _ in range(len(self.waiting)):
            if not self._backend.has_room():
                return
            run = self.waiting.popleft()
            if stored_numbers(run.path) is not None:
                self._told(run, run.state())
            elif Folder(run.path).is_owned():
                self.waiting.append(run)
            else:
                self.active[run.id] = run
                self._backend.submit(self._task_of(run))

    def judge(self, ended: Ended, *, stopping: bool) -> None:
        """Say of a run whose task has ended that it is done or given up, or let it wait again.

        It is done once its numbers are stored: a process may die between its last iteration and
        these.
        """
        run = self.active.pop(ended.name)
        if stopping:
            self.storing.append(run)
        elif stored_numbers(run.path) is not None:
            self._told(run, run.state())
        elif Folder(run.path).is_owned() or self._may_go_on(run, ended):
            self.waiting.append(run)
        else:
            self._told(run, "failed")

    def tell_stored(self) -> None:
        """Say of runs that were to stop that they have, once no process owns their folders.

        The backend may lose a process that is at work yet, as Ray does by cancelling its task.
        """
        for run in [run for run in self.storing if not Folder(run.path).is_owned()]:
            self.storing.remove(run)
            self._told(run, run.state())

    def _may_go_on(self, run: SweepRun, ended: Ended) -> bool:
        """Note why a run has not come to its end, and return whether it may be tried again."""
        line = ended.lost or ended.error
        if line and (ended.lost or not run.error):
            with suppress(StoreError):  # a full disk is the run's own failure, and not the sweep's
                note_error(run.path, line)
        reached = _reached(run.path)
        furthest, errors = self._ends.get(run.id, (-1, []))
        errors = [*(errors if reached <= furthest else []), run.error or line]
        self._ends[run.id] = max(reached, furthest), errors
        is_alike = (
            not ended.lost and len(errors) >= _MOST_ALIKE and len({*errors[-_MOST_ALIKE:]}) == 1
        )
        if not is_alike and len(errors) < _MOST_ENDS:
            return True
        if not (run.error or line):
            note_error(run.path, _NO_ERROR)
        return False


def _reached(path: Path) -> int:
    """Return how much of a run is stored; what is stored again, as by a stop at once, counts once.

    Raises:
        StoreError: if its journal cannot be read.
    """
    return len(
        {(entry.kind, entry.values.get("step")) for entry in Folder(path).entries(*_PROGRESS)}
    )
