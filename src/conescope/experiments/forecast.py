"""Forecast what a recipe will cost, from a few iterations that are timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from conescope.engine import Plan, plan
from conescope.engine.tracing.survey import layer_of
from conescope.engine.tracing.untouched import MOST_OUTPUT_BYTES
from conescope.experiments.experiment import Experiment
from conescope.measuring.undisturbed import EVALUATION_BATCH, evaluation_mode
from conescope.runs.environment import reproducible
from conescope.runs.schedule import Schedule
from conescope.training.data.sampling import BatchOrder
from conescope.training.loop import Snapshot
from conescope.training.models import last_position, returning
from conescope.training.recipe import Recipe

_TIMED_SECONDS = 0.1
_LONG_SECONDS = 0.1
_WHOLE_SECONDS = 1.0
_TIMED_CALLS = 3
_ENOUGH_SECONDS = 0.1
_FEW_SAMPLES = 2
_CLEARLY_MORE = 1.5
TIMED_SAMPLES = 16
"""Samples of which the time of a projection is that of all of them."""

_ENDLESS = 10**9


@dataclass(frozen=True)
class Forecast:
    """The cost of a recipe on this machine, without loading data and drawing figures.

    Attributes:
        kernel: the plan of one kernel, or of one cotangent's of an estimate; None for a projection.
        kernel_seconds: expected time of one measurement, in seconds.
        kernels: number of kernels.
        iterations: number of iterations.
        iteration_seconds: expected time of one iteration, in seconds.
        evaluations: number of evaluations.
        evaluation_seconds: expected time of one evaluation, in seconds.
        stored_bytes: size of all kernels and kept snapshots on disk, in bytes.
    """

    kernel: Plan | None
    kernel_seconds: float
    kernels: int
    iterations: int
    iteration_seconds: float
    evaluations: int
    evaluation_seconds: float
    stored_bytes: int

    @property
    def seconds(self) -> float:
        """The expected time of the whole run, in seconds."""
        return (
            self.iterations * self.iteration_seconds
            + self.evaluations * self.evaluation_seconds
            + self.kernels * self.kernel_seconds
        )


def forecast(recipe: Recipe) -> Forecast:
    """Forecast the cost of a recipe: time a few iterations and an evaluation, plan the kernel.

    It takes about a second, of large networks some passes over two to four samples, by which long
    work is timed; with `training.compile`, also the time to compile the network for two samples and
    for a batch, or for some numbers of samples between them.

    Args:
        recipe: the recipe whose cost is forecast; nothing is stored.

    Raises:
        ConescopeError: if the recipe cannot be carried out here.
    """
    with reproducible(recipe.device, recipe.threads):
        experiment = Experiment(recipe, is_timed_only=True)
        begun = _begun(experiment)
        model, optimizer = begun.model, begun.optimizer
        iteration_seconds = _iteration_seconds(experiment, begun)
        evaluation_seconds = _evaluation_seconds(experiment, begun)
        kernel, kernel_seconds = _kernel_cost(experiment, model)
        networks = [model] if begun.average is None else [model, begun.average]
        state = [tensor for network in networks for tensor in network.state_dict().values()]
        state += _slots(optimizer.state_dict())
        snapshot_bytes = sum(tensor.nbytes for tensor in state)
        counts = experiment.counts
        kernels = counts["kernel.when"] * len(networks)
        keep, steps = Schedule(recipe.snapshots.keep), recipe.training.steps
        per_epoch = experiment.order.iterations_per_epoch
        kept = counts["snapshots.keep"] + (not keep.fires(steps, steps, per_epoch))
        return Forecast(
            kernel=kernel,
            kernel_seconds=kernel_seconds,
            kernels=kernels,
            iterations=recipe.training.steps - recipe.branch.at,
            iteration_seconds=iteration_seconds,
            evaluations=counts["training.evaluate"],
            evaluation_seconds=evaluation_seconds,
            stored_bytes=kernels * _kernel_bytes(experiment, model) + kept * snapshot_bytes,
        )


def _kernel_cost(experiment: Experiment, model: nn.Module) -> tuple[Plan | None, float]:
    """Return the plan of a kernel, and the seconds of one measurement.

    An estimate costs the kernel of one output for each of its cotangents. A projection costs as
    much for each sample, so that a few samples are timed.
    """
    chosen, probe = experiment.recipe.kernel, experiment.probe
    if chosen.projection is not None:
        few = probe[:TIMED_SAMPLES]
        seconds = seconds_each(lambda: experiment.measure(model, few))
        return None, seconds * len(probe) / len(few)
    outputs = chosen.outputs if chosen.estimate is None else "sum"
    with evaluation_mode(model), returning(last_position, model):
        kernel = plan(model, probe, outputs=outputs, memory=chosen.memory)
    return kernel, kernel.seconds * (chosen.estimate or 1)


def _kernel_bytes(experiment: Experiment, model: nn.Module) -> int:
    """Return the size of what one measurement stores, in bytes."""
    chosen, probe = experiment.recipe.kernel, experiment.probe
    dtype = getattr(torch, experiment.recipe.dtype)
    outputs = outputs_bytes(len(probe), experiment.data.classes, dtype)
    size = torch.promote_types(dtype, torch.float32).itemsize
    if chosen.projection is not None:
        return len(probe) * chosen.projection * size + outputs
    rows = len(probe) * (experiment.data.classes if chosen.outputs == "full" else 1)
    matrices = 1 + (chosen.estimate or 0)
    if chosen.by_layer:
        matrices += len({layer_of(name) for name, _ in model.named_parameters()})
    return rows**2 * size * matrices + outputs


def outputs_bytes(samples: int, outputs: int, dtype: torch.dtype) -> int:
    """Return the size of the outputs on the probe that are stored with a kernel, in bytes."""
    size = samples * outputs * dtype.itemsize
    return size if size <= MOST_OUTPUT_BYTES else 0


def iteration_seconds(recipe: Recipe) -> float:
    """Measure the time of one iteration, in seconds.

    Args:
        recipe: the recipe that would be trained; nothing is stored.

    Raises:
        ConescopeError: if the recipe cannot be carried out here.
    """
    with reproducible(recipe.device, recipe.threads):
        experiment = Experiment(recipe, is_timed_only=True)
        return _iteration_seconds(experiment, _begun(experiment))


def _begun(experiment: Experiment) -> Snapshot:
    """Return what is trained, with fresh weights; the training of a branch costs the same."""
    model, optimizer = experiment.begin()
    return Snapshot(0, model, optimizer, experiment.average(model))


def _iteration_seconds(experiment: Experiment, begun: Snapshot) -> float:
    count, recipe = len(experiment.data.train), experiment.recipe

    def train(size: int) -> Callable[[], object]:
        part = copy(experiment)
        part.order = BatchOrder(count // size * size, size, recipe.seed)  # no smaller batches
        snapshots = part.train(begun, 0, _ENDLESS)
        next(snapshots)
        if recipe.training.compile:
            next(snapshots)
        return lambda: next(snapshots)

    return seconds_of_samples(train, recipe.training.batch_size)


def _evaluation_seconds(experiment: Experiment, snapshot: Snapshot) -> float:
    """Estimate the time of one evaluation from that of a few samples of each split."""
    sizes = experiment.evaluated.values()
    timed = sum(min(size, EVALUATION_BATCH) for size in sizes)
    seconds = seconds_of_samples(
        lambda few: lambda: experiment.evaluate(snapshot, few), EVALUATION_BATCH
    )
    return seconds * sum(sizes) / timed


def _slots(optimizer_state: dict) -> list[Tensor]:
    slots = [value for held in optimizer_state["state"].values() for value in held.values()]
    return [slot for slot in slots if isinstance(slot, Tensor)]


def seconds_of_samples(work_on: Callable[[int], Callable[[], object]], samples: int) -> float:
    """Return the time of work on some samples, extrapolated from few of them if it is long.

    Work that may take up to a second is timed as a whole, since a sample of a large batch, which
    no cache holds, takes up to a third longer than one of few.

    Args:
        work_on: makes the work on a number of samples, at least 1.
        samples: their number.
    """
    few = min(_FEW_SAMPLES, samples)
    work = work_on(few)
    seconds = min(seconds_of(work), seconds_of(work))
    if few == samples or seconds * samples / few <= _WHOLE_SECONDS:
        return seconds_each(work_on(samples))
    more = max(2 * few, int(few * _ENOUGH_SECONDS / seconds))
    while more < samples:
        of_more = seconds_each(work_on(more))
        if of_more >= _CLEARLY_MORE * seconds:
            return seconds + (of_more - seconds) * (samples - few) / (more - few)
        more *= 4  # which costs little while most of the time does not grow with the samples
    return seconds_each(work_on(samples))


def seconds_each(work: Callable[[], object]) -> float:
    """Return the median time of some calls after a first one; a long one is called only once."""
    first = seconds_of(work)
    if first > _LONG_SECONDS:
        return first
    times: list[float] = []
    while len(times) < _TIMED_CALLS or sum(times) < _TIMED_SECONDS:
        times.append(seconds_of(work))
    return statistics.median(times)


def seconds_of(work: Callable[[], object]) -> float:
    """Return the time of one call, in seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
