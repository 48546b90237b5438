"""Runs of a sweep as tasks of Ray, on a cluster or on this machine."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from conescope.errors import MissingPackageError, RecipeError, StoreError
from conescope.experiments.sweep.carrying_out import Ended
from conescope.experiments.sweep.ray_copies import Copies, carry_out_lent
from conescope.experiments.sweep.single_run import (
    RunTask,
    carry_out_run,
    default_signals,
    line_of,
)
from conescope.runs.store import make_folder

_CONNECT_SECONDS = 5.0

_LOST_SECONDS = 40.0
"""The time for which a head may be silent, to be started again; after 60 s Ray ends the process."""

_ASK_SECONDS = 2.0

_RETRIES = 5
"""Times that Ray itself begins a task again whose worker or node is lost."""

_MOST_COPIES = 256
"""Runs whose copies are with the cluster at a time; the lock of each is an open file here."""


class RayCluster:
    """A Ray cluster that carries out runs: the one that is there, or one on this machine.

    Ray places the tasks, and begins those again whose worker or node is lost.

    Args:
        address: that of a cluster's head, such as `10.0.0.1:6379`; by default the cluster that
            `RAY_ADDRESS` or `ray start` names, else one that lives here until the sweep ends.
        threads: CPU threads of each run.
        gpus: GPUs of each run; a part of one if several runs share it.
        copies: whether workers get copies of the run folders and send them back, for nodes that do
            not share the file system that these are on.

    Raises:
        MissingPackageError: if Ray is not installed.
        RecipeError: if no cluster answers at the address.
    """

    def __init__(
        self,
        address: str | None = None,
        threads: int = 1,
        gpus: float = 0.0,
        *,
        copies: bool = False,
    ) -> None:
        try:
            import ray
        except ImportError:
            raise MissingPackageError.of("ray", "ray") from None
        self._ray: Any = ray
        self._tasks: dict[Any, RunTask] = {}
        self._refused: list[Ended] = []
        self._is_lost = False
        self._began_here = not ray.is_initialized()
        if self._began_here:
            address = address or os.environ.get("RAY_ADDRESS")
            try:
                _check_answers(address)
                with _sigterm_kept():
                    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except (OSError, ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:200]
                raise RecipeError(
                    f"no Ray cluster answers at {address or 'the default address'} ({reason}); "
                    f"start one by 'ray start --head' and give its address with --address"
                ) from None
        self._copies = Copies(ray) if copies else None
        self._head = ray.get_runtime_context().gcs_address
        self._answered = self._asked = time.monotonic()
        self._remote = ray.remote(
            num_cpus=threads,
            num_gpus=gpus,
            max_retries=0 if copies else _RETRIES,  # Ray would send what it sent before
            retry_exceptions=False,
        )(carry_out_lent if copies else _carry_out_here)

    def has_room(self) -> bool:
        """Return whether Ray is to have another run, which it queues if it is busy."""
        return self._copies is None or len(self._tasks) < _MOST_COPIES

    def submit(self, task: RunTask) -> None:
        """Queue a run."""
        try:
            sent: tuple[Any, ...] = ()
            if self._copies is None:
                make_folder(task.folder)  # by which a node is known to see it
            else:
                sent = self._copies.lend(task)
        except (OSError, StoreError) as error:  # or another process has just taken the folder
            self._refused.append(Ended(task.run.id, error=line_of(error)))
        else:
            self._tasks[self._remote.options(name=task.run.id).remote(task, *sent)] = task

    def wait(self, seconds: float) -> list[Ended]:
        """Return the runs whose tasks have ended, after at most `seconds`.

        Raises:
            RecipeError: if the cluster's head is lost; Ray would wait on, then end the process.
        """
        self._check_head()
        if self._copies is not None:
            self._copies.take_news()
        if self._refused:
            refused, self._refused = self._refused, []
            return refused
        if not self._tasks:
            time.sleep(seconds)
            return []
        ready, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=seconds)
        if ready:
            ready, _ = self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0)
        return [self._ended(task) for task in ready]

    def _check_head(self) -> None:
        now = time.monotonic()
        if now - self._asked < _ASK_SECONDS:
            return
        self._asked = now
        try:
            _check_answers(self._head)
            self._answered = now
        except OSError as error:
            if now - self._answered > _LOST_SECONDS:
                self._is_lost = True
                raise RecipeError(
                    f"the head of the Ray cluster, {self._head}, no longer answers ({error}); what "
                    f"the runs have stored is intact: start Ray again and run the same command, or "
                    f"run it with --on local"
                ) from None

    def _ended(self, task: Any) -> Ended:
        planned = self._tasks.pop(task)
        name, known = planned.run.id, self._ray.exceptions
        try:
            sent = self._ray.get(task)
            if self._copies is not None:
                return Ended(name, error=self._copies.take_back(planned, sent))
        except known.TaskCancelledError:
            return Ended(name)
        except known.RayTaskError as error:
            line = str(error).strip().splitlines()[-1].strip()
            if "No module named 'conescope" in line:
                line += f"; install conescope {planned.version} on all nodes"
            return Ended(name, error=line)
        except known.RayError as error:
            times = "" if self._copies is not None else f" {_RETRIES + 1} times"
            return Ended(name, f"lost by Ray{times}: {type(error).__name__}")
        finally:
            if self._copies is not None:
                self._copies.free(planned)
        return Ended(name)

    def stop(self) -> None:
        """Ask the runs at work to store their state and stop; drop those that are queued."""
        begun = set() if self._copies is None else self._copies.stop()
        for task, planned in self._tasks.items():
            if planned.run.id not in begun:
                self._ray.cancel(task, force=False, recursive=False)

    def close(self) -> None:
        """End what is left at once; leave the cluster, or stop it if it was started here."""
        for task in () if self._is_lost else self._tasks:
            self._ray.cancel(task, force=True, recursive=False)
        if self._copies is not None:
            for planned in self._tasks.values():
                self._copies.free(planned)
        if self._began_here:
            self._ray.shutdown()


def _carry_out_here(task: RunTask) -> None:
    """Carry out a run in its own folder, on a node that sees it.

    Raises:
        StoreError: if this node does not see the folder, which exists.
    """
    if not task.folder.is_dir():
        raise StoreError(
            f"the node {socket.gethostname()} does not see {task.folder}; put the sweep on a file "
            f"system that all nodes share, or add --copy"
        )
    with default_signals():
        carry_out_run(task)


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keep this process's handler of SIGTERM, which `ray.init` replaces by one that ends it."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _check_answers(address: str | None) -> None:
    """Raise `OSError` if nothing answers at HOST:PORT, which Ray would wait minutes for."""
    host, _, port = (address or "").rpartition("//")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
