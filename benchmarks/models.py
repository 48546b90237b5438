"""The engine on architectures of real size: costs in plain passes, memory, errors, and the table.

Peers have no part in this: no other library estimates these kernels.
"""

from __future__ import annotations

import importlib.metadata
import json
import statistics
from dataclasses import asdict, dataclass

from benchmarks import report
from benchmarks.architectures import ARCHITECTURES
from benchmarks.process import Worker, WorkerError

_EXPLANATION = """\
Random weights, float32, logits of the last token or of the image; each model in a process of its \
own. `pass` is one plain forward and backward pass of the same batch, gradients of all parameters \
included; `a draw` is the median over the rounds of a later call of `estimate_entk`, divided by \
its draws and by the pass beside it; `first call` is the whole first call, survey and self-check \
included, in passes. `peak` is what the process holds at most during the first and any later call \
beyond the loaded model. `error` is the largest |K_ij − K\\*_ij| relative to the mean diagonal, \
with K\\* from the same float32 model's own per-sample gradients, one sample at a time, multiplied \
and summed in float64; `float64` is the same against the model in float64. A rectifier that \
flips by rounding shows in both as 1e-3. `rule`, `general` and `unused` are the shares of the \
parameters by their routes. A model that the engine refuses has the reason in its row.
"""
_HEAD = (
    "model", "parameters", "pass", "a draw", "first call", "peak, first", "peak, later",
    "error", "float64", "rule", "general", "unused",
)  # fmt: skip
_REASON = 400


@dataclass(frozen=True)
class ModelTask:
    """A `benchmarks.process.Job`: the engine on one architecture.

    Attributes:
        name: of an architecture.
        n: samples.
        tokens: of each sample of a language model.
        draws: cotangents of an estimate.
        memory: the engine's budget.
        rounds: later calls, each after a plain pass.
        limit_seconds, limit_bytes: of one pass, one call, or one reference.
    """

    name: str
    n: int
    tokens: int
    draws: int
    memory: str
    rounds: int
    allocator: str
    threads: int
    limit_seconds: float
    limit_bytes: int

    @property
    def words(self) -> tuple[str, ...]:
        """The module to run, and its arguments."""
        settings = json.dumps({k: asdict(self)[k] for k in ("n", "tokens", "draws", "memory")})
        return ("benchmarks.model_worker", self.name, str(self.threads), settings)


def measure(task: ModelTask) -> dict:
    """All stages of one model, as far as they go.

    Returns:
        "model", "n" and, as far as measured, "parameters", "shares", "first" and "later" (calls:
        "seconds", "peak_bytes"), "passes" (seconds: before the first call, then before each later
        one), "error", "rounding"; "reason" says why the rest is missing.
    """
    result: dict = {"model": task.name, "n": task.n, "passes": [], "later": []}
    try:
        worker = Worker(task)
    except WorkerError as failure:
        return {**result, "reason": str(failure)}
    result.update(worker.greeting)

    def ask(stage: str) -> dict:
        return worker.ask({"stage": stage}, task.limit_seconds)

    try:
        ask("passes")
        result["passes"].append(ask("passes")["seconds"])
        result["first"] = ask("estimate")
        result["shares"] = result["first"].pop("shares")
        for _ in range(task.rounds):
            result["passes"].append(ask("passes")["seconds"])
            call = ask("estimate")
            result["shares"] = call.pop("shares")
            result["later"].append(call)
        result["error"] = ask("error")["error"]
        result["rounding"] = ask("rounding")["error"]
    except WorkerError as failure:
        return {**result, "reason": str(failure)}
    worker.end()
    return result


def versions() -> dict[str, str]:
    """The versions that the numbers depend on."""
    return {name: importlib.metadata.version(name) for name in ("conescope", "transformers")}


def markdown(record: dict) -> str:
    """The section: machine, settings, what the columns mean, one row a model."""
    part = record["models"]
    settings = part["settings"]
    packages = ", ".join(f"{name} {version}" for name, version in part["versions"].items())
    facts = (
        f"{report.origin(record['machine'], record['settings']['command'])}, {packages}; "
        f"n = {settings['n']}, {settings['tokens']} tokens, {settings['draws']} draws, a budget of "
        f"{settings['memory']}, {settings['rounds']} rounds."
    )
    return "\n\n".join([facts, _EXPLANATION.rstrip(), table(part)])


def table(part: dict) -> str:
    """One row a model."""
    draws = part["settings"]["draws"]
    return report.table(_HEAD, [_line(result, draws) for result in part["results"]])


def _line(result: dict, draws: int) -> list[str]:
    """A row; what is missing is a dash, the first of them with the reason."""
    first, later, passes = result.get("first"), result["later"], result["passes"]
    shares = result.get("shares")
    cost = [
        call["seconds"] / draws / plain
        for call, plain in zip(later, passes[1:], strict=False)
    ]  # fmt: skip
    plain = statistics.median(passes) if passes else None
    parameters = result.get("parameters")
    cells = [
        ARCHITECTURES[result["model"]].label,
        f"{parameters / 1e6:.1f} M" if parameters is not None else None,
        report.seconds(plain) if plain is not None else None,
        f"{statistics.median(cost):.1f}" if cost else None,
        f"{first['seconds'] / plain:.1f}" if first else None,
        report.gigabytes(first["peak_bytes"]) if first else None,
        report.gigabytes(max(call["peak_bytes"] for call in later)) if later else None,
        *(f"{result[key]:.0e}" if key in result else None for key in ("error", "rounding")),
        *(_share(shares.get(k, 0)) if shares else None for k in ("rule", "general", "unused")),
    ]
    reason = f"– ({report.cell(result.get('reason'), _REASON)})" if "reason" in result else "–"
    missing = [number for number, text in enumerate(cells) if text is None]
    return [
        text if text is not None else reason if number == missing[0] else "–"
        for number, text in enumerate(cells)
    ]


def _share(value: float) -> str:
    """A share in percent, which is 0 or 100 only if it is exactly that."""
    if 0 < value < 0.005:
        return "< 1%"
    return "> 99%" if 0.995 <= value < 1 else f"{value:.0%}"
