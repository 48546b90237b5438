"""Runs on Ray carried out on copies of their folders, which come back while they are at work."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conescope.experiments.sweep.run_copies import SentBack, carry_out_copy, pack_run, unpack_run
from conescope.experiments.sweep.single_run import RunTask, default_signals
from conescope.experiments.sweep.sweep_folder import QUEUED
from conescope.runs.store import Folder

_ASK_SECONDS = 2.0
"""Workers ask so often whether to stop, and the command for news of the runs."""


_AllNews = dict[str, tuple[int, bytes | None]]
"""The id of a run → the number of its loan, and a copy of its folder; None if it has just begun."""


@dataclass(frozen=True)
class _Loan:
    """A run folder of which a worker has a copy.

    Attributes:
        number: tells this copy from earlier ones of the same run, whose news no longer count.
        folder: the folder.
        lock: what holds its lock.
    """

    number: int
    folder: Path
    lock: ExitStack


class Copies:
    """Copies of run folders that workers have; the folders themselves are locked meanwhile.

    A task that Ray cancels while it is at work cannot return anything, so workers ask an actor, the
    desk, whether to stop. There they also leave copies of what they have so far.

    Args:
        ray: the module, after `ray.init`.
    """

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._loans: dict[str, _Loan] = {}
        self._lent = 0
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._desk = ray.remote(num_cpus=0)(_Desk).options(scheduling_strategy=here).remote()
        self._asked: Any = None
        self._asked_at = time.monotonic()

    def lend(self, task: RunTask) -> tuple[bytes, Any, int]:
        """Lock the folder of a run; return what `carry_out_lent` takes beside the task.

        Raises:
            StoreError: if another process owns the folder, or it cannot be read or written.
        """
        with ExitStack() as lock:
            lock.enter_context(Folder(task.folder).owned())
            archive = pack_run(task.folder)
            Folder(task.folder).write_bytes(QUEUED, b"")
            self._lent += 1
            self._loans[task.run.id] = _Loan(self._lent, task.folder, lock.pop_all())
        return archive, self._desk, self._lent

    def take_news(self) -> None:
        """Note which runs have begun, and unpack what workers have left of them; never waits.

        Raises:
            StoreError: if a folder cannot be written.
        """
        if self._asked is None:
            if time.monotonic() - self._asked_at < _ASK_SECONDS:
                return
            self._asked, self._asked_at = self._desk.take.remote(), time.monotonic()
        if not self._ray.wait([self._asked], timeout=0)[0]:
            return
        asked, self._asked = self._asked, None
        news: _AllNews = {}
        with suppress(self._ray.exceptions.RayError):  # as of a lost head, which is asked after
            news = self._ray.get(asked)
        for name, (number, archive) in news.items():
            loan = self._loans.get(name)
            if loan is not None and loan.number == number:
                (loan.folder / QUEUED).unlink(missing_ok=True)
                if archive is not None:
                    unpack_run(archive, loan.folder)

    def take_back(self, task: RunTask, sent: SentBack) -> str:
        """Unpack what a worker has returned, and return the line of the run's error, or nothing.

        Raises:
            StoreError: if the folder cannot be written.
        """
        if sent.archive is not None:
            unpack_run(sent.archive, task.folder)
        return sent.error

    def free(self, task: RunTask) -> None:
        """Free the folder of a run."""
        (task.folder / QUEUED).unlink(missing_ok=True)
        self._loans.pop(task.run.id).lock.close()

    def stop(self) -> set[str]:
        """Tell the workers to stop, and return the ids of the runs that they have begun."""
        return self._ray.get(self._desk.stop.remote())


class _Desk:
    """The actor that tells workers whether to stop, and keeps the newest news of each run."""

    def __init__(self) -> None:
        self._begun: set[str] = set()
        self._news: _AllNews = {}
        self._stopping = False

    def begin(self, name: str, number: int) -> bool:
        """Return whether a run may begin, and note that it has."""
        if not self._stopping:
            self._begun.add(name)
            self._news[name] = number, None
        return not self._stopping

    def leave(self, name: str, number: int, archive: bytes) -> None:
        """Keep a copy of a run's folder until the command takes it, in place of an older one."""
        self._news[name] = number, archive

    def take(self) -> _AllNews:
        """Return what is new since the last call."""
        news, self._news = self._news, {}
        return news

    def is_stopping(self) -> bool:
        """Return whether workers are to store their state and stop."""
        return self._stopping

    def stop(self) -> set[str]:
        """Have all workers stop, and return the ids of the runs that have begun."""
        self._stopping = True
        return self._begun


def carry_out_lent(task: RunTask, archive: bytes, desk: Any, number: int) -> SentBack:
    """Carry out a run on a copy of its folder, unless the sweep is stopping.

    It never waits by `ray.get`, during which Ray would give its CPU to another run.

    Args:
        task: the run.
        archive: a copy of its folder.
        desk: the actor to ask, and to leave copies with.
        number: that of the loan.
    """
    if not desk.begin.remote(task.run.id, number).future().result():
        return SentBack()
    asked = time.monotonic()

    def should_stop() -> bool:
        nonlocal asked
        if time.monotonic() - asked < _ASK_SECONDS:
            return False
        asked = time.monotonic()
        return desk.is_stopping.remote().future().result()

    def send(news: bytes) -> None:
        desk.leave.remote(task.run.id, number, news).future().result()

    with default_signals():
        return carry_out_copy(task, archive, should_stop, send)
