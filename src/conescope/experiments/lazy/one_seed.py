"""Fine-tune a model and its linearisation on the same batches, with one seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conescope.errors import ModelError, TrainingError
from conescope.experiments.lazy.job import Job
from conescope.kernel.estimates import trace_of
from conescope.measuring.adapt import Adapted
from conescope.measuring.probe import Probe, items
from conescope.measuring.watch import Watch
from conescope.statistics.kernel_regression import (
    centred_one_hot,
    condition_number,
    kernel_regression,
)
from conescope.statistics.uncertainty import sampled_distance
from conescope.tangent import linearize
from conescope.training.optimizers import build_optimizer

TRAININGS = ("fine-tuned", "linearised")
"""The two trainings that are compared."""


@dataclass(frozen=True)
class SeedResult:
    """What one seed gave: M measurements at iterations from 0 to T, m test samples, c outputs.

    Attributes:
        steps: [M], the iterations at which was measured.
        distance: [M], the kernel distance S(t, 0) of the fine-tuned model on the probe.
        distance_error: [], standard error of the last one, over the choice of the probe.
        trace: [M], the trace of the probe's kernel.
        batch_loss: [2, T], the mean loss of each batch, fine-tuned and linearised, in nats.
        train_loss: [2], the mean loss of all training samples at T, in nats.
        logits: [2, M, m, c], of the test samples, fine-tuned and linearised.
        predictions: [k, classes], of the kernel regression on k of the test samples.
        regressed: [k], the places of these among the m test samples.
        ridge: [], its ridge, as a multiple of the mean eigenvalue of its kernel.
        eigenvalues: [n'], of the kernel of its training samples at the start, falling.
        floor: [], what rounding makes of an eigenvalue that is 0.
    """

    steps: Tensor
    distance: Tensor
    distance_error: Tensor
    trace: Tensor
    batch_loss: Tensor
    train_loss: Tensor
    logits: Tensor
    predictions: Tensor
    regressed: Tensor
    ridge: Tensor
    eigenvalues: Tensor
    floor: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Return the attributes by name, to be stored."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class _StoppedError(Exception):
    """Someone asked to stop."""


def carry_out(job: Job, seed: int, folder: Path) -> SeedResult | None:
    """Train with one seed.

    Args:
        job: what to train and how.
        seed: the seed of the batches, and of the head if the model is built anew.
        folder: a run folder, in which the kernels of the probe are stored.

    Returns:
        What came out; None if someone asked to stop.

    Raises:
        TrainingError: if a loss is not finite.
        ConescopeError: if the model cannot be measured or linearised.
    """
    model = job.start(seed)
    adapted = job.adapted(model)
    width = job.logits(adapted.module, torch.arange(1)).shape[1]
    draws = job.settings.draws_for(width)
    try:
        regression = _regression(job, adapted, draws, seed)
        module = job.trained(model, adapted)
        tangent = _linearized(job, module)
        with _watch(job, model, draws, folder) as watch:
            found = [
                _train(job, module, TRAININGS[0], seed, watch.step),
                _train(job, tangent, TRAININGS[1], seed, lambda _: None),
            ]
            series = watch.series
    except _StoppedError:
        return None
    batch_loss, logits, train_loss = (torch.stack(pair) for pair in zip(*found, strict=True))
    last = sampled_distance(series.measured[0], series.measured[-1])
    return SeedResult(
        steps=torch.tensor(series.steps),
        distance=torch.from_numpy(series.distances_from(0)),
        distance_error=torch.tensor(last.standard_error, dtype=torch.float64),
        trace=torch.tensor([trace_of(one) for one in series.measured], dtype=torch.float64),
        batch_loss=batch_loss,
        train_loss=train_loss,
        logits=logits,
        **regression,
    )


def _linearized(job: Job, module: nn.Module) -> nn.Module:
    """Linearise a model by forward derivatives or, where an operation has none, by reverse ones."""
    tangent = linearize(module)
    try:
        job.logits(tangent, torch.arange(1))
    except ModelError:
        return linearize(module, route="reverse")
    return tangent


def _watch(job: Job, model: nn.Module, draws: int | None, folder: Path) -> Watch:
    samples, settings = job.samples, job.settings
    places = settings.probed(samples)
    return Watch(
        model,
        _subset(samples.inputs, places),
        when=", ".join(map(str, settings.measured(samples))),
        out=folder,
        labels=samples.labels[places],
        select=job.select,
        pool=job.pool,
        draws=draws,
        by_layer=settings.by_layer,
        memory=settings.memory,
        total_steps=settings.length(samples),
    )


def _train(
    job: Job, module: nn.Module, name: str, seed: int, measure: Callable[[int], object]
) -> tuple[Tensor, Tensor, Tensor]:
    """Train a model, or its linearisation.

    Returns:
        The loss of each batch, [T]; the test logits at the measured iterations, [M, m, c]; and the
        mean loss of all training samples at the end.
    """
    samples, settings = job.samples, job.settings
    measured, batches = settings.measured(samples), settings.batches(samples, seed)
    optimizer = build_optimizer(settings.optimizer_recipe, module)
    losses, logits = [], []
    job.begin(f"seed {seed}: {name}", len(batches))
    for step in range(len(batches) + 1):
        if job.should_stop():
            raise _StoppedError
        if step in measured:
            logits.append(job.logits(module, samples.test))
            _refuse_diverged(job, seed, name, logits[-1], step)
            measure(step)
        if step == len(batches):
            break
        optimizer.zero_grad()
        outputs = job.outputs(module, batches[step])
        loss = F.cross_entropy(outputs, samples.labels[batches[step]].to(outputs.device))
        _refuse_diverged(job, seed, name, loss, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach().cpu().double())
        job.advance(step + 1)
    whole = F.cross_entropy(job.logits(module, samples.train), samples.labels[samples.train])
    _refuse_diverged(job, seed, name, whole, len(batches))
    return torch.stack(losses), torch.stack(logits), whole.double()


def _refuse_diverged(job: Job, seed: int, name: str, found: Tensor, step: int) -> None:
    """Raise `TrainingError` if a loss, or one of the logits, is NaN or infinite."""
    if not bool(torch.isfinite(found).all()):
        raise TrainingError(
            f"seed {seed}: the {'logits' if found.dim() else 'loss'} of the {name} model "
            f"{'are' if found.dim() else 'is'} not finite at iteration {step}: it diverged, so "
            f"there is no verdict; take a smaller lr than {job.settings.lr}"
        )


def _regression(job: Job, adapted: Adapted, draws: int | None, seed: int) -> dict[str, Tensor]:
    """Return what the kernel at the start says: its spectrum, and the regression on it."""
    samples = job.samples
    train, test = job.settings.regressed(samples)
    places = torch.cat([train, test])
    inputs = samples.inputs
    chosen = replace(adapted, x=inputs[places] if isinstance(inputs, Tensor) else places)
    job.begin(f"seed {seed}: kernel of {len(places)} samples", 1)
    memory = job.settings.memory
    if draws is None:
        kernel = chosen.kernel(memory=memory)
    else:
        kernel = chosen.estimate(draws, memory=memory)
    job.advance(1)
    n = len(train)
    spectrum = condition_number(replace(kernel, values=kernel.values[:n, :n], draws=None))
    K = kernel.values.detach().cpu().double().numpy()
    targets = centred_one_hot(samples.labels[train].numpy(), len(samples.classes))
    found = kernel_regression(K[:n, :n], K[n:, :n], targets)
    return {
        "predictions": torch.from_numpy(found.predictions),
        "regressed": torch.searchsorted(samples.test, test),
        "ridge": torch.tensor(found.ridge, dtype=torch.float64),
        "eigenvalues": torch.from_numpy(spectrum.eigenvalues),
        "floor": torch.tensor(spectrum.floor, dtype=torch.float64),
    }


def _subset(inputs: Probe, places: Tensor) -> Probe:
    """Return the inputs of some of the samples."""
    if isinstance(inputs, Tensor):
        return inputs[places]
    chosen = {
        name: value[places] if isinstance(value, Tensor) else value for name, value in items(inputs)
    }
    return chosen if hasattr(inputs, "keys") else tuple(chosen.values())
