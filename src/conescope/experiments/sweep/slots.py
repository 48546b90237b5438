"""Runs of a sweep on this machine: a process for each slot."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import connection, get_context, resource_tracker
from multiprocessing.context import ForkServerProcess
from typing import Any

from conescope.experiments.sweep.carrying_out import Ended
from conescope.experiments.sweep.single_run import RunTask, carry_out_run, line_of
from conescope.training.data.dataset import is_at_hand
from conescope.training.recipe_fields import DataRecipe

_PRELOADED = (
    carry_out_run.__module__,
    "torch._dynamo",  # which torch's optimisers load at their first step
    "conescope.experiments.sweep.made_once",
)
"""These modules are loaded once, before processes are forked, since every run needs them."""

SWEEP_DATA = "CONESCOPE_SWEEP_DATA"
"""The environment variable that names the data set which the server loads."""


class Slots:
    """A number of processes at a time, each of which carries out one run.

    They are forked from a server that has loaded torch already, so that a run begins at once. They
    take no notice of Ctrl-C, which a terminal sends to all; `stop` reaches them.

    Args:
        slots: how many runs at a time, at least 1.
        threads: CPU threads of each.
        preload: modules that the server loads too.
        data: a data set that runs train on, which the server loads for them all; one server
            serves all `Slots` of a process, with the data of the first.
    """

    def __init__(
        self,
        slots: int,
        threads: int,
        preload: Sequence[str] = (),
        data: DataRecipe | None = None,
    ) -> None:
        self._slots = slots
        self._environment = {"OMP_NUM_THREADS": str(threads), **_naming(data)}
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload([*_PRELOADED, *preload])
        self._processes: dict[str, ForkServerProcess] = {}
        self._errors: dict[str, Any] = {}

    def has_room(self) -> bool:
        """Return whether a slot is free."""
        return len(self._processes) < self._slots

    def submit(self, task: RunTask) -> None:
        """Begin a run."""
        self._errors[task.run.id], sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_in_a_slot, args=(task, sender), name=task.run.id)
        with _environment(self._environment), _without_interrupts():
            process.start()
        sender.close()
        self._processes[task.run.id] = process

    def wait(self, seconds: float) -> list[Ended]:
        """Return the runs whose processes have ended, after at most `seconds`."""
        if not self._processes:
            time.sleep(seconds)
            return []
        names = {process.sentinel: name for name, process in self._processes.items()}
        ended = []
        for sentinel in connection.wait(list(names), timeout=seconds):
            process = self._processes.pop(names[sentinel])  # pyright: ignore[reportArgumentType]
            process.join()
            code = process.exitcode or 0
            lost = f"killed by {signal.Signals(-code).name}" if code < 0 else ""
            ended.append(Ended(process.name, lost, self._error(process.name)))
            process.close()
        return ended

    def _error(self, name: str) -> str:
        """Return the line of the error that a process has sent before its end, or nothing."""
        with self._errors.pop(name) as receiver:
            try:
                return receiver.recv() if receiver.poll() else ""
            except EOFError:
                return ""

    def stop(self) -> None:
        """Ask all runs to store their state and stop."""
        for process in self._processes.values():
            process.terminate()

    def close(self) -> None:
        """End the processes that are left, at once."""
        for process in self._processes.values():
            process.kill()
            process.join()


def _in_a_slot(task: RunTask, sender: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # if another part of the program began the server
    try:
        carry_out_run(task)
    except Exception as error:
        sender.send(line_of(error))
        raise SystemExit(1) from error  # the traceback is in the run's log, not on the terminal


def _naming(data: DataRecipe | None) -> Mapping[str, str]:
    """Return the environment that has the server load a data set, if it is at hand."""
    if data is None or not is_at_hand(data):
        return {}
    return {SWEEP_DATA: json.dumps([data.name, data.path, dict(data.options)])}


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Have processes that start meanwhile take no notice of Ctrl-C from their first moment on.

    One that comes meanwhile reaches this process afterwards.
    """
    resource_tracker.ensure_running()  # which lets signals through again once it has started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Give processes that start meanwhile these environment variables."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
