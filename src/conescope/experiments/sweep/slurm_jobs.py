"""Runs of a sweep as jobs of SLURM, by submitit: submitted as arrays, and not waited for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from conescope.errors import MissingPackageError, RecipeError
from conescope.experiments.sweep.single_run import RunTask, carry_out_run
from conescope.experiments.sweep.sweep_folder import stored_numbers
from conescope.runs.store import Folder

_ARRAY = 1000
"""Jobs of an array; SLURM's own default allows 1,001."""

_MOST_TIMEOUTS = 100
"""Times that a job whose time is over is queued again."""

_OWNED_SECONDS = 120.0
"""The time that a job waits for an earlier one to be killed, whose node SLURM takes for lost."""

_STORE_SECONDS = 60
"""The time for which a job may store its state; SLURM warns 90 s before its end."""

_JOBS = "jobs.json"


@dataclass(frozen=True)
class SlurmOptions:
    """What SLURM is asked for, for each run.

    Attributes:
        partition: the partition; None for the cluster's default.
        minutes: the time limit of a job, after which it is queued again and goes on.
        gpus: GPUs of a job.
        threads: CPU threads of a job.
        at_once: most jobs of an array at a time.
    """

    partition: str | None
    minutes: int
    gpus: int = 0
    threads: int = 1
    at_once: int = 100


class _Resumable:
    """What a job calls; submitit queues it again when SLURM preempts it or its time is over."""

    def __call__(self, task: RunTask) -> None:
        deadline = time.monotonic() + _OWNED_SECONDS
        while Folder(task.folder).is_owned() and time.monotonic() < deadline:
            time.sleep(1.0)
        with _warned() as received:
            carry_out_run(task, should_stop=lambda: bool(received))
        if signal.SIGUSR2 in received and stored_numbers(task.folder) is None:
            signal.raise_signal(signal.SIGUSR2)  # submitit's handler queues the job again

    def checkpoint(self, task: RunTask) -> Any:
        """Return the job to queue: the same, which goes on from the newest snapshot."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, task)


@contextmanager
def _warned() -> Iterator[list[int]]:
    """Record SLURM's signals, so that the state is stored first.

    SIGUSR2 warns that the time is nearly over; if storing takes too long, as within a kernel of
    minutes, submitit's handler is called at once. SIGTERM says that the job is preempted, requeued
    or cancelled, and is killed soon; whether it is queued again SLURM knows.
    """
    received: list[int] = []
    handler = signal.getsignal(signal.SIGUSR2)
    if not callable(handler):  # called outside of a job
        yield received
        return

    def store_first(number: int, _: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGUSR2:
            signal.alarm(_STORE_SECONDS)

    alarm = signal.signal(signal.SIGALRM, handler)
    term = signal.signal(signal.SIGTERM, store_first)
    signal.signal(signal.SIGUSR2, store_first)
    try:
        yield received
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGUSR2, handler)
        signal.signal(signal.SIGTERM, term)
        signal.signal(signal.SIGALRM, alarm)


def submit_jobs(
    tasks: Sequence[RunTask], folder: Path, options: SlurmOptions, cluster: str = "slurm"
) -> list[str]:
    """Submit runs as arrays of jobs, and return at once.

    Runs whose jobs of an earlier call are still queued or at work are left out.

    Args:
        tasks: the runs.
        folder: where submitit keeps the jobs and their output.
        options: what to ask SLURM for.
        cluster: submitit's name of the executor; tests have its "local" one.

    Returns:
        The ids of the jobs that were submitted.

    Raises:
        MissingPackageError: if submitit is not installed.
        RecipeError: if there is no SLURM on this machine, or it does not answer or refuses the
            jobs.
        StoreError: if the ids cannot be written.
    """
    try:
        import submitit
        from submitit.core.utils import FailedJobError
    except ImportError:
        raise MissingPackageError.of("submitit", "slurm") from None
    if cluster == "slurm" and submitit.SlurmExecutor.affinity() < 1:
        raise RecipeError("--on slurm: there is no SLURM here; call it on a login node")
    queued = _queued() if cluster == "slurm" else set()
    executor = submitit.AutoExecutor(folder, cluster=cluster, slurm_max_num_timeout=_MOST_TIMEOUTS)
    executor.update_parameters(
        name=folder.parent.resolve().name,
        timeout_min=options.minutes,
        cpus_per_task=options.threads,
        gpus_per_node=options.gpus,
        slurm_array_parallelism=options.at_once,
        slurm_additional_parameters={"requeue": True},
        **({"slurm_partition": options.partition} if options.partition else {}),
    )
    known = _read_jobs(folder)
    todo = [task for task in tasks if known.get(task.run.id) not in queued]
    submitted: dict[str, str] = {}
    for first in range(0, len(todo), _ARRAY):
        part = todo[first : first + _ARRAY]
        try:
            jobs = executor.map_array(_Resumable(), part)
        except FailedJobError as error:
            reason = " ".join(str(error).split())
            raise RecipeError(
                f"SLURM refuses the jobs: {reason}; change --partition, --time, --gpus or "
                f"--threads, and submit again"
            ) from None
        submitted |= {task.run.id: job.job_id for task, job in zip(part, jobs, strict=True)}
        Folder(folder).write_bytes(_JOBS, json.dumps(known | submitted).encode())
    return list(submitted.values())


def _queued() -> set[str]:
    """Return the ids of this user's jobs that are queued or at work.

    submitit would ask `sacct`, which many clusters have not set up.

    Raises:
        RecipeError: if SLURM does not answer.
    """
    words = ["squeue", "--noheader", "--array", "--format=%i", f"--user={os.getuid()}"]
    asked = subprocess.run(words, capture_output=True, text=True, check=False)
    if asked.returncode:
        reason = " ".join(asked.stderr.split())
        raise RecipeError(f"SLURM does not answer ({reason}); see 'sinfo', or ask who runs it")
    return set(asked.stdout.split())


def _read_jobs(folder: Path) -> dict[str, str]:
    """Return the ids of the jobs that were submitted before, by run."""
    try:
        return json.loads((folder / _JOBS).read_bytes())
    except FileNotFoundError:
        return {}
