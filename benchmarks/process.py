"""The parent's side of a worker: start it, ask it, and end it when it takes too much."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.machine import memory_field

ALLOCATORS: dict[str, dict[str, str]] = {
    "default": {},
    "tuned": {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        "MALLOC_TOP_PAD_": str(1 << 26),
    },
}
"""Environment variables of glibc's allocator, the same for every contender.

"default" is what a user finds; "tuned" keeps freed memory, so that pages are filled only once.
"""

_POLL_SECONDS = 0.05


class WorkerError(Exception):
    """A worker that failed, or was ended; the message is the reason to print."""


class Job(Protocol):
    """What a worker process has to know, and the limits of one of its answers.

    Attributes:
        words: the module to run with `python -m`, and its arguments.
        allocator: one of `ALLOCATORS`.
        limit_seconds, limit_bytes: of one answer.
    """

    @property
    def words(self) -> tuple[str, ...]: ...  # noqa: D102

    allocator: str
    threads: int
    limit_seconds: float
    limit_bytes: int


@dataclass(frozen=True)
class Task:
    """A `Job`: one contender on one problem.

    Attributes:
        limit_seconds, limit_bytes: of one answer.
        most_options: how many of its options the contender may try; None for all.
    """

    problem: str
    contender: str
    outputs: str
    reference: Path
    allocator: str
    threads: int
    limit_seconds: float
    limit_bytes: int
    most_options: int | None

    @property
    def words(self) -> tuple[str, ...]:
        """The module to run, and its arguments."""
        place = (self.problem, self.contender, self.outputs, str(self.reference))
        return ("benchmarks.worker", *place, str(self.threads))


class Worker:
    """A running worker process.

    Attributes:
        greeting: its first message; a contender's has "options", "version" and "operations".
        fresh: whether it has not answered yet, so that its next answer is a warm-up.
    """

    def __init__(self, task: Job):
        self.task = task
        self.fresh = True
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (it lives as long as we do)
        self._process = subprocess.Popen(
            [sys.executable, "-m", *task.words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment(task),
            text=True,
            bufsize=1,
        )
        self.greeting = self._answer(task.limit_seconds)

    @property
    def resident(self) -> int:
        """Bytes it holds now."""
        return memory_field("VmRSS", Path(f"/proc/{self._process.pid}/status"))

    def ask(self, request: dict, patience: float) -> dict:
        """The answer to a request, as one measurement with an option, within so many seconds.

        Raises:
            WorkerError: if it failed, or went over a limit; it is ended then.
        """
        self._process.stdin.write(json.dumps(request) + "\n")
        answer = self._answer(patience)
        self.fresh = False
        return answer

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._errors.close()

    def _answer(self, patience: float) -> dict:
        deadline = time.monotonic() + patience
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not selector.select(_POLL_SECONDS):
                if time.monotonic() > deadline:
                    self._give_up(f"over {patience:.0f} s")
                if self.resident > self.task.limit_bytes:
                    self._give_up(f"over {self.task.limit_bytes / 1e9:.0f} GB")
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._give_up(self._last_words())
        return json.loads(line)

    def _give_up(self, reason: str) -> None:
        self.end()
        raise WorkerError(reason)

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        return lines[-1] if lines else f"ended with exit code {self._process.returncode}"


def _environment(task: Job) -> dict[str, str]:
    threads = {name: str(task.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    return {**inherited, **threads, **quiet, **ALLOCATORS[task.allocator]}
