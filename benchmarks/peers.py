"""The contest of the projections on language models: conescope and its peers, in turns."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass

from benchmarks import report
from benchmarks.architectures import ARCHITECTURES
from benchmarks.contest import Pool
from benchmarks.process import WorkerError
from benchmarks.projectors import PROJECTORS

MODELS = ("pythia-70m", "pythia-160m", "pythia-tiny")
"""The architectures whose contest is held where they are among the models."""
_REASON = 200
_HEAD = (
    "contender", "covered", "time", "passes", "peak", "columns", "error", "setting", "version",
)  # fmt: skip
_EXPLANATION = """\
Per-sample gradients of one scalar a sample, v·f with f the last token's logits and the same \
random signs v, projected at random: by each contender on the parameters that it covers, with the \
same threads, in turns, each in its own process, which has projected these samples once before \
(conescope checks every sample at its first call); one thread is timed by the processor's clock. \
`time` is the median of the rounds and \
`passes` that of its ratio to the plain pass of the same round. `peak` is what the process holds \
at most beyond the loaded model, the projection's own matrices included. `error` is \
‖FFᵀ − K‖ / ‖K‖ for eight of the samples, F being the features and K the exact products, on the \
covered parameters. A contender that chooses columns by layer has two rows: with as many columns \
in all as the others at most, and with its own default.
"""


@dataclass(frozen=True)
class Setting:
    """The problem that all contenders have in common.

    Attributes:
        dim: columns that are wanted.
        block: samples of one forward pass, where a contender leaves it to the caller.
        rounds: timed turns of every contender.
    """

    n: int = 32
    tokens: int = 128
    dim: int = 4096
    block: int = 16
    rounds: int = 1


@dataclass(frozen=True)
class PeerTask:
    """A `benchmarks.process.Job`: one contender on one model."""

    model: str
    contender: str
    setting: Setting
    allocator: str
    threads: int
    limit_seconds: float
    limit_bytes: int

    @property
    def words(self) -> tuple[str, ...]:
        """The module to run, and its arguments."""
        names = ("n", "tokens", "dim", "block")
        problem = json.dumps({name: getattr(self.setting, name) for name in names})
        return ("benchmarks.peer_worker", self.model, self.contender, str(self.threads), problem)


def begin(tasks: list[PeerTask]) -> dict:
    """A contest before its first turn.

    Args:
        tasks: one a contender, of the same model and setting.

    Returns:
        "model", "setting" and "results", one a task: "contender" and "seconds" (one a round).
    """
    first = tasks[0]
    results = [{"contender": task.contender, "seconds": []} for task in tasks]
    return {"model": first.model, "setting": asdict(first.setting), "results": results}


def finished(held: dict) -> bool:
    """Whether every contender of a contest had its turns, or has a reason."""
    rounds = held["setting"]["rounds"]
    return all("reason" in r or len(r["seconds"]) == rounds for r in held["results"])


def same(old: dict, new: dict) -> bool:
    """Whether two contests have the same model, setting and contenders."""
    names = [[result["contender"] for result in held["results"]] for held in (old, new)]
    return [old["model"], old["setting"], names[0]] == [new["model"], new["setting"], names[1]]


def contest(
    tasks: list[PeerTask], held: dict, memory_bytes: int, after_turn: Callable[[], None]
) -> None:
    """All turns of all contenders on one model.

    Args:
        tasks: as for `begin`.
        held: what `begin` returned. As far as measured, every result gets "version", "setting",
            "covered" (a share), "peak_bytes", "columns" and "error"; "reason" says why the rest
            is missing.
        memory_bytes: what all workers together may hold.
        after_turn: called after every turn.
    """
    pool = Pool(memory_bytes)
    for _ in range(held["setting"]["rounds"]):
        for task, result in zip(tasks, held["results"], strict=True):
            if "reason" not in result:
                _turn(pool, task, result)
                after_turn()
    pool.close()


def _turn(pool: Pool, task: PeerTask, result: dict) -> None:
    """One timed call, and the error after the first of them."""
    try:
        worker = pool.worker(task, result.get("peak_bytes", task.limit_bytes // 2))
        result.update(worker.greeting)
        answer = worker.ask({"stage": "run"}, task.limit_seconds)
        result["seconds"].append(answer["seconds"])
        result["peak_bytes"] = max(result.get("peak_bytes", 0), answer["peak_bytes"])
        result["columns"] = answer["columns"]
        if "error" not in result:
            result["error"] = worker.ask({"stage": "error"}, task.limit_seconds)["error"]
    except WorkerError as failure:
        pool.forget(task)
        result["reason"] = str(failure)


def markdown(contests: list[dict]) -> str:
    """The section: what the columns mean, one table a model."""
    sections = ["### Projections, beside other libraries", _EXPLANATION.rstrip()]
    for held in contests:
        setting = held["setting"]
        facts = f"n = {setting['n']}, {setting['tokens']} tokens, to {setting['dim']:,}"
        sections += [f"{ARCHITECTURES[held['model']].label}, {facts}:", table(held)]
    return "\n\n".join(sections)


def table(held: dict) -> str:
    """One row a contender."""
    plain = next((r["seconds"] for r in held["results"] if r["contender"] == "pass"), [])
    return report.table(_HEAD, [_line(result, plain) for result in held["results"]])


def _line(result: dict, plain: list[float]) -> list[str]:
    contender = PROJECTORS[result["contender"]]
    seconds, error = result["seconds"], result.get("error")
    if not seconds:
        reason = f"– ({report.cell(result.get('reason'), _REASON)})"
        return [contender.label, "–", reason, *["–"] * (len(_HEAD) - 3)]
    ratios = [taken / beside for taken, beside in zip(seconds, plain, strict=False)]
    return [
        contender.label,
        f"{result['covered']:.0%}",
        report.seconds(statistics.median(seconds)),
        f"{statistics.median(ratios):.2f}" if ratios else "–",
        report.gigabytes(result["peak_bytes"]),
        f"{result['columns']:,}" if result["columns"] else "–",
        f"{error:.1%}" if error is not None else "–",
        result["setting"],
        f"{contender.package} {result['version']}",
    ]
