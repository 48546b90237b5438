"""The contest on one problem: each contender finds its best option, then turns alternate."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.contenders.base import Option
from benchmarks.machine import matrix_product_peak
from benchmarks.process import Task, Worker, WorkerError

_WORTH_A_SECOND_CALL = 2.0
"""A call that takes longer, in seconds, and 1.3 times as long as the best, is not repeated."""

_LEAST_PATIENCE = 30.0
"""A call may take so many seconds, however fast the others are."""

_ACCEPTED_ERROR = 1e-2
"""A kernel further from the reference than that is wrong, not imprecise."""


@dataclass
class Result:
    """What became of one contender in one contest.

    Attributes:
        tried: every option with its seconds or the reason why it has none.
        seconds: one time a round, of the best option.
        reason: why there are no times, or fewer than rounds.
    """

    problem: str
    outputs: str
    allocator: str
    contender: str
    version: str | None = None
    operations: float | None = None
    option: Option | None = None
    tried: list[dict] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    error: float | None = None
    worst: float | None = None
    reason: str | None = None

    @property
    def best(self) -> float:
        """The seconds of the best option in the search."""
        return min((t["seconds"] for t in self.tried if "seconds" in t), default=float("inf"))


class Pool:
    """Warm workers, as many as fit in memory together; the longest idle leave first."""

    def __init__(self, memory_bytes: int):
        self.memory_bytes = memory_bytes
        self._workers: dict[str, Worker] = {}

    def worker(self, task: Task, needs: int) -> Worker:
        """The task's worker, started if need be, with so many bytes free for it."""
        worker = self._workers.pop(task.contender, None)
        while self._workers and self._resident() + needs > self.memory_bytes:
            self._workers.pop(next(iter(self._workers))).end()
        if worker is None:
            worker = Worker(task)
        self._workers[task.contender] = worker
        return worker

    def forget(self, task: Task) -> None:
        """Drop the task's worker, which has ended."""
        self._workers.pop(task.contender, None)

    def end(self, task: Task) -> None:
        """End the task's worker, if it runs."""
        if task.contender in self._workers:
            self._workers.pop(task.contender).end()

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers.values():
            worker.end()
        self._workers.clear()

    def _resident(self) -> int:
        return sum(worker.resident for worker in self._workers.values())


def contest(tasks: list[Task], rounds: int, give_up: float, memory_bytes: int) -> dict:
    """All tasks of one problem, one kind of outputs and one allocator.

    Args:
        tasks: one a contender, with the same problem, outputs and allocator.
        rounds: timed turns of every contender.
        give_up: a contender this many times slower than the fastest gets no further turns.
        memory_bytes: what all workers together may hold.

    Returns:
        "results" (one a task) and "peaks" (the matrix-product peak, FLOP/s, in every round).
    """
    pool = Pool(memory_bytes)
    results: dict[Task, Result] = {}
    fastest = float("inf")
    for task in tasks:
        results[task] = _search(pool, task, hopeless=give_up * fastest)
        fastest = min(fastest, results[task].best)
    for result in results.values():
        if give_up * fastest < result.best < float("inf"):
            result.seconds = [result.best]
            result.reason = f"over {give_up:g} times the fastest: one call"
    peaks = []
    for _ in range(rounds):
        peaks.append(matrix_product_peak())
        for task, result in results.items():
            if result.reason is None:
                _turn(pool, task, result)
    pool.close()
    return {"results": list(results.values()), "peaks": peaks}


def _search(pool: Pool, task: Task, hopeless: float) -> Result:
    """Try the options, the rest of them no more once one took hopelessly long; keep the fastest."""
    result = Result(task.problem, task.outputs, task.allocator, task.contender)
    try:
        greeting = pool.worker(task, task.limit_bytes).greeting
    except WorkerError as failure:
        result.reason = str(failure)
        return result
    result.version, result.operations = greeting["version"], greeting["operations"]
    for option in greeting["options"][: task.most_options]:
        result.tried.append({"option": option, **_try(pool, task, option, result.best, hopeless)})
        if hopeless < result.best < float("inf"):
            break
    usable = [entry for entry in result.tried if "seconds" in entry]
    if not usable:
        result.reason = result.tried[0]["reason"]
        return result
    best = min(usable, key=lambda entry: entry["seconds"])
    result.option, result.peak_bytes = best["option"], best["peak_bytes"]
    result.error, result.worst = best["error"], best["worst"]
    if len(result.tried) > 1:
        # Memory kept from other options is not to count among this one's.
        pool.end(task)
    return result


def _try(pool: Pool, task: Task, option: Option, best: float, hopeless: float) -> dict:
    """A cold and, where it may matter, a warm call with an option."""
    patience = min(task.limit_seconds, max(_LEAST_PATIENCE, hopeless))
    try:
        worker = pool.worker(task, task.limit_bytes)
        first = worker.ask(option, patience)
        if first["error"] > _ACCEPTED_ERROR:
            return {"reason": f"wrong by {first['error']:.0%}"}
        if first["seconds"] > _WORTH_A_SECOND_CALL and first["seconds"] > 1.3 * best:
            return first
        return worker.ask(option, patience)
    except WorkerError as failure:
        pool.forget(task)
        return {"reason": str(failure)}


def _turn(pool: Pool, task: Task, result: Result) -> None:
    """One timed call with the best option, after a warm-up if the worker is new."""
    try:
        worker = pool.worker(task, result.peak_bytes)
        if worker.fresh:
            result.peak_bytes = worker.ask(result.option, task.limit_seconds)["peak_bytes"]
        answer = worker.ask(result.option, task.limit_seconds)
    except WorkerError as failure:
        pool.forget(task)
        result.reason = str(failure)
        return
    result.seconds.append(answer["seconds"])
    result.peak_bytes = max(result.peak_bytes, answer["peak_bytes"])
