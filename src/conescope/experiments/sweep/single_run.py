"""Carry out one run of a sweep, in a worker process of whatever backend."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import (
    AbstractContextManager,
    chdir,
    contextmanager,
    redirect_stderr,
    redirect_stdout,
    suppress,
)
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from conescope.errors import StoreError
from conescope.experiments.session import run_experiment
from conescope.experiments.sweep.sweep_folder import (
    ENDED,
    ERROR,
    LOG,
    QUEUED,
    SweepRun,
    stored_numbers,
)
from conescope.runs.foreign import shorten
from conescope.runs.store import Folder

_LONGEST = 2000
"""Letters of the line of an error; a pipe, by which slots send it, holds 64 kB."""


def train(run: SweepRun, command: str, should_stop: Callable[[], bool]) -> object:
    """Carry out the recipe of a run in its folder; on a true `should_stop` store its state."""
    return run_experiment(run.recipe, run.path, command=command, should_stop=should_stop)


@dataclass(frozen=True)
class RunTask:
    """All that a worker needs to carry out a run; it leaves nothing but the run's folder.

    Attributes:
        run: the run.
        folder: the absolute path of its folder.
        here: the working directory, to which paths and a user's own code are relative.
        command: the sweep's shell command, for the record.
        version: the version of conescope that planned the sweep.
        afterwards: what to do with the folder of a run that has ended, such as storing its numbers.
        threads: CPU threads, where the recipe names none; None for torch's choice.
        work: what carries out the run in its folder, such as `train`.
    """

    run: SweepRun
    folder: Path
    here: Path
    command: str
    version: str
    afterwards: Callable[[Path], None]
    threads: int | None
    work: Callable[[SweepRun, str, Callable[[], bool]], object] = train

    @classmethod
    def of(
        cls,
        run: SweepRun,
        command: str,
        afterwards: Callable[[Path], None],
        threads: int | None,
        work: Callable[[SweepRun, str, Callable[[], bool]], object] = train,
    ) -> RunTask:
        """Return the task of a run, planned in this process."""
        folder, here = run.path.absolute(), Path.cwd()
        return cls(run, folder, here, command, version("conescope"), afterwards, threads, work)


def carry_out_run(task: RunTask, should_stop: Callable[[], bool] = lambda: False) -> None:
    """Carry out a run from where its folder ends; at Ctrl-C or SIGTERM store its state and stop.

    What it prints goes to the file `LOG` of its folder, and the line of an error to `ERROR`. A run
    that has ended and has its numbers, or that another process is at work on, is left alone.

    Args:
        task: the run.
        should_stop: asked after every iteration; on true too its state is stored, and it stops.

    Raises:
        StoreError: if this is another version of conescope than that which planned the sweep.
        Exception: whatever ends the run; its line is noted before.
    """
    folder = task.folder
    try:
        _check_version(task.version)
        folder.mkdir(parents=True, exist_ok=True)
        with (
            chdir(task.here),
            (folder / LOG).open("a", encoding="utf-8", buffering=1) as log,
            redirect_stdout(log),
            redirect_stderr(log),
            _stopping() as received,
        ):
            _attempt(task, lambda: bool(received) or should_stop())
    except Exception as error:
        if not Folder(folder).is_owned():
            with suppress(StoreError):  # on a full disk; who began the task hears of the error too
                note_error(folder, line_of(error))
        raise


def line_of(error: Exception) -> str:
    """Return an error as a line of text, so short that a pipe takes it whole."""
    return shorten(" ".join(f"{type(error).__name__}: {error}".split()), _LONGEST)


def note_error(folder: Path, line: str) -> None:
    """Write the line of the error that ended an attempt at a run.

    Raises:
        StoreError: if it cannot be written.
    """
    Folder(folder).write_bytes(ERROR, f"{line}\n".encode())


def _attempt(task: RunTask, should_stop: Callable[[], bool]) -> None:
    folder = task.folder
    run = SweepRun(task.run.id, folder, task.run.values, task.run.base)
    if stored_numbers(folder) is not None or Folder(folder).is_owned():
        return
    for name in (ERROR, QUEUED):
        (folder / name).unlink(missing_ok=True)
    if task.threads is not None:
        torch.set_num_threads(task.threads)
    try:
        if run.state() != "finished":  # else its process was killed before it wrote the numbers
            task.work(run, task.command, should_stop)
    except Exception:
        traceback.print_exc(file=sys.stderr)
        raise
    finally:
        if run.state() in ENDED:
            with Folder(folder).owned():
                task.afterwards(folder)


def _check_version(planned: str) -> None:
    if planned != version("conescope"):
        raise StoreError(
            f"this worker has conescope {version('conescope')}, and the sweep was planned by "
            f"{planned}; install {planned} on all machines"
        )


_DEFAULTS: Mapping[int, Any] = MappingProxyType(
    {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
)


@contextmanager
def _stopping() -> Iterator[list[int]]:
    """Record Ctrl-C and SIGTERM instead of ending by them.

    Signals that the backend takes care of itself, as submitit does of SIGTERM, are left to it.
    """
    received: list[int] = []
    ours = [number for number, default in _DEFAULTS.items() if signal.getsignal(number) is default]
    with _handled(dict.fromkeys(ours, lambda number, _: received.append(number))):
        yield received


def default_signals() -> AbstractContextManager[None]:
    """Return a block in which `carry_out_run` hears Ctrl-C and SIGTERM, whatever its process did.

    Ray cancels by SIGINT, which a cluster that was started in the background ignores; and SIGTERM,
    which comes before a machine is taken away, would end a worker at once.
    """
    return _handled(_DEFAULTS)


@contextmanager
def _handled(handlers: Mapping[int, Any]) -> Iterator[None]:
    """Handle signals in this way; outside of the main thread, as before."""
    here = threading.current_thread() is threading.main_thread()
    before = {n: signal.signal(n, handler) for n, handler in handlers.items()} if here else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
