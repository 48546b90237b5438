"""Forecast what a recipe will cost, from a few iterations that are timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from conescope.engine import Plan, plan
from conescope.engine.tracing.survey import layer_of
from conescope.experiments.experiment import Experiment, reproducible
from conescope.measuring.undisturbed import evaluation_mode
from conescope.training.loop import Snapshot, train
from conescope.training.recipe import Recipe

_TIMED_SECONDS = 0.5
_TIMED_CALLS = 3
_TIMED_IMAGES = 125
_ENDLESS = 10**9


@dataclass(frozen=True)
class Forecast:
    """The cost of a recipe on this machine, without loading data and drawing figures.

    Attributes:
        kernel: the plan of one kernel.
        kernels: number of kernels.
        iterations: number of iterations.
        iteration_seconds: expected time of one iteration, in seconds.
        evaluations: number of evaluations.
        evaluation_seconds: expected time of one evaluation, in seconds.
        stored_bytes: size of all kernels and kept snapshots on disk, in bytes.
    """

    kernel: Plan
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
            + self.kernels * self.kernel.seconds
        )


def forecast(recipe: Recipe) -> Forecast:
    """Forecast the cost of a recipe: time a few iterations and an evaluation, plan the kernel.

    Args:
        recipe: the recipe whose cost is forecast; nothing is stored.

    Raises:
        ConescopeError: if the recipe cannot be carried out here.
    """
    with reproducible(recipe):
        experiment = Experiment(recipe)
        snapshots = _training(experiment)
        snapshot = next(snapshots)
        model, optimizer = snapshot.model, snapshot.optimizer
        iteration_seconds = _seconds_each(lambda: next(snapshots))
        evaluation_seconds = _evaluation_seconds(experiment, snapshot)
        with evaluation_mode(model):
            kernel = plan(
                model, experiment.probe, outputs=recipe.kernel.outputs, memory=recipe.kernel.memory
            )
        outputs = experiment.data.classes if recipe.kernel.outputs == "full" else 1
        kernel_bytes = (len(experiment.probe) * outputs) ** 2 * experiment.probe.element_size()
        if recipe.kernel.by_layer:
            kernel_bytes *= 1 + len({layer_of(name) for name, _ in model.named_parameters()})
        networks = [model] if snapshot.average is None else [model, snapshot.average]
        state = [tensor for network in networks for tensor in network.state_dict().values()]
        state += _slots(optimizer.state_dict())
        snapshot_bytes = sum(tensor.nbytes for tensor in state)
        moments = experiment.moments
        kernels = len(moments.kernel) * len(networks)
        return Forecast(
            kernel=kernel,
            kernels=kernels,
            iterations=recipe.training.steps - recipe.branch.at,
            iteration_seconds=iteration_seconds,
            evaluations=len(moments.evaluate),
            evaluation_seconds=evaluation_seconds,
            stored_bytes=kernels * kernel_bytes + len(moments.keep) * snapshot_bytes,
        )


def iteration_seconds(recipe: Recipe) -> float:
    """Measure the time of one iteration, in seconds.

    Args:
        recipe: the recipe that would be trained; nothing is stored.

    Raises:
        ConescopeError: if the recipe cannot be carried out here.
    """
    with reproducible(recipe):
        snapshots = _training(Experiment(recipe))
        next(snapshots)
        return _seconds_each(lambda: next(snapshots))


def _training(experiment: Experiment) -> Iterator[Snapshot]:
    """Return a training from fresh weights; that of a branch costs the same."""
    model, optimizer = experiment.begin()
    return train(
        model,
        optimizer,
        experiment.batch,
        experiment.multiplier,
        start=0,
        stop=_ENDLESS,
        seed=experiment.recipe.seed,
        average=experiment.average(model),
    )


def _evaluation_seconds(experiment: Experiment, snapshot: Snapshot) -> float:
    """Estimate the time of one evaluation from that of a few samples of each split."""
    sizes = experiment.evaluated.values()
    timed = sum(min(size, _TIMED_IMAGES) for size in sizes)
    seconds = _seconds_each(lambda: experiment.evaluate(snapshot, _TIMED_IMAGES))
    return seconds * sum(sizes) / timed


def _slots(optimizer_state: dict) -> list[Tensor]:
    slots = [value for held in optimizer_state["state"].values() for value in held.values()]
    return [slot for slot in slots if isinstance(slot, Tensor)]


def _seconds_each(work: Callable[[], object]) -> float:
    """Return the median time of a call, in seconds, after one call that is not timed."""
    work()
    times: list[float] = []
    while len(times) < _TIMED_CALLS or sum(times) < _TIMED_SECONDS:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
