"""plan(): what a kernel will cost, layer by layer, before it is computed."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from conescope.argument_types import checked
from conescope.engine.arguments import convention
from conescope.engine.compute.budget import Cut, parse_memory
from conescope.engine.compute.products import Memory, Scratch
from conescope.engine.compute.shape import Cost, Shape, cost_of_rows
from conescope.engine.compute.speed import Speed, measure_speed, seconds_of
from conescope.engine.general import without_rules
from conescope.engine.independence import compare_pair
from conescope.engine.passes import Factory
from conescope.engine.problem import Problem, measured_anew, prepared, survey_anew
from conescope.engine.tracing.dispatch import Watching
from conescope.engine.tracing.forward import RoutesChangedError, feedable, forward
from conescope.engine.tracing.routes import follow
from conescope.engine.tracing.survey import layer_of
from conescope.kernel.matrix import Outputs

_FEW_SAMPLES = 2
_TIMED_SAMPLES = 16
_ENOUGH_SECONDS = 0.05


@dataclass(frozen=True)
class LayerPlan:
    """The expected cost of one layer.

    Attributes:
        layer: the module that owns the parameters.
        route: how its kernel is made: "gradients, in blocks", "gradients", "positions", "tokens",
            "rows", "general" or "unused".
        flops: operations of forming gradients and of products, network passes not included.
        bytes: what its factors hold.
        seconds: the expected time of its products.
    """

    layer: str
    route: str
    flops: float
    bytes: int
    seconds: float


@checked
@dataclass(frozen=True)
class Plan:
    """The expected cost of a kernel.

    Attributes:
        layers: layer by layer.
        passes: expected seconds of the forward and backward passes, with the gradients that are
            formed in blocks.
        pass_flops: operations of the passes that rules follow.
        bytes: expected peak beyond the model and the result.
        block: samples of one forward pass.
        chunk: samples whose factors are held together.
        cotangents: cotangents taken together.
        spilled: whether the factors, which do not fit into the budget, wait in a temporary file.
    """

    layers: tuple[LayerPlan, ...]
    passes: float
    pass_flops: float
    bytes: int
    block: int
    chunk: int
    cotangents: int
    spilled: bool

    @property
    def seconds(self) -> float:
        """The expected time of the whole kernel, in seconds."""
        return self.passes + sum(layer.seconds for layer in self.layers)

    @property
    def flops(self) -> float:
        """Operations of all passes and products."""
        return self.pass_flops + sum(layer.flops for layer in self.layers)

    def __str__(self) -> str:
        width = max(len("layer"), *(len(layer.layer) for layer in self.layers))
        lines = [f"{'layer':{width}}  {'route':20}  {'GFLOP':>9}  {'MB':>9}  {'seconds':>8}"]
        for layer in self.layers:
            lines.append(
                f"{layer.layer:{width}}  {layer.route:20}  {layer.flops / 1e9:9.3f}  "
                f"{layer.bytes / 1e6:9.2f}  {layer.seconds:8.3f}"
            )
        lines.append(
            f"forward and backward passes {self.passes:.3f} s; in all {self.seconds:.3f} s, "
            f"{self.bytes / 1e6:.0f} MB beyond the model and the kernel"
            f"{', and the factors in a temporary file' if self.spilled else ''}"
        )
        return "\n".join(lines)


@checked
@measured_anew
def plan(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    outputs: Outputs = "trace",
    params: str | Iterable[str] | None = None,
    memory: str | float | None = None,
    preconditioner: Mapping[str, Tensor] | None = None,
) -> Plan:
    """Say what `entk` with the same arguments will do and cost.

    The rates of the machine are measured once a process, and the passes are timed on a few
    samples, the fewer the longer they take: less than a second in all for most models.

    Args:
        model: as for `entk`.
        x: n samples.
        y: m samples, or None.
        outputs: as for `entk`.
        params: as for `entk`.
        memory: as for `entk`.
        preconditioner: as for `entk`.

    Raises:
        ModelError: as `entk`.
        KernelError: as `entk`.
    """
    with prepared(model, x, y, params, *convention(outputs), preconditioner) as problem:
        budget = parse_memory(memory, problem.devices)
        problem = dataclasses.replace(problem, recheck=None)
        compare_pair(model, problem.pair)
        try:
            return _plan(problem, budget)
        except RoutesChangedError as error:
            anew = survey_anew(problem, Counter(error.args))
        try:
            return _plan(dataclasses.replace(problem, survey=anew), budget)
        except RoutesChangedError:
            general = without_rules(problem.survey, model, problem.parameters, problem.pair)
            return _plan(dataclasses.replace(problem, survey=general), budget)


def _plan(problem: Problem, budget: int) -> Plan:
    problem = problem.preconditioned()
    speed = measure_speed(problem.cotangents.like.device.type, problem.dtype)
    layers: dict[str, list[LayerPlan]] = {}
    cuts: list[tuple[Problem, Cut]] = []
    for part in problem.parts(budget):
        pieces = part.pieces(budget)
        cuts.append((part, pieces))
        for name, shapes in part.survey.work.shapes.items():
            planned = [_outer(part, name, shape, pieces, speed) for shape in shapes]
            layers.setdefault(layer_of(name), []).extend(planned)
        work = part.survey.work
        for name, size in (*work.rows.items(), *work.general.items()):
            layers.setdefault(layer_of(name), []).append(_rows(part, name, size, pieces, speed))
    for name in problem.parameters:
        if problem.survey.route(name) == "unused":
            unused = LayerPlan(layer_of(name), "unused", 0.0, 0, 0.0)
            layers.setdefault(layer_of(name), []).append(unused)
    first = cuts[0][1]
    return Plan(
        tuple(_merged(layer, parts) for layer, parts in layers.items()),
        sum(_passes(part, pieces) for part, pieces in cuts),
        sum(_pass_flops(part, pieces) for part, pieces in cuts),
        max(pieces.bytes for _, pieces in cuts),
        first.block, first.chunk, first.cotangents, first.spilled,
    )  # fmt: skip


def _passes(problem: Problem, pieces: Cut) -> float:
    """Estimate the seconds of all passes from a few samples, with one and with more cotangents."""
    first = problem.cotangents.part(0, 1)

    def seconds(samples: int, cotangents: int) -> float:
        few, cotangent = problem.x[:samples], first.expand(cotangents, -1)
        factory = Factory(problem, False, samples, problem.dtype, Scratch(pieces.scratch))
        return seconds_of(lambda: factory(few, cotangent, Memory()))

    few, most = min(_FEW_SAMPLES, pieces.chunk), min(_TIMED_SAMPLES, pieces.chunk)
    of_few = seconds(few, 1)
    timed = min(most, max(2 * few, int(few * _ENOUGH_SECONDS / of_few)))
    one = seconds(timed, 1) if timed > few else of_few
    each = one / timed
    if (
        few < timed < most and one > of_few
    ):  # what a pass takes whatever the number of samples is shared by a block
        slope = (one - of_few) / (timed - few)
        each = slope + max(0.0, of_few - few * slope) / pieces.block
    if pieces.cotangents > 1:
        several = min(3, pieces.cotangents)
        backward = (seconds(timed, several) - one) / (several - 1)
    else:
        backward = one - seconds_of(lambda: forward(problem.model, feedable(problem.x[:timed])))
    share = min(max(0.0, backward / one), 1.0)
    return _repeated(problem, pieces, (1 - share) * each, share * each)


def _pass_flops(problem: Problem, pieces: Cut) -> float:
    """Return the operations of all passes, from those that torch counts for one sample."""
    survey, sample = problem.survey, problem.x[:1]
    forward, backward = _OperationCounter(), _OperationCounter()
    with forward:
        outputs, calls = follow(problem.model, problem.parameters, sample, survey.routes)
    targets = [call.target for call in calls]
    cotangent = problem.cotangents.part(0, 1).expand_as(outputs)
    if targets:
        with backward:
            torch.autograd.grad(outputs, targets, cotangent, allow_unused=True)
    return _repeated(problem, pieces, forward.flops, backward.flops)


class _OperationCounter(Watching):
    """Counts operations by torch's formulas, without the hooks that its own counter needs."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _repeated(problem: Problem, pieces: Cut, forward: float, backward: float) -> float:
    """Return the cost of all passes from that of one forward and one backward pass of a sample."""
    n, chunks = len(problem.x), -(-len(problem.x) // pieces.chunk)
    samples = n * (chunks + 1) / 2 if problem.y is None else n + chunks * len(problem.y)
    groups = -(-len(problem.cotangents) // pieces.cotangents)
    return samples * (groups * forward + len(problem.cotangents) * backward)


def _outer(problem: Problem, name: str, shape: Shape, pieces: Cut, speed: Speed) -> LayerPlan:
    costs = [shape.cost(*sizes, problem.pairing) for sizes in _products(problem, pieces)]
    return _layer(problem, name, shape.held, pieces, costs, speed)


def _rows(problem: Problem, name: str, size: int, pieces: Cut, speed: Speed) -> LayerPlan:
    route = "general" if name in problem.survey.routes.general else "rows"
    costs = [
        cost_of_rows(route, size, *sizes, problem.pairing) for sizes in _products(problem, pieces)
    ]
    return _layer(problem, name, size, pieces, costs, speed)


def _products(problem: Problem, pieces: Cut) -> Iterator[tuple[int, int | None, int]]:
    """Yield the numbers of samples n and m, and of cotangents, of all products that are made."""
    for group in pieces.groups(len(problem.cotangents)):
        for left, right in pieces.pairs(*problem.samples):
            m = None if right is None else right.stop - right.start
            yield left.stop - left.start, m, group.stop - group.start


def _layer(
    problem: Problem, name: str, held: int, pieces: Cut, costs: Sequence[Cost], speed: Speed
) -> LayerPlan:
    samples = min(pieces.chunk, len(problem.x) + len(() if problem.y is None else problem.y))
    return LayerPlan(
        layer_of(name),
        " + ".join(dict.fromkeys(cost.route for cost in costs)),
        sum(cost.flops for cost in costs),
        samples * pieces.cotangents * held * problem.element,
        sum(cost.seconds(speed) for cost in costs),
    )


def _merged(layer: str, parts: list[LayerPlan]) -> LayerPlan:
    routes = " + ".join(dict.fromkeys(part.route for part in parts))
    return LayerPlan(
        layer,
        routes,
        sum(part.flops for part in parts),
        sum(part.bytes for part in parts),
        sum(part.seconds for part in parts),
    )
