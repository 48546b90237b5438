"""The engine on architectures of real size: costs in plain passes, memory, errors, and the tables.

No peer computes these kernels. The peers of the projections have a contest of their own, in
`benchmarks.peers`.
"""

from __future__ import annotations

import importlib.metadata
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass

from benchmarks import peers, report
from benchmarks.architectures import ARCHITECTURES
from benchmarks.process import Worker, WorkerError

_ALL = """\
Random weights, float32, logits of the last token or of the image; each model in a process of its \
own. `pass` is the median of the plain forward and backward passes of the same batch, gradients of \
all parameters included; “in k parts” marks a batch that goes through in k parts, as it would not \
fit into memory otherwise. Costs are in units of the pass beside each call, medians over the \
rounds, in which passes and calls take turns. One thread is timed by the processor's clock, which \
stands still while other processes have their turns; several by the wall's. A `peak` is what the \
process holds at most during a call beyond the loaded model. A model that the engine refuses has \
the reason in its row.
"""
_FEW = """\
`a draw` is a later call of `estimate_entk` divided by its draws. First calls include the survey \
and all checks: `first, 1 draw` is `entk` of v·f, one number a sample, and `first, 2 draws` is \
`estimate_entk`. `error` is the largest |K_ij − K\\*_ij| relative to the mean diagonal, with K\\* \
from the same float32 model's own per-sample gradients, one sample at a time, multiplied and \
summed in float64; `float64` is the same against the model in float64. A rectifier that flips by \
rounding shows in both as 1e-3. `rule`, `general` and `unused` are the shares of the parameters \
by their routes.
"""
_MANY = """\
`a draw` is a call of `estimate_entk` divided by its draws, `projection` a call of `project`; the \
survey of the model and the self-check came before, on two samples. `error` is that of the draws' \
entries for four of the samples, as above; `Gram error` is ‖FFᵀ − K‖ / ‖K‖ of the features F \
against the draw of the same cotangent, over all samples.
"""
_FEW_HEAD = (
    "model", "parameters", "pass", "a draw", "first, 1 draw", "first, 2 draws", "peak, first",
    "peak, later", "error", "float64", "rule", "general", "unused",
)  # fmt: skip
_MANY_HEAD = (
    "model", "parameters", "pass", "a draw", "peak", "error",
    "projection", "peak, projection", "Gram error",
)  # fmt: skip
_REASON = 400


@dataclass(frozen=True)
class Setting:
    """What is measured on a model, and on how many samples.

    Attributes:
        n: samples.
        tokens: of each sample of a language model.
        draws: cotangents of an estimate.
        dim: columns of a projection; 0 for none.
        memory: the engine's budget.
        rounds: turns of pass, draws and projection.
    """

    n: int
    tokens: int
    draws: int
    dim: int
    memory: str
    rounds: int


@dataclass(frozen=True)
class Part:
    """A table of the page: its setting, its models, and the stages of a measurement."""

    title: str
    setting: Setting
    images: bool
    explanation: str
    head: tuple[str, ...]
    stages: Callable[[Callable[..., dict], dict, int], None]
    cells: Callable[[dict, int], list[str | None]]

    def takes(self, model: str) -> bool:
        """Whether the part is measured on this architecture."""
        return self.images or ARCHITECTURES[model].images is None


@dataclass(frozen=True)
class ModelTask:
    """A `benchmarks.process.Job`: one part on one architecture.

    Attributes:
        part: of `PARTS`.
        name: of an architecture.
        limit_seconds, limit_bytes: of one answer: a pass, a call, or a reference.
    """

    part: str
    name: str
    setting: Setting
    allocator: str
    threads: int
    limit_seconds: float
    limit_bytes: int

    @property
    def words(self) -> tuple[str, ...]:
        """The module to run, and its arguments."""
        chosen = {**asdict(self.setting), "limit_bytes": self.limit_bytes}
        return ("benchmarks.model_worker", self.name, str(self.threads), json.dumps(chosen))


def measure(task: ModelTask) -> dict:
    """All stages of one model, as far as they go.

    Returns:
        "model", "n", the worker's greeting ("parameters", "parts" of a pass) and, as far as
        measured, "passes" (seconds), "first", "single", "later" and "projections" (calls:
        "seconds", "peak_bytes"), "shares", and the errors "error", "rounding" and "gram"; "reason"
        says why the rest is missing.
    """
    result: dict = {"model": task.name, "n": task.setting.n}
    result.update(passes=[], later=[], projections=[])
    try:
        worker = Worker(task)
        result.update(worker.greeting)
        PARTS[task.part].stages(
            lambda stage: worker.ask({"stage": stage}, task.limit_seconds),
            result,
            task.setting.rounds,
        )
    except WorkerError as failure:
        return {**result, "reason": str(failure)}
    worker.end()
    return result


def _few_samples(ask: Callable[..., dict], result: dict, rounds: int) -> None:
    """First call, later calls, and both errors."""
    result["passes"].append(ask("passes")["seconds"])
    result["first"] = ask("estimate")
    result["shares"] = result["first"].pop("shares")
    result["single"] = ask("one draw")
    for _ in range(rounds):
        result["passes"].append(ask("passes")["seconds"])
        call = ask("estimate")
        result["shares"] = call.pop("shares")
        result["later"].append(call)
    result["error"] = ask("error")["error"]
    result["rounding"] = ask("rounding")["error"]


def _many_samples(ask: Callable[..., dict], result: dict, rounds: int) -> None:
    """Later calls of draws, and projections."""
    ask("survey")
    for number in range(rounds):
        result["passes"].append(ask("passes")["seconds"])
        result["later"].append(ask("estimate"))
        if number == 0:
            result["error"] = ask("entries")["error"]
        result["projections"].append(ask("project"))
    result["gram"] = ask("gram")["error"]


def versions() -> dict[str, str]:
    """The versions that the numbers depend on."""
    return {name: importlib.metadata.version(name) for name in ("conescope", "transformers")}


def markdown(record: dict) -> str:
    """The section: machine, what the columns mean, one table a part."""
    found = record["models"]
    packages = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    sections = [
        f"{report.origin(record['machine'], record['settings']['command'])}, {packages}.",
        _ALL.rstrip(),
    ]
    for name in (name for name in PARTS if name in found["parts"]):
        measured = found["parts"][name]
        sections += [
            f"### {PARTS[name].title}",
            f"{_facts(measured['setting'])}. {PARTS[name].explanation.rstrip()}",
            table(name, measured),
        ]
    if found["peers"]:
        sections.append(peers.markdown(found["peers"]))
    return "\n\n".join(sections)


def _facts(setting: dict) -> str:
    projected = f"projections to {setting['dim']:,}, " if setting["dim"] else ""
    rounds = "1 round" if setting["rounds"] == 1 else f"{setting['rounds']} rounds"
    return (
        f"n = {setting['n']}, {setting['tokens']} tokens, {setting['draws']} draws, {projected}"
        f"a budget of {setting['memory']}, {rounds}"
    )


def table(part: str, measured: dict) -> str:
    """One row a model."""
    draws = measured["setting"]["draws"]
    cells = PARTS[part].cells
    lines = [_line(cells(result, draws), result.get("reason")) for result in measured["results"]]
    return report.table(PARTS[part].head, lines)


def _line(cells: list[str | None], reason: str | None) -> list[str]:
    """A row; what is missing is a dash, the first of them with the reason."""
    first = f"– ({report.cell(reason, _REASON)})" if reason is not None else "–"
    missing = [number for number, text in enumerate(cells) if text is None]
    return [
        text if text is not None else first if number == missing[0] else "–"
        for number, text in enumerate(cells)
    ]


def _few_cells(result: dict, draws: int) -> list[str | None]:
    first, later, shares = result.get("first"), result["later"], result.get("shares")
    single = result.get("single")
    return [
        *_model_cells(result),
        _cost(later, result["passes"][1:], draws),
        _cost([single], result["passes"], 1) if single else None,
        _cost([first], result["passes"], 1) if first else None,
        report.gigabytes(first["peak_bytes"]) if first else None,
        _peak(later),
        *(f"{result[key]:.0e}" if key in result else None for key in ("error", "rounding")),
        *(_share(shares.get(k, 0)) if shares else None for k in ("rule", "general", "unused")),
    ]


def _many_cells(result: dict, draws: int) -> list[str | None]:
    later, projections, passes = result["later"], result["projections"], result["passes"]
    return [
        *_model_cells(result),
        _cost(later, passes, draws),
        _peak(later),
        f"{result['error']:.0e}" if "error" in result else None,
        _cost(projections, passes, 1),
        _peak(projections),
        f"{result['gram']:.1%}" if "gram" in result else None,
    ]


def _model_cells(result: dict) -> list[str | None]:
    """Name, parameters and plain pass."""
    parameters, parts, passes = result.get("parameters"), result.get("parts"), result["passes"]
    in_parts = f" (in {parts} parts)" if parts is not None and parts > 1 else ""
    return [
        ARCHITECTURES[result["model"]].label,
        f"{parameters / 1e6:.1f} M" if parameters is not None else None,
        f"{report.seconds(statistics.median(passes))}{in_parts}" if passes else None,
    ]


def _cost(calls: list[dict], passes: list[float], draws: int) -> str | None:
    """The median cost of a draw, in units of the pass beside each call."""
    pairs = zip(calls, passes, strict=False)
    costs = [call["seconds"] / draws / plain for call, plain in pairs]
    return f"{statistics.median(costs):.1f}" if costs else None


def _peak(calls: list[dict]) -> str | None:
    return report.gigabytes(max(call["peak_bytes"] for call in calls)) if calls else None


def _share(value: float) -> str:
    """A share in percent, which is 0 or 100 only if it is exactly that."""
    if 0 < value < 0.005:
        return "< 1%"
    return "> 99%" if 0.995 <= value < 1 else f"{value:.0%}"


PARTS = {
    "few": Part(
        "A few samples",
        Setting(n=8, tokens=64, draws=2, dim=0, memory="3GB", rounds=2),
        True, _FEW, _FEW_HEAD, _few_samples, _few_cells,
    ),
    "many": Part(
        "Many samples",
        Setting(n=64, tokens=128, draws=2, dim=4096, memory="3GB", rounds=1),
        False, _MANY, _MANY_HEAD, _many_samples, _many_cells,
    ),
}  # fmt: skip
"""The tables of models, by the names that the command line knows them by."""
